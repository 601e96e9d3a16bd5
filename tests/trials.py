"""Packs of trials of the tiny model, for the tests; run as a program, it trains one as a pod does.

Usage: tests/trials.py WORK local, or WORK EXECUTION ATTEMPT BUCKET. WORK is a folder in which pack.json has what `keep`
wrote; outcomes.json is written there. The first is a local run, which ends as `pyflyte run` does when it is
interrupted; the second is what a pod of the task does once its inputs are read.
"""

import json
import os
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conftest import run_dict
from flytekit.bin.entrypoint import setup_execution
from flytekit.types.directory import FlyteDirectory
from planning import planned
from pydantic import TypeAdapter

from tasks.trial_child import Start
from tasks.trials import train_pack
from thriftune import artifacts
from thriftune.config import DataConfig, RunConfig
from thriftune.data import prepare
from thriftune.sweeps import outcome_json
from thriftune.sweeps.outcomes import Outcome
from thriftune.sweeps.packs import Pack, TrialJob
from thriftune.sweeps.words import Said, Words

STEPS = 8


@dataclass(frozen=True)
class Given:
    """A pack, and where its model and dataset are."""

    pack: Pack
    model: str
    dataset: str
    halving: str = ""

    def train(self, earlier: tuple[Outcome, ...] = ()) -> list[Outcome]:
        """Train it in this process and its children."""
        models, datasets = {"m": FlyteDirectory(self.model)}, {"d": FlyteDirectory(self.dataset)}
        return train_pack(
            cache_key="pack", pack=self.pack, halving=self.halving, earlier=list(earlier), models=models,
            datasets=datasets,
        )  # fmt: skip


def dataset_of(folder: Path, model: Path, rows: Path) -> Path:
    """The prepared rows of all trials."""
    data = DataConfig(source=str(rows), format="chat", max_length=64)
    prepare.prepare(data, seed=0, tokenizer_dir=model, destination=folder / "dataset")
    return folder / "dataset"


def config_of(number: int, method: str = "qlora", **overrides: Any) -> RunConfig:
    """The run of a trial."""
    training = {"global_batch": 4, "micro_batch": 4, "max_steps": STEPS, "log_every": 1, "precision": "fp32"}
    wanted = {
        "training": {**training, "gradient_checkpointing": False, "learning_rate": 1e-3 * (number + 1)},
        "lora": {"rank": 4, "dropout": 0.0},
        "checkpoints": {"every_steps": 2},
        "evaluation": {"max_new_tokens": 2, "every_steps": 2},
    }
    if method == "full":
        del wanted["lora"]
    content = run_dict(method, **wanted) | {"name": f"sweep-t{number}"}
    for section, values in overrides.items():
        content[section] = {**content.get(section, {}), **values} if isinstance(values, dict) else values
    return RunConfig.model_validate(content)


def job_of(number: int, config: RunConfig, model: Path, index: str = "") -> TrialJob:
    """A trial as a sweep gives it, with the URL of an index of results in a pod."""
    text = config.model_dump_json()
    known = artifacts.key_of(config.model_copy(update={"name": ""}).model_dump_json())
    record = f"{index}/trial-{known}/0.json" if index else ""
    return TrialJob(number, text, planned(config, model=model), f"trial-{known}-0", record, "m", "d")


def pack_of(configs: list[RunConfig], model: Path, slots: int = 3, index: str = "") -> Pack:
    """Trials for one node."""
    return Pack(0, slots, [job_of(number, config, model, index) for number, config in enumerate(configs)])


def keep(given: Given, work: Path) -> None:
    """Write down what this program reads."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "pack.json").write_text(json.dumps(asdict(given)))


def in_pod(given: Given, bucket: str, execution: str, attempt: str) -> list[Outcome]:
    """Train a pack in a context as flytekit makes one in a pod."""
    ids = {"PROJECT": "p", "DOMAIN": "d", "NAME": "train_pack", "VERSION": "1"}
    os.environ |= {
        "FLYTE_ATTEMPT_NUMBER": attempt,
        **{f"FLYTE_INTERNAL_TASK_{key}": value for key, value in ids.items()},
    }
    os.environ |= {f"FLYTE_INTERNAL_EXECUTION_{key}": value for key, value in ids.items() if len(value) == 1}
    os.environ["FLYTE_INTERNAL_EXECUTION_ID"] = execution
    raw = f"{bucket}/data/ab/{execution}-n3-0-dn2-{attempt}"
    with setup_execution(raw, f"{bucket}/metadata/p-d-{execution}/n3/data/0"):
        inputs = {"cache_key": "pack", "pack": given.pack, "halving": given.halving, "earlier": []}
        models, datasets = {"m": FlyteDirectory(given.model)}, {"d": FlyteDirectory(given.dataset)}
        made: list[Outcome] = train_pack.execute(**inputs, models=models, datasets=datasets)
        return made


def leave_temporary_files(start: Start) -> None:
    """In place of a trial's training: write a temporary file, and say where."""
    place = Path(tempfile.mkdtemp())
    (place / "weights").write_bytes(b"x")
    Words(Path(start.words)).say(Said(Outcome(start.job.number, "failed", error=str(place))))


def main() -> None:
    work, how, *rest = sys.argv[1:]
    given = TypeAdapter(Given).validate_python(json.loads((Path(work) / "pack.json").read_text()))
    sys.argv[0] = "pyflyte"
    outcomes = given.train() if how == "local" else in_pod(given, rest[1], how, rest[0])
    (Path(work) / "outcomes.json").write_text(json.dumps([outcome_json.to_json(outcome) for outcome in outcomes]))


if __name__ == "__main__":
    main()
