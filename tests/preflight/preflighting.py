"""Checks runs on the tiny model and the chat rows, and breaks copies of that model."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from conftest import run_dict
from planning import planned
from zero_weights import safetensors_of

import deepspeed_configs
from thriftune import preflight
from thriftune.config import ModelConfig, RunConfig
from thriftune.config.choices import METHODS
from thriftune.models import architecture, fetching
from thriftune.models.tokenizer import fingerprint, load_tokenizer
from thriftune.preflight import Preflight
from thriftune.training_plan import TrainingPlan

_NOTHING: Mapping[str, Any] = {}


@cache
def plan_for(method: str, model: Path) -> TrainingPlan:
    """A plan for this machine; the same for all runs of a method."""
    run = RunConfig.model_validate(run_dict(method, model={"source": str(model)}))
    return planned(run, deepspeed_configs.load("zero1") if METHODS[method].trains_weights else None, model)


@dataclass(frozen=True)
class Checking:
    """Checks a run on a model and rows, with sections of it overridden.

    Attributes:
        model: Directory of the tiny model.
        rows: File of chat rows.
    """

    model: Path
    rows: Path

    def __call__(self, method: str = "full", options: Mapping[str, Any] = _NOTHING, **overrides: Any) -> Preflight:
        """The preflight.

        Args:
            method: full, lora or qlora.
            options: Arguments of `preflight.run`.
            overrides: Sections of the run.
        """
        return preflight.run(self.run(method, **overrides), **{"plan": plan_for(method, self.model), **options})

    def run(self, method: str = "full", **overrides: Any) -> RunConfig:
        """The run."""
        content = run_dict(method, **overrides)
        content["model"] = {"source": str(self.model), **overrides.get("model", {})}
        if not {"source", "sources"} & overrides.get("data", {}).keys():
            content["data"]["source"] = str(self.rows)
        return RunConfig.model_validate(content)


def fetched_tokenizer(config: RunConfig, version: str, token: str | None = None) -> str:
    """Fetch a run's model as its task does, and give the fingerprint of the tokenizer."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "model")
        tokenizer, trust = Path(folder, "tokenizer"), config.model.trust_remote_code
        fetching.fetch(config.model.source, version, place, token, trust_remote_code=trust)
        fetching.copy_tokenizer(place, tokenizer, trust_remote_code=trust)
        return fingerprint(load_tokenizer(tokenizer, trust_remote_code=trust), tokenizer if trust else None)


def codes(result: Preflight, severity: str = "error") -> set[str]:
    """The codes of what was found."""
    return {found.code for found in result.findings if found.severity == severity}


def broken_copy(
    model: Path,
    folder: Path,
    *remove: str,
    write: Mapping[str, str] = _NOTHING,
    change: Mapping[str, Mapping[str, Any]] = _NOTHING,
    fill: bool = False,
) -> Path:
    """A copy of a model directory with something wrong.

    Args:
        model: The directory.
        folder: Where to put the copy.
        remove: Files to leave out.
        write: Texts of files.
        change: Keys of JSON files to change; None removes one.
        fill: Put weights of zeros in place of the model's, as its config.json asks for them.
    """
    directory = folder / "broken-model"
    shutil.copytree(model, directory, ignore=shutil.ignore_patterns(*remove))
    for name, text in write.items():
        (directory / name).write_text(text, encoding="utf-8")
    for name, values in change.items():
        content = json.loads((directory / name).read_text(encoding="utf-8")) | dict(values)
        kept = {key: value for key, value in content.items() if value is not None}
        (directory / name).write_text(json.dumps(kept), encoding="utf-8")
    if fill:
        shapes = architecture.of(ModelConfig(source=str(directory))).shapes
        (directory / "model.safetensors").write_bytes(safetensors_of(shapes))
    return directory
