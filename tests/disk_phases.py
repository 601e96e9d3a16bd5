"""Every phase that writes, on a disk that refuses: prints, for each, what it raised, as JSON.

Run as: python disk_phases.py DISK FILL INPUTS, where DISK is a folder, FILL says whether to fill it first, and INPUTS
holds a model, an adapter, a prepared dataset and rows; DISK holds a copy of the dataset.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from thriftune import artifacts
from thriftune.config import DataConfig
from thriftune.data import prepare
from thriftune.data.prepared import TRAIN, load_split
from thriftune.disk import writing_to
from thriftune.inference import answers as answering
from thriftune.models import fetching as models
from thriftune.models import merging


def fill(disk: Path) -> None:
    """Leave no room."""
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while True:
                    file.write(b"0" * size)
            except OSError:
                continue


def saved_by_torch(disk: Path) -> None:
    import torch

    with writing_to(disk / "state.pt", "saving with torch"):
        torch.save({"a": torch.zeros(1_000_000)}, disk / "state.pt")


def phases(disk: Path, inputs: Path) -> dict[str, Callable[[], object]]:
    model, data = inputs / "model", DataConfig(source=str(inputs / "rows.jsonl"), format="chat", max_length=96)
    answers = [answering.Answer("Why?", "base", "Because. " * 10_000)] * 10
    return {
        "fetching the base model": lambda: models.fetch(str(model), "1", disk / "fetched"),
        "copying the tokenizer": lambda: models.copy_tokenizer(model, disk / "tokenizer"),
        "preparing the dataset": lambda: prepare.prepare(data, seed=0, tokenizer_dir=model, destination=disk / "made"),
        "unpacking the prepared dataset": lambda: load_split(disk / "dataset", TRAIN),
        "saving the merged model": lambda: merging.merge(model, inputs / "adapter", disk / "merged"),
        "writing the answers": lambda: _write(disk / "answers.jsonl", answers),
        "writing the answers as Parquet": lambda: _write(disk / "answers.parquet", answers),
        "saving with torch": lambda: saved_by_torch(disk),
        "writing a report": lambda: _report(disk / "report"),
    }


def _write(file: Path, answers: list[answering.Answer]) -> None:
    with writing_to(file, "writing the answers"):
        answering.write_answers(answers, file)


def _report(folder: Path) -> None:
    with artifacts.writing(folder, "writing a report") as directory:
        artifacts.write_text(directory / "report.html", "<p>" * 1000_000)
        artifacts.write_manifest(directory, "report", {})


if __name__ == "__main__":
    place, inputs_dir = Path(sys.argv[1]), Path(sys.argv[3])
    if sys.argv[2] == "fill":
        fill(place)
    found = {}
    for name, phase in phases(place, inputs_dir).items():
        try:
            phase()
            found[name] = ("", "")
        except Exception as error:  # noqa: BLE001 - each is looked at
            found[name] = (type(error).__name__, str(error))
    sys.stdout.write("\n" + json.dumps(found) + "\n")
