"""Takes models through every step before training, in a process of its own: huggingface_hub reads HF_ENDPOINT once.

The process knows stores by the variables that it is given, as a pod does.
"""

import hashlib
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from conftest import run_dict
from planning import planned
from safetensors.torch import load_file

from tasks import settings
from thriftune import preflight
from thriftune.config import RunConfig
from thriftune.errors import ThriftuneError, UserError
from thriftune.models import architecture
from thriftune.models import fetching as models
from thriftune.planning import catalogue, planner


def pin(run: RunConfig) -> Any:
    """Whether there is a version, which stays."""
    first, again = (models.version(run.model.source, run.model.revision) for _ in range(2))
    return bool(first) and first == again


def plan(run: RunConfig) -> Any:
    """The shape of the model, and what the run needs."""
    made = planner.plan(run, catalogue.load())
    return [sorted(architecture.of(run.model).shapes.items()), made.strategy, made.parameters, made.memory.devices]


def check(run: RunConfig) -> Any:
    """The version that the preflight finds must be the pinned one; the rows that it counts."""
    result = preflight.run(run, plan=planned(run))
    if wrong := [found for found in result.findings if found.severity == "error"]:
        raise UserError(wrong)
    assert result.facts.model_version == models.version(run.model.source, run.model.revision)
    return result.facts.examples


def fetch(run: RunConfig) -> Any:
    """A digest of every weight, and the tokens of a text."""
    from transformers import AutoTokenizer

    source = run.model.source
    with tempfile.TemporaryDirectory() as folder:
        models.fetch(source, models.version(source), Path(folder, "model"))
        weights = load_file(Path(folder, "model", "model.safetensors"))
        digests = [(name, hashlib.sha256(str(w.tolist()).encode()).hexdigest()) for name, w in sorted(weights.items())]
        return [digests, AutoTokenizer.from_pretrained(Path(folder, "model"))("The moon is red.")["input_ids"]]


STEPS: Mapping[str, Callable[[RunConfig], Any]] = {"pin": pin, "plan": plan, "preflight": check, "fetch": fetch}


def answer(step: Callable[[RunConfig], Any], run: RunConfig) -> dict[str, Any]:
    """What a step gives, or how it refuses."""
    try:
        return {"gives": step(run)}
    except ThriftuneError as error:
        return {"refuses": str(error)}


def main() -> None:
    """Print what each step came to for each model."""
    logging.basicConfig(level=logging.INFO)
    assert settings.PLATFORM  # imported as a task's pod imports it: it says how stores are reached
    rows, sources = json.loads(sys.argv[1])
    data, machine = {"source": rows, "format": "text", "max_length": 32}, {"device": "T4"}
    found = {}
    for name, source in sources.items():
        run = RunConfig.model_validate(run_dict(model={"source": source}, data=data, hardware=machine))
        found[name] = {step: answer(act, run) for step, act in STEPS.items()}
    sys.stdout.write("RESULTS" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
