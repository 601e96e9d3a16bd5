"""Writes tasks of lm-evaluation-harness with data of their own, and measures benchmarks on the tiny model."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from thriftune.config.benchmarks import BenchmarksConfig
from thriftune.hardware import DEVICES
from thriftune.inference.benchmarks import measuring, preparing
from thriftune.inference.benchmarks.measuring import Settings, Shard
from thriftune.inference.benchmarks.results import Results
from thriftune.models.loading import Placement

CPU = Placement(DEVICES["CPU"], "fp32")
USUAL = Settings()
COLOURS = ("red", "blue", "green", "gold", "grey", "pink")


def rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Questions with three choices of different lengths; no two are alike."""
    made = []
    for number in range(start, start + count):
        first = number % len(COLOURS)
        choices = [COLOURS[first], f"{COLOURS[first - 1]} and {COLOURS[first - 2]}", COLOURS[first - 3]]
        question = f"What colour is the sea on day {number}?"
        made.append({"question": question, "choices": choices, "answer": number % 3, "said": choices[number % 3]})
    return made


def write_jsonl(file: Path, lines: list[Any]) -> Path:
    """One JSON value a line; a text is a line as it is."""
    file.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return file


def write_task(folder: Path, name: str, count: int = 7, **changes: Any) -> Path:
    """A task of the harness in a YAML file, with its rows beside it. None leaves a key out."""
    write_jsonl(folder / "train.jsonl", rows(5, start=100))
    write_jsonl(folder / "test.jsonl", rows(count))
    content = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"train": "train.jsonl", "test": "test.jsonl"}},
        "output_type": "multiple_choice",
        "training_split": "train",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
        **changes,
    }
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return file


def section(*tasks: Mapping[str, Any] | str, **settings: Any) -> BenchmarksConfig:
    """A section `benchmarks`."""
    return BenchmarksConfig.model_validate({"tasks": list(tasks), **settings})


def prepared(folder: Path, *tasks: Mapping[str, Any] | str, **options: Any) -> Path:
    """A prepared directory of benchmarks."""
    return preparing.prepare(section(*tasks), folder / "prepared", **options).directory


def in_parts(
    directory: Path, task: str, model: Path, parts: int = 1, settings: Settings = USUAL, **options: Any
) -> Results:
    """What a model without adapters has in a benchmark that is measured in parts."""
    found = [
        measuring.measure(directory, Shard(task, part, parts), model, CPU, {}, settings, **options)["base"]
        for part in range(parts)
    ]
    return Results.joined(found)
