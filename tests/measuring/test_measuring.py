"""Our own formats and held-out rows: asked as training asked, scored rightly, and the same in every partition."""

import copy
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from local_tasks import CPU, in_parts, prepared, write_jsonl
from transformers import AutoModelForCausalLM

from thriftune.config import DataConfig
from thriftune.data.items import Item
from thriftune.data.prepare import prepare as prepare_data
from thriftune.data.questions import encode_prompt
from thriftune.errors import DataError, ModelSourceError
from thriftune.inference.benchmarks import measuring
from thriftune.inference.benchmarks.measuring import Settings, Shard
from thriftune.inference.benchmarks.own_items import asked, chosen, folded, solved_examples, written
from thriftune.models.answering import Continuation
from thriftune.models.tokenizer import load_tokenizer
from thriftune.training.held_out import held_out_rows, row_losses

STYLES = ("chat", "alpaca", "text", "prompt_completion", "grammar")
LISTED = ["red", "the sky", "a cat"]
CHOICES = [
    {"id": f"c{n}", "question": f"What colour is a stone on day {n}?", "choices": LISTED, "answer": n % 3}
    for n in range(7)
]
ANSWERS = [{"id": f"a{n}", "question": f"What is two and {n}?", "answer": ["4", "four"]} for n in range(6)]
TASKS = {"choices": ("multiple_choice", CHOICES), "answers_": ("exact_answer", ANSWERS)}
DRAWN = Settings(max_new_tokens=8, temperature=1.0, seed=3, batch=3)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A prepared directory with choices, written answers and the held-out rows."""
    folder = tmp_path_factory.mktemp("own")
    tasks = [
        {"name": name, "file": str(write_jsonl(folder / f"{name}.jsonl", rows)), "format": kind}
        for name, (kind, rows) in TASKS.items()
    ]
    return prepared(folder, *tasks, "held_out")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, chat_rows_file, tiny_tokenizer_dir) -> Path:
    """Prepared rows, of which a third is held out."""
    place = tmp_path_factory.mktemp("rows") / "dataset"
    config = DataConfig(source=str(chat_rows_file), format="chat", max_length=128, validation_share=0.34)
    prepare_data(config, seed=0, tokenizer_dir=tiny_tokenizer_dir, destination=place, data_version="")
    return place


@pytest.mark.parametrize("style", STYLES)
def test_questions_are_the_tokens_of_training_with_bos_once(style, llama_tokenizer):
    item = Item("1", "Two and two?", ("four", "the sky"), 0, ("four",))
    question = asked(item, (), llama_tokenizer, style)
    whole = encode_prompt(item.question, llama_tokenizer, style)
    assert question.prompt == whole[: len(question.prompt)]
    for choice, ids in zip(item.choices, question.choices, strict=True):
        text = llama_tokenizer.decode(question.prompt + ids)
        assert text == llama_tokenizer.decode(whole) + ("" if text[-len(choice) - 1] == "\n" else " ") + choice
        assert (question.prompt + ids).count(llama_tokenizer.bos_token_id) == 1
        assert llama_tokenizer.eos_token_id not in ids


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_choices_are_not_looked_for_in_the_marks_of_a_template(llama_tokenizer):
    """The last d of `d<|im_end|>` was taken for the choice, which then was `d<|im_end`."""
    tokenizer = copy.deepcopy(llama_tokenizer)
    tokenizer.chat_template = CHATML
    item = Item("1", "Which?", ("d", "end", "a", "im_end"), 0, ("d",))
    question = asked(item, (), tokenizer, "chat")
    assert question.text.endswith("<|im_start|>assistant\n")
    said = [tokenizer.decode(question.prompt + ids).removeprefix(question.text) for ids in question.choices]
    assert said == list(item.choices)


def test_examples_come_from_the_same_group_and_are_never_the_item_itself(llama_tokenizer):
    items = [Item(f"{n}", f"Q{n}?", (), None, (f"A{n}",), "even" if n % 2 == 0 else "odd") for n in range(6)]
    assert solved_examples(items[0], items, 2) == (("Q2?", "A2"), ("Q4?", "A4"))
    assert solved_examples(items[4], items, 2) == (("Q0?", "A0"), ("Q2?", "A2"))
    chat = asked(items[0], solved_examples(items[0], items, 1), llama_tokenizer, "chat").text
    assert chat == "<s>[INST] Q2? [/INST] A2</s>[INST] Q0? [/INST]"
    assert asked(items[0], solved_examples(items[0], items, 1), llama_tokenizer, "text").text == "Q2? A2\n\nQ0?"


def test_log_likelihoods_are_those_of_the_model_itself(directory, tiny_model_dir):
    tokenizer, model = load_tokenizer(tiny_model_dir), AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()
    results = in_parts(directory, "choices", tiny_model_dir)
    assert [item.item for item in results.items] == [row["id"] for row in CHOICES]
    for item, row in zip(results.items, CHOICES, strict=True):
        prompt = f"<s>[INST] {row['question']} [/INST]"
        before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        expected = []
        for choice in row["choices"]:
            ids = tokenizer(f"{prompt} {choice}", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
            picked = logits[range(len(ids) - 1), ids[1:]]
            expected.append(float(picked[len(before) - 1 :].sum()))
        assert item.prompt == prompt
        assert item.log_likelihoods == pytest.approx(expected, abs=1e-4)
        by_byte = [value / len(choice) for value, choice in zip(expected, row["choices"], strict=True)]
        assert item.answer == row["choices"][by_byte.index(max(by_byte))]
        assert item.scores["accuracy"] == float(by_byte.index(max(by_byte)) == row["answer"]) == float(item.correct)
        assert item.scores["accuracy_sum"] == float(expected.index(max(expected)) == row["answer"])


def test_long_choices_are_not_disfavoured(llama_tokenizer):
    item = Item("1", "Which?", ("no", "a much longer choice"), 1, ("a much longer choice",))
    result = chosen("t", asked(item, (), llama_tokenizer, "chat"), [-4.0, -20.0])
    assert (result.answer, result.expected, result.scores) == (
        item.choices[1], item.choices[1], {"accuracy": 1.0, "accuracy_sum": 0.0},
    )  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_parts_are_the_whole(task, directory, tiny_model_dir):
    settings = Settings(max_new_tokens=8)
    whole, parts = (in_parts(directory, task, tiny_model_dir, number, settings) for number in (1, 4))
    assert whole.tasks == parts.tasks
    for one, other in zip(whole.items, parts.items, strict=True):
        assert replace(one, log_likelihoods=()) == replace(other, log_likelihoods=())
        assert one.log_likelihoods == pytest.approx(other.log_likelihoods, abs=1e-4)


def test_more_parts_than_items_leave_some_empty(directory, tiny_model_dir):
    assert len(in_parts(directory, "answers_", tiny_model_dir, 9, Settings(max_new_tokens=2)).items) == len(ANSWERS)


def test_draws_depend_on_seed_and_item_alone(directory, tiny_model_dir):
    whole = in_parts(directory, "answers_", tiny_model_dir, 1, DRAWN)
    assert whole.items == in_parts(directory, "answers_", tiny_model_dir, 3, replace(DRAWN, batch=1)).items
    others = in_parts(directory, "answers_", tiny_model_dir, 1, replace(DRAWN, seed=4))
    assert whole.tasks == others.tasks
    assert all(one.answer != other.answer for one, other in zip(whole.items, others.items, strict=True))
    assert len({item.answer for item in whole.items}) == len(ANSWERS)


def test_draws_follow_the_distribution():
    from thriftune.models.drawing import Draws

    scores = torch.tensor([0.0, 1.0, 2.0]).log().expand(6000, 3)
    picked = Draws(range(6000), 0.5)(torch.zeros(6000, 1), scores).argmax(-1)
    shares = torch.bincount(picked, minlength=3) / 6000
    assert shares.tolist() == pytest.approx([0.0, 0.2, 0.8], abs=0.02)  # squared, at temperature 0.5


@pytest.mark.parametrize(
    ("said", "is_right"),
    [(" Four. ", True), ("FOUR", True), ("“4”", True), ("-4", False), ("it is four", False), ("fo ur", False)],
)
def test_written_answers_are_folded(said, is_right, llama_tokenizer):
    item = Item("1", "Two and two?", (), None, ("4", "four"))
    result = written("t", asked(item, (), llama_tokenizer, "chat"), Continuation(said, 3, True))
    assert (result.correct, result.scores) == (is_right, {"exact_match": float(is_right)})
    assert (result.tokens, result.stopped) == (3, True)


def test_an_empty_answer_is_not_one_of_punctuation(llama_tokenizer):
    item = Item("1", "Which sign ends a question?", (), None, ("?",))
    question = asked(item, (), llama_tokenizer, "chat")
    found = [written("t", question, Continuation(said, 1, True)).correct for said in ("", " ? ", "!")]
    assert found == [False, True, False]


def test_folding_keeps_what_is_inside():
    assert folded(" „Straße  X-1“! ") == "strasse x-1"
    assert folded("-5 °C") == "-5 °c"


def test_adapters_measured_together_are_what_they_are_alone(directory, tiny_model_dir, random_adapter):
    adapters = {"one.a": random_adapter(1), "two.b": random_adapter(2)}
    shard, settings = Shard("choices"), Settings()
    both = measuring.measure(directory, shard, tiny_model_dir, CPU, adapters, settings)
    assert list(both) == list(adapters)
    for name, place in adapters.items():
        alone = measuring.measure(directory, shard, tiny_model_dir, CPU, {name: place}, settings)[name]
        assert both[name] == alone
    base = in_parts(directory, "choices", tiny_model_dir)
    assert base.tasks == both["one.a"].tasks == both["two.b"].tasks
    found = [results.items[0].log_likelihoods for results in (base, *both.values())]
    assert len(set(found)) == 3


def test_held_out_rows_have_the_loss_of_validation(directory, dataset, tiny_model_dir):
    settings = Settings(max_new_tokens=4, batch=4, max_rows=10)
    whole = in_parts(directory, "held_out", tiny_model_dir, 1, settings, dataset_dir=dataset)
    parts = in_parts(directory, "held_out", tiny_model_dir, 3, settings, dataset_dir=dataset)
    model, rows = AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval(), held_out_rows(dataset, 10)
    losses = row_losses(model, load_tokenizer(tiny_model_dir), rows, 4)
    assert [item.scores["loss"] for item in whole.items] == pytest.approx(losses.sums, rel=1e-5)
    assert [item.scores["loss"] for item in parts.items] == pytest.approx(losses.sums, rel=1e-5)
    assert [item.tokens for item in whole.items] == list(losses.tokens)
    assert [item.answer for item in whole.items] == [item.answer for item in parts.items]
    assert whole.tasks[0].metrics == {"loss": False}
    first = whole.items[0]
    assert first.prompt.startswith("<s>[INST] What colour is")
    assert first.prompt.endswith("[/INST]")
    assert first.expected.startswith("On day")
    assert first.stopped is not None
    assert [0 < item.written <= 4 for item in whole.items] == [True] * len(losses.tokens), "not the row's own length"


def test_log_likelihoods_that_are_no_numbers_are_refused(directory, tiny_model_dir, tmp_path):
    """The largest of several that are not a number is the first: a quarter of the choices would be right."""
    shutil.copytree(tiny_model_dir, tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.lm_head.weight.data.fill_(float("nan"))
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ModelSourceError, match=r"choices/c\d.*not a number.*float32"):
        in_parts(directory, "choices", tmp_path / "model")


def test_an_item_longer_than_the_positions_is_named(tmp_path, tiny_model_dir):
    long = {"id": "long", "question": "why " * 300, "choices": ["red", "blue"], "answer": 0}
    file = write_jsonl(tmp_path / "long.jsonl", [CHOICES[0], long])
    place = prepared(tmp_path, {"name": "mine", "file": str(file), "format": "multiple_choice"})
    with pytest.raises(DataError, match=r"mine/long: needs \d+ tokens, and the model has 256 positions"):
        in_parts(place, "mine", tiny_model_dir)
    assert len(measuring.measure(place, Shard("mine", 0, 2), tiny_model_dir, CPU, {}, Settings())["base"].items) == 1


def test_an_answer_that_may_be_longer_than_the_positions_is_named(directory, tiny_model_dir):
    with pytest.raises(DataError, match="answers_/a0: needs .* lower benchmarks.max_new_tokens"):
        in_parts(directory, "answers_", tiny_model_dir, 1, Settings(max_new_tokens=250))
