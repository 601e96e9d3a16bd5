"""Held-out loss is a mean over tokens, and only over those that are trained on."""

import math

import pytest

from thriftune.config import DataConfig
from thriftune.data import prepare, prepared
from thriftune.data.tokenization import IGNORED
from thriftune.hardware import DEVICES
from thriftune.inference.evaluation import evaluate
from thriftune.models.loading import Placement
from thriftune.training import held_out
from thriftune.training.held_out import held_out_loss, held_out_rows, row_losses

_ = IGNORED
ROWS = [
    {"input_ids": [1, 10, 20, 30, 2], "labels": [_, _, 20, 30, 2]},
    {"input_ids": [1, 40, 2], "labels": [_, 40, 2]},
    {"input_ids": [1, 50, 60, 70, 80, 90, 100, 2], "labels": [_, _, _, _, _, _, _, 2]},
]
CPU = Placement(DEVICES["CPU"], "fp32")


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval()


def dataset(rows):
    from datasets import Dataset

    return Dataset.from_list(rows)


def by_hand(model, rows):
    """Negative log-likelihoods of every trained token, one row at a time and without padding."""
    import torch

    losses = []
    for row in rows:
        with torch.inference_mode():
            log_probabilities = model(torch.tensor([row["input_ids"]])).logits[0].double().log_softmax(-1)
        losses += [
            -float(log_probabilities[i - 1, label])
            for i, label in enumerate(row["labels"])
            if i > 0 and label != IGNORED
        ]
    return losses


@pytest.mark.parametrize("batch", [1, 2, 3, 10])
def test_the_loss_is_the_mean_over_tokens_whatever_the_batch(model, llama_tokenizer, batch):
    expected = by_hand(model, ROWS)
    loss, tokens = held_out_loss(model, llama_tokenizer, dataset(ROWS), batch)
    assert tokens == len(expected) == 6
    assert loss == pytest.approx(sum(expected) / len(expected), abs=1e-5)
    row_means = [sum(by_hand(model, [row])) / len(by_hand(model, [row])) for row in ROWS]
    assert abs(loss - sum(row_means) / 3) > 1e-3, "a mean over rows would pass, so this test could not fail"


def test_masked_tokens_carry_no_loss(model, llama_tokenizer):
    unmasked = [{**row, "labels": row["input_ids"]} for row in ROWS]
    masked_loss, masked_tokens = held_out_loss(model, llama_tokenizer, dataset(ROWS), 2)
    loss, tokens = held_out_loss(model, llama_tokenizer, dataset(unmasked), 2)
    assert (masked_tokens, tokens) == (6, 13)
    assert loss != pytest.approx(masked_loss, abs=1e-4)


def test_the_first_token_is_never_predicted(model, llama_tokenizer):
    with_label = [{"input_ids": [1, 40, 2], "labels": [1, 40, 2]}]
    without = [{"input_ids": [1, 40, 2], "labels": [_, 40, 2]}]
    expected = held_out_loss(model, llama_tokenizer, dataset(without), 1)
    assert held_out_loss(model, llama_tokenizer, dataset(with_label), 1) == expected


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory, chat_rows_file, tiny_model_dir):
    directory = tmp_path_factory.mktemp("evaluation") / "dataset"
    config = DataConfig(source=str(chat_rows_file), format="chat", max_length=128, validation_share=0.1)
    prepare.prepare(config, seed=0, tokenizer_dir=tiny_model_dir, destination=directory)
    return directory


def test_a_report_holds_loss_perplexity_and_answers_to_held_out_questions(
    model, tiny_model_dir, dataset_dir, run_config
):
    config = run_config(evaluation={"batch": 2, "max_new_tokens": 3})
    report = evaluate(tiny_model_dir, dataset_dir, config, CPU)
    rows = prepared.load_split(dataset_dir, prepared.VALIDATION).to_list()
    expected = by_hand(model, rows)
    assert report.tokens == len(expected)
    assert report.loss == pytest.approx(sum(expected) / len(expected), abs=1e-4)
    assert report.perplexity == pytest.approx(math.exp(report.loss))
    assert report.prompts == [sample["question"] for sample in prepared.load_samples(dataset_dir)]
    assert len(report.answers) == len(report.prompts) == 4


def test_only_so_many_rows_are_measured_and_own_prompts_are_asked(model, tiny_model_dir, dataset_dir, run_config):
    config = run_config(evaluation={"max_rows": 2, "max_new_tokens": 2, "prompts": ["Why?"]})
    report = evaluate(tiny_model_dir, dataset_dir, config, CPU)
    rows = held_out_rows(dataset_dir, 2).to_list()
    assert report.tokens == len(by_hand(model, rows))
    assert report.prompts == ["Why?"]
    assert len(report.answers) == 1


def test_fewer_held_out_rows_are_the_first_of_more_in_an_order_that_is_not_that_of_the_source(dataset_dir):
    """Sources are often sorted: the first rows of one were all of a kind."""
    rows = prepared.load_split(dataset_dir, prepared.VALIDATION)["input_ids"]
    every = held_out_rows(dataset_dir, 1000)["input_ids"]
    assert held_out_rows(dataset_dir, 2)["input_ids"] == every[:2]
    assert sorted(every) == sorted(rows)
    assert every != rows


@pytest.mark.parametrize("batch", [1, 2])
def test_the_losses_of_rows_are_in_the_order_of_the_rows(model, llama_tokenizer, batch):
    """They are measured by length, and by several ranks."""
    found = row_losses(model, llama_tokenizer, dataset(ROWS), batch)
    assert found.tokens == tuple(len(by_hand(model, [row])) for row in ROWS)
    for row, total in zip(ROWS, found.sums, strict=True):
        assert total == pytest.approx(sum(by_hand(model, [row])), abs=1e-4)


@pytest.mark.parametrize(("room", "at_once"), [(1e9, [3]), (2.5, [2, 1]), (0.1, [1, 1, 1])])
def test_a_whole_model_is_measured_in_bounded_memory(model, llama_tokenizer, monkeypatch, room, at_once):
    """Eight rows of 1024 tokens had outputs of 5 GB in a vocabulary of 152,000, and their loss took two copies."""
    longest, vocabulary, given, lengths = 8, model.config.vocab_size, [], []
    monkeypatch.setattr(held_out, "OUTPUT_BYTES", int(room * 4 * longest * vocabulary))
    hook = model.register_forward_hook(lambda _, __, made: given.append(len(made.logits)))
    rows = held_out.HeldOut(dataset([{**row, "length": len(row["labels"])} for row in ROWS]), llama_tokenizer, 8)
    try:
        loss = rows.loss(model, lambda logits, places: lengths.append((logits.shape[-1], len(places))))
    finally:
        hook.remove()
    assert given == at_once
    assert lengths == [(vocabulary, count) for count in (2, 3, 1)], "shorter rows first, and trained tokens alone"
    assert loss == pytest.approx(sum(by_hand(model, ROWS)) / 6, abs=1e-5)


def test_an_adapter_is_measured_on_its_base_model(tiny_model_dir, dataset_dir, random_adapter, run_config):
    config = run_config(evaluation={"max_new_tokens": 1, "prompts": ["Why?"]})
    plain, adapted = (
        evaluate(tiny_model_dir, dataset_dir, config, CPU, adapter) for adapter in (None, random_adapter(seed=5))
    )
    assert plain.tokens == adapted.tokens
    assert abs(plain.loss - adapted.loss) > 1e-4
