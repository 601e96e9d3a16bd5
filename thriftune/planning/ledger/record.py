"""One finished training as the ledger keeps it: what was planned and what was measured, beside each other."""

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Annotated, Literal, Self, get_args

from pydantic import AwareDatetime, Field, TypeAdapter

import thriftune
from thriftune import artifacts
from thriftune.config import RunConfig
from thriftune.gpu_hours import GpuHours
from thriftune.hardware import Precision
from thriftune.redaction import redacted, unsigned
from thriftune.training_plan import TrainingPlan

Quantity = Literal[
    "allocated_gib", "reserved_gib", "context_gib", "seconds_per_step", "tokens_per_second", "startup_seconds"
]
# Zero, negative and endless values have no ratio to others, and absurd ones none that a number holds: a file with one
# is damaged.
_Measure = Annotated[float, Field(ge=1e-9, le=1e9, allow_inf_nan=False)] | None
_Count = Annotated[int, Field(gt=0)]
# Libraries that decide how fast a step is and what it holds.
_VERSIONS_OF = ("torch", "transformers")
_FORMAT: Literal["thriftune-run-1"] = "thriftune-run-1"
# Sections and keys of a run file that decide how much memory some machines need for it, besides those that a plan has.
_SECTIONS_OF_MEMORY = ("method", "task", "classification", "partial", "prefix", "llama_adapter", "lora")
_KEYS_OF_MEMORY = {
    "data": ("max_length", "packing"),
    "training": ("optimizer", "gradient_checkpointing", "save_dtype"),
    "evaluation": ("batch",),
}


@dataclass(frozen=True)
class Setup:
    """What a run trains on and how: runs that are alike in this are expected to be wrong in the same way.

    Attributes:
        device: Key of the device, as in the plan.
        instance: Node type of the catalogue, or this machine.
        nodes: Number of machines.
        devices_per_node: GPUs of each machine, or worker processes on a CPU.
        strategy: How weights are placed on devices.
        method: What trains.
        family: Kind of model, `model_type` in its config.json.
        precision: Precision of the matrix products.
        versions: Versions of this package and of the libraries that decide time and memory, by name.
    """

    device: str
    instance: str
    nodes: _Count
    devices_per_node: _Count
    strategy: str
    method: str
    family: str
    precision: Precision
    versions: dict[str, str]

    @classmethod
    def of(cls, plan: TrainingPlan, family: str) -> Self:
        """The setup of a plan, with the versions of this process.

        Args:
            plan: The plan.
            family: `model_type` of its model.
        """
        return cls(
            device=plan.device,
            instance=plan.instance,
            nodes=plan.nodes,
            devices_per_node=plan.devices_per_node,
            strategy=plan.strategy,
            method=plan.method,
            family=family,
            precision=plan.precision,
            versions=present_versions(),
        )


@dataclass(frozen=True)
class Quantities:
    """What is planned and measured of a run; None where it is not known.

    Attributes:
        allocated_gib: GiB that torch allocates on the fullest GPU; on a CPU, of the largest process.
        reserved_gib: GiB that torch's allocator takes from that GPU.
        context_gib: GiB of that GPU that are held beside it.
        seconds_per_step: Seconds of an optimizer step, without validation and checkpoints.
        tokens_per_second: Tokens trained on per second of these steps, without padding, over all ranks.
        startup_seconds: Seconds from the start of the task to the first step: fetching, loading, quantizing.
    """

    allocated_gib: _Measure = None
    reserved_gib: _Measure = None
    context_gib: _Measure = None
    seconds_per_step: _Measure = None
    tokens_per_second: _Measure = None
    startup_seconds: _Measure = None

    @classmethod
    def known(cls, **values: float | None) -> Self:
        """The quantities that are positive numbers; the others are not known.

        Args:
            **values: Quantities by name.
        """
        return cls(**{name: value for name, value in values.items() if value and math.isfinite(value) and value > 0})

    def value(self, quantity: Quantity) -> float | None:
        """One of them, by name."""
        found: float | None = getattr(self, quantity)
        return found


@dataclass(frozen=True)
class Trial:
    """What a calibration tried: a few steps of exactly this plan, to see whether it fits.

    Attributes:
        run: What of the run file decides its memory, as `run_key` gives it.
        settings: Settings of the strategy, as in the plan.
        micro_batch: Rows per rank and forward pass.
        accumulation: Forward passes per optimizer step.
        ran_out: Whether memory ran out.
    """

    run: str
    settings: str
    micro_batch: _Count
    accumulation: _Count
    ran_out: bool = False


def run_key(config: RunConfig) -> str:
    """A digest of what decides the memory of a run on given machines: its model, what trains, and how long rows are.

    Args:
        config: The run.
    """
    content = config.model_dump(mode="json")
    model = [redacted(unsigned(config.model.source)), config.model.revision]
    kept = [content.get(name) for name in _SECTIONS_OF_MEMORY]
    kept += [content[section][key] for section, keys in _KEYS_OF_MEMORY.items() for key in keys]
    return artifacts.key_of("memory", json.dumps([model, kept], sort_keys=True))


@dataclass(frozen=True)
class Record:
    """A training that came to its end, or a calibration.

    Attributes:
        when: When it ended.
        run: Name of the run.
        setup: What it trained on and how.
        planned: What its plan said.
        measured: What was measured in its last attempt.
        corrected_by: Factors by which earlier records had corrected what the plan said. Corrections are made of what
            the plan would have said without them, or each would take back the one before.
        trial: What a calibration tried; None for a training.
        hours: GPU-hours of all its attempts; None where they are not known.
        format: Which fields there are.
    """

    when: AwareDatetime
    run: str
    setup: Setup
    planned: Quantities
    measured: Quantities
    corrected_by: Quantities = Quantities()
    trial: Trial | None = None
    hours: GpuHours | None = None
    format: Literal["thriftune-run-1"] = _FORMAT

    def ratio(self, quantity: Quantity) -> float | None:
        """A quantity as measured, divided by what the plan would have said without corrections; None if unknown."""
        planned, measured = self.planned.value(quantity), self.measured.value(quantity)
        if planned is None or measured is None:
            return None
        return measured / planned * (self.corrected_by.value(quantity) or 1.0)

    def as_json(self) -> bytes:
        """The content of its file."""
        return redacted(_ADAPTER.dump_json(self, indent=2).decode()).encode() + b"\n"


_ADAPTER = TypeAdapter(Record)
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)


def from_json(content: bytes) -> Record:
    """The record in a file.

    Args:
        content: What the file holds.

    Raises:
        ValueError: It is not a record.
    """
    return _ADAPTER.validate_json(content)


def now() -> datetime:
    """The present time, for a record."""
    return datetime.now(UTC).replace(microsecond=0)


def present_versions() -> dict[str, str]:
    """Versions of this package and of the libraries that decide time and memory, as installed here."""
    return {"thriftune": thriftune.__version__, **{name: metadata.version(name) for name in _VERSIONS_OF}}
