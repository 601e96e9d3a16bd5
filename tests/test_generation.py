"""Prompts as tokens, answers in batches, and the files they go to."""

import json
import math
from pathlib import Path

import pytest

from thriftune.artifacts import change_manifest
from thriftune.data.examples import Conversation
from thriftune.data.formats import FORMATS, alpaca_prompt
from thriftune.data.rendering import render
from thriftune.data.tokenization import IGNORED, Tokenization
from thriftune.errors import AdapterError, ConfigError, DataError, ModelSourceError
from thriftune.hardware import DEVICES
from thriftune.inference.answers import Answer, read_answers, require_format, write_answers
from thriftune.inference.asking import BASE, names_of, require_settings
from thriftune.inference.generation import Sampling, complete, encode_prompt, generate, prompt_style
from thriftune.inference.prompts import Prompt
from thriftune.models.loading import Placement

PROMPTS = ["What is the capital of France?", "hi", "The quick brown fox jumps over the lazy dog", "Two and two"]
CPU = Placement(DEVICES["CPU"], "fp32")


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()


@pytest.mark.parametrize(
    ("style", "row"),
    [
        (
            "chat",
            {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]},
        ),
        ("alpaca", {"instruction": "Why?", "output": "Because."}),
    ],
)
def test_a_prompt_is_encoded_as_training_put_it_before_the_answer(llama_tokenizer, style, row):
    (text,) = FORMATS[style].read(row)
    if isinstance(text, Conversation):
        text = render(text, llama_tokenizer)
    (trained,) = Tokenization(llama_tokenizer).tokenize([text])
    answer_starts = next(i for i, label in enumerate(trained.labels) if label != IGNORED)
    prompt = encode_prompt("Why?", llama_tokenizer, style)
    assert prompt == trained.input_ids[:answer_starts]
    assert prompt.count(llama_tokenizer.bos_token_id) == 1
    assert prompt[0] == llama_tokenizer.bos_token_id
    assert llama_tokenizer.eos_token_id not in prompt


def test_a_plain_text_is_continued_as_it_is(llama_tokenizer):
    ids = encode_prompt("Once upon", llama_tokenizer, "text")
    assert llama_tokenizer.decode(ids) == "<s>Once upon"


def test_a_tokenizer_that_closes_every_text_does_not_close_a_prompt(llama_tokenizer):
    import copy

    from tokenizers import processors

    closing = copy.deepcopy(llama_tokenizer)
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    assert closing("Why?")["input_ids"][-1] == closing.eos_token_id
    assert closing.decode(encode_prompt("Why?", closing, "alpaca")) == f"<s>{alpaca_prompt('Why?')}"


def test_the_style_follows_the_chat_template(llama_tokenizer):
    import copy

    assert prompt_style(Path("nowhere"), llama_tokenizer) == "chat"
    plain = copy.deepcopy(llama_tokenizer)
    plain.chat_template = None
    assert prompt_style(Path("nowhere"), plain) == "text"


def test_batched_answers_equal_single_ones(model, llama_tokenizer):
    """Padding on the right, or without a mask, would make short prompts continue from padding."""
    encoded = [encode_prompt(prompt, llama_tokenizer, "text") for prompt in PROMPTS]
    assert len({len(ids) for ids in encoded}) > 1
    single = [next(complete(model, llama_tokenizer, [ids], Sampling(12), batch=1)) for ids in encoded]
    assert list(complete(model, llama_tokenizer, encoded, Sampling(12), batch=3)) == single
    assert all(single)


def test_an_answer_is_what_greedy_decoding_by_hand_gives(model, llama_tokenizer):
    import torch

    ids = encode_prompt(PROMPTS[0], llama_tokenizer, "chat")
    expected = list(ids)
    with torch.inference_mode():
        for _ in range(6):
            expected.append(int(model(torch.tensor([expected])).logits[0, -1].argmax()))
    assert llama_tokenizer.eos_token_id not in expected[len(ids) :]
    (answer,) = complete(model, llama_tokenizer, [ids], Sampling(6), batch=1)
    assert answer == llama_tokenizer.decode(expected[len(ids) :], skip_special_tokens=True).strip()


def test_drawn_answers_follow_the_seed(model, llama_tokenizer):
    ids = [encode_prompt(PROMPTS[0], llama_tokenizer, "text")]
    draws = [next(complete(model, llama_tokenizer, ids, Sampling(12, 1.5, seed), batch=1)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def test_the_lowest_temperatures_draw_the_likeliest_token(model, llama_tokenizer):
    """Scores divided by 1e-40 were no numbers, and torch's sampling ended in a traceback."""
    ids = [encode_prompt(PROMPTS[0], llama_tokenizer, "text")]
    (likeliest,) = complete(model, llama_tokenizer, ids, Sampling(6), batch=1)
    assert list(complete(model, llama_tokenizer, ids, Sampling(6, 1e-40), batch=1)) == [likeliest]


def test_generating_answers_every_prompt_in_order(tiny_model_dir):
    answers = generate(tiny_model_dir, PROMPTS, adapters={}, placement=CPU, sampling=Sampling(3), batch=2)
    assert [a.prompt for a in answers] == PROMPTS
    assert {a.adapter for a in answers} == {BASE}


def test_each_adapter_answers_every_prompt_with_its_own_weights(tiny_model_dir, random_adapter):
    adapters = {"one": random_adapter(seed=1), "two": random_adapter(seed=2)}
    both = generate(tiny_model_dir, PROMPTS, adapters=adapters, placement=CPU, sampling=Sampling(8), batch=4)
    assert [(a.adapter, a.prompt) for a in both] == [(name, p) for name in adapters for p in PROMPTS]
    answers = {name: [a.answer for a in both if a.adapter == name] for name in adapters}
    assert answers["one"] != answers["two"]
    for name, directory in adapters.items():
        alone = generate(
            tiny_model_dir, PROMPTS, adapters={name: directory}, placement=CPU, sampling=Sampling(8), batch=4
        )
        assert [a.answer for a in alone] == answers[name]


def test_prompts_that_name_who_answers_are_answered_in_their_order(tiny_model_dir, random_adapter):
    adapters = {"one": random_adapter(seed=1), "two": random_adapter(seed=2)}
    prompts = [Prompt("hi", "two"), Prompt("hi", BASE), Prompt("Two and two"), Prompt("hi", "one")]
    found = generate(tiny_model_dir, prompts, adapters=adapters, placement=CPU, sampling=Sampling(8), batch=8)
    asked = [("hi", "two"), ("hi", BASE), ("Two and two", "one"), ("Two and two", "two"), ("hi", "one")]
    assert [(a.prompt, a.adapter) for a in found] == asked
    for prompt, name in asked:
        own = {name: adapters[name]} if name in adapters else {}
        (alone,) = generate(tiny_model_dir, [prompt], adapters=own, placement=CPU, sampling=Sampling(8), batch=1)
        assert alone in found


def test_each_adapter_is_asked_in_the_form_that_it_was_trained_on(tiny_model_dir, random_adapter):
    """All were asked in the form of the first."""
    adapters = {"chat": random_adapter(seed=1), "alpaca": random_adapter(seed=2)}
    for style, directory in adapters.items():
        change_manifest(directory, {"config": {"data": {"format": style}}})
    both = generate(tiny_model_dir, PROMPTS, adapters=adapters, placement=CPU, sampling=Sampling(8), batch=4)
    for name, directory in adapters.items():
        alone = generate(
            tiny_model_dir, PROMPTS, adapters={name: directory}, placement=CPU, sampling=Sampling(8), batch=4
        )
        assert [a for a in both if a.adapter == name] == alone


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["one"], r"adapter_names = \['one'\]: are 1 names for 2 adapters"),
        (["one", "one"], r"adapter_names\.1 = one: is the name of adapter 1 too"),
        (["one", "base"], r"adapter_names\.1 = base: is no name"),
        (["../x", "two"], r"adapter_names\.0 = \.\./x: is no name"),
    ],
)
def test_wrong_names_of_adapters_are_refused(names, reason):
    with pytest.raises(AdapterError, match=reason):
        names_of(2, names)


def test_adapters_without_names_are_numbered():
    assert names_of(2, []) == ["adapter-1", "adapter-2"]
    assert names_of(2, ["b", "a"]) == ["b", "a"]


def test_a_prompt_for_an_adapter_that_there_is_not_is_refused_before_a_model_is_loaded(tmp_path):
    with pytest.raises(DataError, match=r"prompts\.1 = three: .* The names are one, base\."):
        prompts = [Prompt("hi"), Prompt("hi", "three")]
        generate(tmp_path, prompts, adapters={"one": tmp_path}, placement=CPU, sampling=Sampling(), batch=1)


def test_an_adapter_may_have_a_dot_in_its_path(tiny_model_dir, random_adapter):
    adapters = {"/data/v1.0/adapter": random_adapter(seed=1)}
    (answer,) = generate(tiny_model_dir, ["hi"], adapters=adapters, placement=CPU, sampling=Sampling(2), batch=1)
    assert answer.adapter == "/data/v1.0/adapter"


@pytest.mark.parametrize(
    ("prompts", "reason"),
    [([], r"prompts = .*nothing to answer"), (["Why?", " \n"], r"prompts\.1 = ' \\n': is empty")],
)
def test_no_prompts_are_refused_before_a_model_is_loaded(tmp_path, prompts, reason):
    with pytest.raises(DataError, match=reason):
        generate(tmp_path / "absent", prompts, adapters={}, placement=CPU, sampling=Sampling(), batch=1)


ANSWERS = [Answer("Où?", "base", "là-bas\n“ici”"), Answer("b", "one", "")]


def test_answers_are_written_as_jsonl(tmp_path):
    write_answers(ANSWERS, tmp_path / "a.jsonl")
    text = (tmp_path / "a.jsonl").read_text(encoding="utf-8")
    assert "Où?" in text
    assert [Answer(**json.loads(line)) for line in text.splitlines()] == ANSWERS
    assert list(read_answers(tmp_path / "a.jsonl")) == ANSWERS


def test_answers_are_written_as_parquet(tmp_path):
    import pyarrow.parquet as pq

    write_answers(ANSWERS, tmp_path / "a.parquet")
    assert [Answer(**row) for row in pq.read_table(tmp_path / "a.parquet").to_pylist()] == ANSWERS


def test_an_adapter_is_no_model_to_ask(random_adapter):
    """It ended in a traceback of the tokenizer that an adapter does not have."""
    with pytest.raises(ModelSourceError, match="is an adapter, not a model"):
        generate(random_adapter(1), ["Why?"], adapters={}, placement=CPU, sampling=Sampling(3), batch=2)


def test_an_adapter_of_another_model_is_refused_before_one_is_loaded(tiny_model_dir, llama_tokenizer, tmp_path):
    """peft loaded both first, and warned of each weight."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(tiny_model_dir)
    config.hidden_size, config.head_dim = 32, 8
    config.save_pretrained(tmp_path / "base")
    llama_tokenizer.save_pretrained(tmp_path / "base")
    other = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(target_modules=["q_proj"]))
    other.save_pretrained(tmp_path / "adapter")
    adapters = {"theirs": tmp_path / "adapter"}
    with pytest.raises(AdapterError, match="adapters theirs = .*adapter: has weights with other shapes"):
        generate(tiny_model_dir, ["Why?"], adapters=adapters, placement=CPU, sampling=Sampling(3), batch=2)
    with pytest.raises(ModelSourceError, match="weights"):  # it fits this one, which has none: as far as that it goes
        generate(tmp_path / "base", ["Why?"], adapters=adapters, placement=CPU, sampling=Sampling(3), batch=2)


@pytest.mark.parametrize(
    ("sampling", "batch", "said"),
    [
        (Sampling(), 0, "batch = 0: is less than one"),
        (Sampling(max_new_tokens=0), 1, "max_new_tokens = 0: is less than one"),
        (Sampling(temperature=-1), 1, "temperature = -1: is no temperature"),
        (Sampling(temperature=math.nan), 1, "temperature = nan: is no temperature"),
        (Sampling(temperature=math.inf), 1, "temperature = inf: is no temperature"),
        (Sampling(seed=-1), 1, "seed = -1: is no seed. Use 0 to 4294967295."),
        (Sampling(seed=2**32), 1, "seed = 4294967296: is no seed"),
    ],
)
def test_settings_that_answer_nothing_are_refused(sampling, batch, said):
    """A temperature below 0 was taken for 0; a batch of 0 and a seed of -1 were tracebacks, after loading the model."""
    with pytest.raises(ConfigError, match=said):
        require_settings(sampling, batch)
    require_settings(Sampling(temperature=0.7, seed=2**32 - 1), 1)


def test_a_format_of_answers_that_there_is_not_is_refused():
    """csv made a file of JSON lines with that ending."""
    with pytest.raises(ConfigError, match=r"output_format = csv: is no format of answers\. Use jsonl or parquet\."):
        require_format("csv")
    require_format("parquet")
