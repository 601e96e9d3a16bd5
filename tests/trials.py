"""Packs of trials of the tiny model, for the tests; run as a program, it trains one as a pod does.

Usage: tests/trials.py WORK, a folder in which pack.json has what `kept` wrote. Writes outcomes.json there.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conftest import run_dict
from flytekit.types.directory import FlyteDirectory
from planning import planned
from pydantic import TypeAdapter

from tasks.trials import train_pack
from thriftune import artifacts
from thriftune.config import DataConfig, RunConfig
from thriftune.data import prepare
from thriftune.sweeps import outcome_json
from thriftune.sweeps.outcomes import Outcome
from thriftune.sweeps.packs import Pack, TrialJob

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


def job_of(number: int, config: RunConfig, model: Path) -> TrialJob:
    """A trial as a sweep gives it."""
    text = config.model_dump_json()
    known = artifacts.key_of(config.model_copy(update={"name": ""}).model_dump_json())
    return TrialJob(number, text, planned(config, model=model), f"trial-{known}", "", "m", "d")


def pack_of(configs: list[RunConfig], model: Path, slots: int = 3) -> Pack:
    """Trials for one node."""
    return Pack(0, slots, [job_of(number, config, model) for number, config in enumerate(configs)])


def keep(given: Given, work: Path) -> None:
    """Write down what this program reads."""
    work.mkdir(parents=True, exist_ok=True)
    (work / "pack.json").write_text(json.dumps(asdict(given)))


def main() -> None:
    work = Path(sys.argv[1])
    given = TypeAdapter(Given).validate_python(json.loads((work / "pack.json").read_text()))
    outcomes = given.train()
    (work / "outcomes.json").write_text(json.dumps([outcome_json.to_json(outcome) for outcome in outcomes]))


if __name__ == "__main__":
    main()
