"""The trainings that are disturbed, each first made once without disturbance."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from faults.running import Nursery, Outcome, Run
from thriftune.config import DataConfig
from thriftune.data import prepare
from thriftune.data.prepared import TRAIN, load_split

# Rows to train on; steps of a run, and between two of its checkpoints. Four epochs and a bit: the order of rows changes
# between them, and each ends within a global batch.
_ROWS = 55
STEPS = 20
INTERVAL = 3
METHODS = ("qlora", "zero3", "zero2", "fsdp", "ddp")
# Those of full fine-tuning that are no file of ZeRO.
STRATEGY = {"fsdp": "fsdp", "ddp": "ddp"}
# Where scripts/fault_table.py wants to find what every case cost.
RECORD = "FAULT_RECORD"


def run_config(method: str, **sections: Any) -> dict[str, Any]:
    """The run file of a method."""
    is_full = method != "qlora"
    training = {
        "global_batch": 12, "micro_batch": 2, "max_steps": STEPS, "precision": "fp32", "log_every": 1,
        "learning_rate": 1e-2, "save_dtype": "fp32" if is_full else "auto", "gradient_checkpointing": False,
    }  # fmt: skip
    content = {
        "name": "faults",
        "method": "full" if is_full else "qlora",
        "model": {"source": "tiny"},
        "data": {"source": "rows", "format": "chat"},
        "hardware": {"device": "CPU", "devices_per_node": 2 if is_full else 1},
        "training": training,
        "checkpoints": {"every_steps": INTERVAL},
        "evaluation": {"max_new_tokens": 4},
        # Dropout draws random numbers at every step: a run that does not restore them shows it.
        **({} if is_full else {"lora": {"rank": 4, "dropout": 0.1}}),
        **({"zero": {"config": method}} if method.startswith("zero") else {"strategy": STRATEGY.get(method, "single")}),
    }
    return {**content, **{name: {**content.get(name, {}), **values} for name, values in sections.items()}}


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    """Where attempts come from."""
    process = Nursery(tmp_path_factory.mktemp("nursery") / "log")
    yield process
    process.close()


@pytest.fixture(autouse=True)
def _nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test that fails leaves running would slow those after it down."""
    yield
    if "nursery" in request.fixturenames:
        request.getfixturevalue("nursery").end_attempts()


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, chat_rows_file: Path) -> Path:
    """The tiny model's rows, prepared."""
    directory = tmp_path_factory.mktemp("faults") / "dataset"
    data = DataConfig(source=str(chat_rows_file), format="chat", max_length=64, validation_share=5 / 60)
    # 55 rows are left, which neither ranks nor a micro batch of two divides: the last step of an epoch has fewer.
    prepare.prepare(data, seed=0, tokenizer_dir=tiny_model_dir, destination=directory)
    assert len(load_split(directory, TRAIN)) == _ROWS
    return directory


@pytest.fixture(scope="session")
def new_run(
    nursery: Nursery, dataset: Path, tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Run]:
    """Make a run that has not begun: `new_run("zero3", training={"max_steps": 60})`."""

    def make(method: str, *, store: str = "", **sections: Any) -> Run:
        base = {"config": run_config(method, **sections), "model": str(tiny_model_dir), "dataset": str(dataset)}
        return Run(nursery, tmp_path_factory.mktemp(method), base, store)

    return make


@dataclass(frozen=True)
class Undisturbed:
    """A run that nobody disturbed: its outcome, and the checksum of its weights."""

    outcome: Outcome
    weights: str
    run: Run


@pytest.fixture(scope="session")
def undisturbed(new_run: Callable[..., Run]) -> Callable[..., Undisturbed]:
    """The run that a disturbed one is compared with; made once."""
    made: dict[str, Undisturbed] = {}

    def of(method: str, **sections: Any) -> Undisturbed:
        key = json.dumps([method, sections])
        if key not in made:
            run = new_run(method, **sections)
            outcome = run.finish(pause=0.0)
            assert outcome.begins == [0]
            assert len(outcome.losses) == run.base["config"]["training"]["max_steps"]
            assert outcome.losses[outcome.last_step] < outcome.losses[1], "the run must train, or equality says nothing"
            made[key] = Undisturbed(outcome, run.weights, run)
        return made[key]

    return of


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Note what a case cost: `record(case, method, interval=3, faults=1, steps_lost=2, seconds=1.5, result="same")`."""
    noted: list[dict[str, Any]] = []

    def note(case: str, method: str, **values: Any) -> None:
        noted.append({"case": case, "method": method, **values, "test": request.node.nodeid})

    yield note
    file = os.environ.get(RECORD)
    if file and noted:
        with Path(file).open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(line) + "\n" for line in noted)
