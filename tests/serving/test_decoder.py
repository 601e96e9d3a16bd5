"""Answers that are decoded together are those that `generate` gives for each adapter alone."""

from dataclasses import replace

import pytest

from thriftune.data.questions import encode_prompt
from thriftune.hardware import DEVICES
from thriftune.inference.generation import BASE, generate
from thriftune.inference.serving.asking import Ask
from thriftune.inference.serving.decoder import Decoder
from thriftune.inference.serving.loaded import load
from thriftune.models.answering import Sampling
from thriftune.models.loading import Placement

CPU = Placement(DEVICES["CPU"], "fp32")
PROMPTS = ["What is the capital of France?", "hi", "The quick brown fox jumps over the lazy dog", "Zwölf Öfen, 猫?"]
TOKENS = 24


def answered(decoder, asks, joining=1):
    """The text, tokens and end of each answer; so many requests join before each step."""
    texts = {ask.uid: "" for ask in asks}
    ends, rest = {}, list(asks)
    while rest or decoder.is_busy:
        for ask in rest[:joining]:
            decoder.add(ask)
        rest = rest[joining:]
        for piece in decoder.step().pieces:
            assert piece.uid not in ends, "a piece after the last one"
            assert not piece.error, piece.error
            texts[piece.uid] += piece.text
            if piece.is_last:
                ends[piece.uid] = (piece.tokens, piece.finish)
    return texts, ends


@pytest.fixture
def adapters(random_adapter):
    return {f"a{seed}": random_adapter(seed) for seed in (1, 2, 3)}


def generated(model_dir, adapters, tokens=TOKENS):
    """What `generate` answers, by name and prompt."""
    found = {}
    for name, path in [(BASE, None), *adapters.items()]:
        given = {name: path} if path else {}
        answers = generate(model_dir, PROMPTS, adapters=given, placement=CPU, sampling=Sampling(tokens), batch=1)
        found |= {(name, answer.prompt): answer.answer for answer in answers}
    return found


def asks_of(loaded, names, **given):
    return [
        Ask(f"{name}|{prompt}", name, tuple(encode_prompt(prompt, loaded.tokenizer, "chat")), TOKENS, **given)
        for prompt in PROMPTS
        for name in names
    ]


@pytest.mark.parametrize("is_streamed", [True, False])
@pytest.mark.parametrize("joining", [1, 5, 99])
def test_mixed_answers_equal_those_of_generate(tiny_model_dir, adapters, joining, is_streamed):
    """Whatever comes and goes in the batch: a wrong mask, position or cache row changes a token at once."""
    loaded = load(tiny_model_dir, adapters, CPU)
    asks = [
        replace(ask, is_streamed=is_streamed, max_tokens=3 + number % TOKENS)
        for number, ask in enumerate(asks_of(loaded, [BASE, *adapters]))
    ]
    expected = {}
    for ask in asks:
        name, _, prompt = ask.uid.partition("|")
        given = {name: adapters[name]} if name != BASE else {}
        (answer,) = generate(
            tiny_model_dir, [prompt], adapters=given, placement=CPU, sampling=Sampling(ask.max_tokens), batch=1
        )
        expected[ask.uid] = answer.answer
    texts, ends = answered(Decoder(loaded, max_batch=6), asks, joining)
    assert texts == expected
    assert len(set(texts.values())) > len(asks) // 2
    assert set(ends) == set(expected)
