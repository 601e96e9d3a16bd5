"""Answers that are decoded together are those that `generate` gives for each adapter alone."""

import shutil
from dataclasses import replace

import pytest
from safetensors.torch import load_file, save_file

from thriftune.data.questions import encode_prompt
from thriftune.errors import ModelSourceError
from thriftune.hardware import DEVICES
from thriftune.inference.generation import BASE, generate
from thriftune.inference.serving.asking import Ask
from thriftune.inference.serving.decoder import Decoder
from thriftune.inference.serving.loaded import load
from thriftune.models.adapter_weights import WEIGHTS
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


def generated(model_dir, adapters, asks):
    """What `generate` answers to each request, alone."""
    found = {}
    for name, tokens in sorted({(ask.model, ask.max_tokens) for ask in asks}):
        given = {name: adapters[name]} if name != BASE else {}
        asked = [ask for ask in asks if (ask.model, ask.max_tokens) == (name, tokens)]
        prompts = [ask.uid.partition("|")[2] for ask in asked]
        answers = generate(model_dir, prompts, adapters=given, placement=CPU, sampling=Sampling(tokens), batch=1)
        found |= {ask.uid: answer.answer for ask, answer in zip(asked, answers, strict=True)}
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
    names = [BASE, *adapters]
    asks = [
        replace(ask, is_streamed=is_streamed, max_tokens=4 + 7 * names.index(ask.model))
        for ask in asks_of(loaded, names)
    ]
    expected = generated(tiny_model_dir, adapters, asks)
    texts, ends = answered(Decoder(loaded, max_batch=6), asks, joining)
    assert texts == expected
    assert len(set(texts.values())) > len(asks) // 2
    assert set(ends) == set(expected)


@pytest.fixture
def other_kinds(tiny_model_dir, tmp_path):
    """Adapters that peft does not batch: with DoRA, and with a module that trained as a whole."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    made = {}
    for name, options in {"dora": {"use_dora": True}, "head": {"modules_to_save": ["lm_head"]}}.items():
        base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype="float32")
        model = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **options))
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if "lora_B" in key or "modules_to_save" in key:
                    weight.add_(0.3 * torch.randn(weight.shape, generator=generator))
        model.save_pretrained(tmp_path / name)
        made[name] = tmp_path / name
    return made


@pytest.mark.parametrize("first", ["a1", "head"])
def test_kinds_that_peft_cannot_batch_answer_in_turns(tiny_model_dir, adapters, other_kinds, first):
    """A module that trained as a whole was used for every row while its adapter was active, also without a name."""
    everything = adapters | other_kinds
    ordered = {first: everything[first]} | everything
    loaded = load(tiny_model_dir, ordered, CPU)
    assert sorted(loaded.mixed) == ["a1", "a2", "a3", BASE]
    asks = asks_of(loaded, [BASE, *ordered], is_streamed=True)
    texts, _ends = answered(Decoder(loaded, max_batch=7), asks, joining=2)
    assert texts == generated(tiny_model_dir, ordered, asks)


def test_without_an_adapter_that_can_be_batched_the_base_answers_alone(tiny_model_dir, other_kinds):
    loaded = load(tiny_model_dir, other_kinds, CPU)
    assert not loaded.mixed
    asks = asks_of(loaded, [BASE, *other_kinds])
    texts, _ends = answered(Decoder(loaded, max_batch=5), asks)
    assert texts == generated(tiny_model_dir, other_kinds, asks)


def test_another_type_than_lora_answers_in_turns_with_the_base(tiny_model_dir, tmp_path):
    import torch
    from peft import IA3Config, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype="float32"), IA3Config())
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if "ia3_" in key:
                weight.mul_(1.0 + torch.arange(weight.numel()).reshape(weight.shape) % 3)
    model.save_pretrained(tmp_path / "ia3")
    adapters = {"ia3": tmp_path / "ia3"}
    loaded = load(tiny_model_dir, adapters, CPU)
    asks = asks_of(loaded, [BASE, "ia3"])
    texts, _ends = answered(Decoder(loaded, max_batch=5), asks)
    assert texts == generated(tiny_model_dir, adapters, asks)
    assert len(set(texts.values())) > len(PROMPTS)


def test_a_base_without_adapters_is_served(tiny_model_dir):
    loaded = load(tiny_model_dir, {}, CPU)
    asks = asks_of(loaded, [BASE])
    assert answered(Decoder(loaded, max_batch=3), asks)[0] == generated(tiny_model_dir, {}, asks)


def test_a_repetition_penalty_of_the_model_is_applied(tiny_model_dir, adapters, tmp_path):
    """Instruct models ship one in generation_config.json, and `generate` obeys it."""
    import json
    import shutil

    base = tmp_path / "penalised"
    shutil.copytree(tiny_model_dir, base)
    file = base / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"repetition_penalty": 1.3}))
    loaded = load(base, adapters, CPU)
    asks = asks_of(loaded, [BASE, *adapters])
    texts, _ends = answered(Decoder(loaded, max_batch=6), asks)
    assert texts == generated(base, adapters, asks)
    assert texts != generated(tiny_model_dir, adapters, asks)
    file.write_text(json.dumps(json.loads(file.read_text()) | {"no_repeat_ngram_size": 2}))
    with pytest.raises(ModelSourceError, match="sets no_repeat_ngram_size to 2, which the server does not apply"):
        load(base, adapters, CPU)


def test_drawn_answers_follow_their_seed_alone(tiny_model_dir, adapters):
    """Not the other rows of the batch: the same request has the same answer whoever else asks."""
    loaded = load(tiny_model_dir, adapters, CPU)
    asks = asks_of(loaded, list(adapters), temperature=1.2, top_p=0.9, seed=3)
    together, _ = answered(Decoder(loaded, max_batch=12), asks, joining=12)
    alone = {}
    for ask in asks:
        alone |= answered(Decoder(loaded, max_batch=1), [ask])[0]
    assert together == alone
    others, _ = answered(Decoder(loaded, max_batch=12), [replace(ask, seed=4) for ask in asks])
    assert others != together
    likeliest, _ = answered(Decoder(loaded, max_batch=12), [replace(ask, top_p=1e-9) for ask in asks])
    assert likeliest == generated(tiny_model_dir, adapters, asks)


def test_an_answer_stops_at_a_stop_token_and_is_counted_without_it(tiny_model_dir, adapters):
    loaded = load(tiny_model_dir, adapters, CPU)
    (ask, *_) = asks_of(loaded, ["a1"])
    answered_whole = []
    decoder = Decoder(loaded, max_batch=1)
    decoder.add(ask)
    row = decoder._batches["mixed"].rows
    while decoder.is_busy:
        decoder.step()
        answered_whole = list(row[0].text.tokens) if (row := decoder._batches["mixed"].rows) else answered_whole
    stop = answered_whole[10]
    first = answered_whole.index(stop)
    stopping = replace(loaded, stops=frozenset({stop}))
    texts, ends = answered(Decoder(stopping, max_batch=1), [ask])
    assert ends[ask.uid] == (first, "stop")
    assert texts[ask.uid] == loaded.tokenizer.decode(answered_whole[:first], skip_special_tokens=True).strip()


def test_cancelled_rows_leave_the_others_as_they_are(tiny_model_dir, adapters):
    loaded = load(tiny_model_dir, adapters, CPU)
    asks = asks_of(loaded, list(adapters))
    decoder, texts = Decoder(loaded, max_batch=8), {}
    for ask in asks:
        decoder.add(ask)
    decoder.step()
    gone = {asks[number].uid for number in (0, 3, 11)}  # two that are decoded, and one that waits
    for uid in [*gone, "never asked"]:
        decoder.cancel(uid)
    while decoder.is_busy:
        texts |= {piece.uid: piece.text for piece in decoder.step().pieces}
    kept = [ask for ask in asks if ask.uid not in gone]
    assert texts == generated(tiny_model_dir, adapters, kept)


def test_a_request_that_fails_takes_only_its_own_pass_with_it(tiny_model_dir, adapters):
    """A token that the model does not have fails as memory that ends does: in the pass that reads the question."""
    loaded = load(tiny_model_dir, adapters, CPU)
    asks = asks_of(loaded, list(adapters))
    decoder, last = Decoder(loaded, max_batch=99), {}
    for ask in asks:
        decoder.add(ask)
    decoder.step()
    decoder.add(replace(asks[0], uid="wrong", prompt=(10**6,)))
    while decoder.is_busy:
        last |= {piece.uid: piece for piece in decoder.step().pieces if piece.is_last}
    assert last.pop("wrong").error.startswith("IndexError: index out of range")
    assert {uid: piece.text for uid, piece in last.items()} == generated(tiny_model_dir, adapters, asks)


def test_no_temperature_and_no_numbers_that_are_none_end_the_answers_of_others(tiny_model_dir, adapters, tmp_path):
    """Scores divided by 1e-300 are not finite, and neither are those of an adapter that overflows."""
    weights = load_file(adapters["a3"] / WEIGHTS)
    broken = shutil.copytree(adapters["a3"], tmp_path / "broken")
    save_file({name: weight.fill_(float("nan")) for name, weight in weights.items()}, broken / WEIGHTS)
    loaded = load(tiny_model_dir, {**adapters, "broken": broken}, CPU)
    asks = asks_of(loaded, list(adapters))
    cold = replace(asks[0], uid="cold", temperature=1e-300)
    wrong = [replace(asks[0], uid="wrong", model="broken"), replace(cold, uid="drawn", model="broken")]
    decoder, last = Decoder(loaded, max_batch=99), {}
    for ask in [*asks, cold, *wrong]:
        decoder.add(ask)
    while decoder.is_busy:
        last |= {piece.uid: piece for piece in decoder.step().pieces if piece.is_last}
    assert all("are not finite" in last.pop(ask.uid).error for ask in wrong)
    expected = generated(tiny_model_dir, adapters, asks)
    assert last.pop("cold").text == expected[asks[0].uid]
    assert {uid: piece.text for uid, piece in last.items()} == expected
