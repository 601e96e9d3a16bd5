"""Tasks that the harness ships are built from local files with their own functions, and measured."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from local_tasks import CPU

from thriftune.inference.benchmarks import harness_data, harness_scoring, harness_tasks
from thriftune.inference.benchmarks.harness_tasks import Leaf
from thriftune.models.loading import load_model
from thriftune.models.tokenizer import load_tokenizer

ARC = {
    "id": "1",
    "question": "What is red?",
    "choices": {"text": ["a stone", "the sky"], "label": ["A", "B"]},
    "answerKey": "B",
}
HELLASWAG = {
    "ctx_a": "A cat sleeps.", "ctx_b": "it", "activity_label": "Nap", "label": "2",
    "endings": ["wakes.", "flies.", "sings.", "ends."], "ind": 1, "source_id": "s", "split": "val", "split_type": "in",
}  # fmt: skip
WINOGRANDE = {"sentence": "The cat saw the dog and _ ran.", "option1": "the cat", "option2": "the dog", "answer": "2"}
GSM8K = {"question": "What is 2 and 2?", "answer": "Two and two are 4.\n#### 4"}
TRUTHFUL = {
    "question": "Is the sky blue?",
    "mc1_targets": {"choices": ["yes", "no"], "labels": [1, 0]},
    "mc2_targets": {"choices": ["yes", "it is", "no"], "labels": [1, 1, 0]},
}
LAMBADA = {"text": "The cat sleeps in the sun"}
TASKS = {
    "arc_easy": ("arc/arc_easy.yaml", ARC, {"acc", "acc_norm"}, "the sky", 2),
    "hellaswag": ("hellaswag/hellaswag.yaml", HELLASWAG, {"acc", "acc_norm"}, "sings.", 4),
    "winogrande": ("winogrande/default.yaml", WINOGRANDE, {"acc"}, None, 2),
    "truthfulqa_mc2": ("truthfulqa/truthfulqa_mc2.yaml", TRUTHFUL, {"acc"}, "yes", 3),
    "lambada_openai": ("lambada/lambada_openai.yaml", LAMBADA, {"acc"}, " sun", 1),
    "gsm8k": (
        "gsm8k/gsm8k.yaml",
        GSM8K,
        {"exact_match,strict-match", "exact_match,flexible-extract"},
        GSM8K["answer"],
        0,
    ),
}


@pytest.fixture(scope="module")
def model(tiny_model_dir):
    from thriftune.inference.benchmarks.harness_model import MeasuredModel

    tokenizer = load_tokenizer(tiny_model_dir, padding_side="left")
    loaded = load_model(tiny_model_dir, CPU).eval()
    return MeasuredModel(loaded, tokenizer, batch=4, max_new_tokens=6, seed=0, positions=600)


@pytest.mark.parametrize("name", TASKS)
def test_a_shipped_task_is_measured_from_files(name, model, tmp_path):
    path, row, metrics, expected, likelihoods = TASKS[name]
    file = harness_tasks.shipped() / path
    config = harness_tasks.config_of(Leaf(name, file), 0, "f")
    files = {str(config[key]): tmp_path / f"{config[key]}.parquet" for key in harness_data.used_splits(config)}
    for each in files.values():
        pq.write_table(pa.Table.from_pylist([row] * 3), each)
    built = harness_data.built(config, files, Path(tmp_path))
    scored = harness_scoring.measure(model, built, name, "", lambda number: number != 1, None)
    assert [item.item for item in scored.items] == ["000000", "000002"]
    assert set(scored.metrics) == metrics
    for item in scored.items:
        assert set(item.scores) == metrics
        assert len(item.log_likelihoods) == likelihoods
        assert expected is None or item.expected.startswith(expected)
        assert (item.stopped is not None) == (name == "gsm8k")
