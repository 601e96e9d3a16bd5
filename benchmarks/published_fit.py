"""The planner's time of a published run: with a share that its device reaches, and with one fitted to other runs."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from published_rows import ALIKE, DEVICES, IN_PRECISION, LISTED, MIXED, OTHERS, SHARED, Row

if TYPE_CHECKING:
    from thriftune.devices import Device
    from thriftune.planning.choices import Choice
    from thriftune.planning.time.run import Times
    from thriftune.strategies.memory.activations import StepShape

# The planner's assumption for a device of which nothing else is known (thriftune/devices.yaml).
ASSUMED = 0.6
_AT = (0.1, 0.2, 0.35, 0.6, 0.9)  # shares at which steps are timed; between them time is linear in their inverse
_SHARES = tuple(0.1 + 0.02 * number for number in range(41))
ROWS: tuple[Row, ...] = LISTED + OTHERS


@dataclass(frozen=True)
class Predicted:
    """A row and what was predicted of it.

    Attributes:
        row: The row.
        seconds: Of what the row says the seconds of.
        share: What its device was taken to reach.
        others: Number of rows that this was fitted to.
    """

    row: Row
    seconds: float
    share: float
    others: int

    @property
    def ratio(self) -> float:
        """Predicted divided by published."""
        return self.seconds / self.row.seconds

    @property
    def error(self) -> float:
        """How far it is off, as a share of what was published."""
        return abs(self.ratio - 1)


def kind(row: Row) -> str:
    """Devices that reach the same share of their peaks."""
    return ALIKE.get(row.device, row.device)


def seconds(index: int, share: float) -> float:
    """What the planner says of a row's step, or of one row of data where its tokens are not known.

    Args:
        index: Of the row, in all rows.
        share: What its device reaches of its peaks in 16 bits.
    """
    above = next(number for number, at in enumerate(_AT) if at >= share - 1e-9)
    low, high = _AT[max(0, above - 1)], _AT[above]
    if low == high:
        return timed(index, high)
    part = (1 / low - 1 / share) / (1 / low - 1 / high)
    return (1 - part) * timed(index, low) + part * timed(index, high)


@lru_cache(maxsize=512)
def timed(index: int, share: float) -> float:
    """The same, as the planner computes it.

    Args:
        index: Of the row, in all rows.
        share: What its device reaches of its peaks in 16 bits.
    """
    row = ROWS[index]
    times, choice, step_shape = setting(row, share)
    time = times.of(choice, step_shape)
    assert time is not None
    rows = row.micro_batch * row.accumulation * row.gpus * row.nodes
    return time.step.seconds / rows if row.source in SHARED else time.step.seconds


def setting(row: Row, share: float) -> "tuple[Times, Choice, StepShape]":
    """A row as the planner sees it.

    Args:
        row: The row.
        share: What its device reaches of its peaks in 16 bits.
    """
    from thriftune.batching import Batch
    from thriftune.config import LoraConfig, RunConfig
    from thriftune.methods import METHODS
    from thriftune.models.quantization import FourBit
    from thriftune.planning.choices import Choice
    from thriftune.planning.offers import Offer
    from thriftune.planning.time.run import Size, Times
    from thriftune.strategies import STRATEGIES
    from thriftune.strategies.memory.activations import StepShape

    hardware, model = device(row.device, share), architecture(ROWS.index(row))
    ranks = row.gpus * row.nodes
    batch = Batch(row.micro_batch * row.accumulation * ranks, row.micro_batch, row.accumulation, ranks)
    trains_weights = METHODS[row.method].facts.trains_weights
    config = RunConfig.model_validate(
        {
            "name": "published",
            "method": row.method,
            "model": {"source": model.name, "revision": "0" * 40},
            "data": {"source": "rows.jsonl", "format": "text", "max_length": row.tokens, "packing": True},
            "training": {"global_batch": batch.global_batch, "epochs": 1},
        }
    )
    tuned = LoraConfig(rank=64, target_modules=row.targets) if not trains_weights else None
    precision = "bf16" if hardware.has_bf16 else "fp16"
    step_shape = StepShape(
        row.micro_batch,
        row.tokens,
        row.checkpointing,
        precision,
        tuned,
        FourBit(double_quantization=False) if row.method == "qlora" else None,
        masked=row.source in SHARED,
        mixed=row.source in MIXED,
        in_precision=row.source in IN_PRECISION,
    )
    offer = Offer(row.device, hardware, row.gpus, hardware.memory_gib, 512.0, 12 * row.gpus, 0.0, 1.0)
    offer = replace(offer, network_gbps=row.network_gbps)
    strategy = STRATEGIES[row.strategy]
    choice = Choice(offer, row.nodes, row.gpus, strategy, settings(row), "", batch, precision)
    return Times(config, model, Size(0, (row.tokens,), "published")), choice, step_shape


def settings(row: Row) -> str:
    """The settings of a row's strategy, as a plan has them."""
    import deepspeed_configs
    from thriftune.strategies.fsdp.policy import Settings
    from thriftune.strategies.zero.strategy import settings_of

    if "name" in row.options:
        return settings_of(row.options["name"], deepspeed_configs.load(row.options["name"]))
    return replace(Settings(), **row.options).write() if row.strategy == "fsdp" else ""


@lru_cache(maxsize=64)
def architecture(index: int) -> Any:
    """The architecture of a row's model."""
    from thriftune.config import ModelConfig
    from thriftune.models import architecture

    model = ROWS[index].model
    if isinstance(model, str):
        return architecture.of(ModelConfig(source=model))
    return architecture.from_content({key: value for key, value in model.items() if key != "name"}, model["name"])


def device(name: str, share: float) -> "Device":
    """A device that reaches a share of its peaks in 16 bits.

    Args:
        name: In devices.yaml, or of published_rows.
        share: The share.
    """
    from thriftune.devices import DeviceEntry
    from thriftune.hardware import DEVICES as SHIPPED

    if name in DEVICES:
        found = DeviceEntry.of(name, DEVICES[name]).device(name)
        reached = ASSUMED
    else:
        found, reached = SHIPPED[name], shipped_share(name)
    assert found.speed is not None
    faster = share / reached
    speed = replace(found.speed, fp16=faster * found.speed.fp16, bf16=faster * found.speed.bf16)
    return replace(found, speed=speed)


@lru_cache(maxsize=1)
def shipped_shares() -> dict[str, float]:
    """What each device of devices.yaml reaches of its peak in fp16."""
    from importlib import resources

    import yaml

    entries = yaml.safe_load(resources.files("thriftune").joinpath("devices.yaml").read_text())["devices"]
    reached = {name: entry.get("speed", {}).get("reached", {}) for name, entry in entries.items()}
    return {name: shares.get("bf16", shares.get("fp16", ASSUMED)) for name, shares in reached.items()}


def shipped_share(name: str) -> float:
    """What a device of devices.yaml reaches of its peak in 16 bits."""
    return shipped_shares()[name]


def fitted(indices: Sequence[int], scale: float) -> float:
    """The share of a device's peaks with which rows are predicted best; the assumption where there are none.

    Args:
        indices: The rows.
        scale: Rows of data that runs of a shared source had, as full ones.
    """
    if not indices:
        return ASSUMED

    def off(share: float) -> float:
        return sum(abs(math.log(said_of(index, share, scale) / ROWS[index].seconds)) for index in indices)

    return min(_SHARES, key=off)


def said_of(index: int, share: float, scale: float) -> float:
    """What is predicted in place of a row's published seconds.

    Args:
        index: Of the row, in all rows.
        share: What its device reaches of its peaks in 16 bits.
        scale: Rows of data that runs of a shared source had, as full ones.
    """
    return seconds(index, share) * (scale if ROWS[index].source in SHARED else 1.0)


def scale_without(left_out: int) -> float:
    """Full rows of data that the runs of a shared source had, from its rows on devices with other rows.

    Args:
        left_out: The row that is predicted.
    """
    known = {kind(row) for row in ROWS if row.source not in SHARED}
    used = [i for i, row in enumerate(ROWS) if row.source in SHARED and kind(row) in known and i != left_out]
    alone = [i for i, row in enumerate(ROWS) if row.source not in SHARED and i != left_out]
    shares = {name: fitted([i for i in alone if kind(ROWS[i]) == name], 1.0) for name in {kind(ROWS[i]) for i in used}}
    return statistics.median(ROWS[i].seconds / seconds(i, shares[kind(ROWS[i])]) for i in used) if used else 1.0


def predict(index: int) -> Predicted:
    """Predict a row from all others.

    Args:
        index: Of the row.
    """
    row, scale = ROWS[index], scale_without(index)
    others = [i for i, other in enumerate(ROWS) if kind(other) == kind(row) and i != index]
    share = fitted(others, scale)
    return Predicted(row, said_of(index, share, scale), share, len(others))
