"""Scores of shards are those of lm-evaluation-harness's own command, item by item."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from local_tasks import in_parts, prepared, write_task

PLAIN, SHOWN, WRITTEN = "local_plain", "local_shown", "local_written"
FEW_SHOT = {PLAIN: 0, SHOWN: 2, WRITTEN: 1}
TWO_FILTERS = [
    {"name": name, "filter": [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}]}
    for name, pattern in (("strict", "^(red|blue)$"), ("flexible", "([a-z]+)"))
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks: choices without examples and with, and written answers with two filters."""
    folder = tmp_path_factory.mktemp("tasks")
    write_task(folder, PLAIN)
    write_task(folder, SHOWN, num_fewshot=FEW_SHOT[SHOWN])
    write_task(
        folder,
        WRITTEN,
        output_type="generate_until",
        doc_to_choice=None,
        doc_to_target="said",
        num_fewshot=FEW_SHOT[WRITTEN],
        generation_kwargs={"until": ["\n"], "max_gen_toks": 12, "do_sample": False},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        filter_list=TWO_FILTERS,
    )
    return folder


@pytest.fixture(scope="module")
def by_command(folder: Path, tiny_model_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """The samples that the harness's command logs, by task."""
    command = [
        sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={tiny_model_dir},dtype=float32",
        "--tasks", ",".join(FEW_SHOT), "--include_path", str(folder), "--device", "cpu", "--batch_size", "3",
        "--apply_chat_template", "--log_samples", "--output_path", "out",
    ]  # fmt: skip
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=300)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in FEW_SHOT:
        (file,) = folder.glob(f"out/*/samples_{name}_*.jsonl")
        found[name] = [json.loads(line) for line in file.read_text().splitlines()]
    return found


@pytest.fixture(scope="module")
def directory(folder: Path) -> Path:
    """The same tasks, prepared."""
    tasks = [
        {"name": name, "file": str(folder / f"{name}.yaml"), "few_shot": shots} for name, shots in FEW_SHOT.items()
    ]
    return prepared(folder, *tasks)


@pytest.mark.parametrize(("name", "parts"), [(PLAIN, 1), (PLAIN, 3), (SHOWN, 2), (SHOWN, 3)])
def test_choices_agree(name, parts, by_command, directory, tiny_model_dir):
    results = in_parts(directory, name, tiny_model_dir, parts)
    theirs = sorted(by_command[name], key=lambda sample: sample["doc_id"])
    assert [item.item for item in results.items] == [f"{number:06}" for number in range(7)]
    for item, sample in zip(results.items, theirs, strict=True):
        assert item.prompt == sample["arguments"]["gen_args_0"]["arg_0"]
        assert item.scores == {"acc": sample["acc"], "acc_norm": sample["acc_norm"]}
        assert item.log_likelihoods == pytest.approx(
            [float(response[0]) for response in sample["filtered_resps"]], abs=1e-4
        )
        assert item.correct == (sample["acc"] == 1)
    (facts,) = results.tasks
    assert facts.metrics == {"acc": True, "acc_norm": True}
    assert facts.main == "acc"


@pytest.mark.parametrize("parts", [1, 3])
def test_written_answers_agree_under_each_filter(parts, by_command, directory, tiny_model_dir):
    results = in_parts(directory, WRITTEN, tiny_model_dir, parts)
    for name in ("strict", "flexible"):
        theirs = sorted((s for s in by_command[WRITTEN] if s["filter"] == name), key=lambda sample: sample["doc_id"])
        assert [item.scores[f"exact_match,{name}"] for item in results.items] == [s["exact_match"] for s in theirs]
        assert [item.answer for item in results.items] == [s["resps"][0][0] for s in theirs]
    assert all(item.stopped is not None and item.tokens for item in results.items if item.answer)


def test_examples_differ_between_items_and_not_between_parts(directory, tiny_model_dir):
    whole, parts = (in_parts(directory, SHOWN, tiny_model_dir, number) for number in (1, 3))
    assert [item.prompt for item in whole.items] == [item.prompt for item in parts.items]
    assert [item.scores for item in whole.items] == [item.scores for item in parts.items]
    assert len({item.prompt.rpartition("[INST]")[0] for item in whole.items}) > 1
