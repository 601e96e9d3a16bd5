"""The planner's time of a step against speeds that others published, without a fit to the row that is predicted.

    python benchmarks/published_speed.py            (the table, on the screen; pure computing, no GPU, a minute)
    python benchmarks/published_speed.py --write    (into docs/time.md)

What a device reaches of the peaks in its data sheet is the one thing that is fitted. For each row it is fitted anew, to
the other rows of that device; where there are none, it is the planner's assumption for any device. The rows are in
published_rows.py. A source that does not say how many tokens its runs had is given one number for all of them, from its
other rows on devices that also have rows with known tokens.
"""

import argparse
import itertools
import math
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from published_rows import ALIKE, DEVICES, IN_PRECISION, LISTED, MIXED, OTHERS, SHARED, Row

if TYPE_CHECKING:
    from thriftune.devices import Device
    from thriftune.planning.choices import Choice
    from thriftune.planning.time.run import Times
    from thriftune.strategies.memory.activations import StepShape

PAGE = Path(__file__).parent.parent / "docs" / "time.md"
START, END = "<!-- published: written by benchmarks/published_speed.py -->\n", "<!-- end of published -->"
# The planner's assumption for a device of which nothing else is known (thriftune/devices.yaml).
ASSUMED = 0.6
_AT = (0.1, 0.2, 0.35, 0.6, 0.9)  # shares at which steps are timed; between them time is linear in their inverse
_SHARES = tuple(0.1 + 0.02 * number for number in range(41))
_OWN_RUNS = 3
_GOAL = 0.25
ROWS: tuple[Row, ...] = LISTED + OTHERS
_CLEARLY = 1.1  # rows that are closer than this have no order


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
        return sum(abs(math.log(_said(index, share, scale) / ROWS[index].seconds)) for index in indices)

    return min(_SHARES, key=off)


def _said(index: int, share: float, scale: float) -> float:
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
    return Predicted(row, _said(index, share, scale), share, len(others))


def by_ledger(index: int, used: Sequence[int]) -> Predicted:
    """What the planner says of a row, with the shares of devices.yaml, once a ledger has some runs of its device.

    Args:
        index: Of the row.
        used: The runs in the ledger: other rows of the device.
    """
    from thriftune.planning.ledger import correct
    from thriftune.planning.ledger.record import Quantities, Record
    from thriftune.planning.time.run import ERROR

    def said(of: int) -> float:
        return _said(of, shipped_share(ROWS[of].device), scale_without(index))

    records = [
        Record(
            when=datetime(2026, 11, 30, tzinfo=UTC),
            run=f"row-{other}",
            setup=_setup(other),
            planned=Quantities(seconds_per_step=said(other)),
            measured=Quantities(seconds_per_step=ROWS[other].seconds),
        )
        for other in used
    ]
    factor = correct(records, _setup(index), "seconds_per_step", ERROR).factor
    return Predicted(ROWS[index], factor * said(index), shipped_share(ROWS[index].device), len(used))


def _setup(index: int) -> Any:
    """A row's setup, as the ledger's records have it."""
    from thriftune.planning.ledger import Setup

    row = ROWS[index]
    _, choice, _ = setting(row, ASSUMED)
    family, name = architecture(index).family, f"{row.gpus} x {row.device}"
    return Setup(row.device, name, row.nodes, row.gpus, row.strategy, row.method, family, choice.precision, {})


def after_own_runs() -> list[Predicted]:
    """Each row of a device that has at least four, predicted with three others of it in the ledger.

    Of the sets of three among the six rows that come next, the one with the median prediction.
    """
    from thriftune.hardware import DEVICES as SHIPPED

    found = []
    for index, row in enumerate(ROWS):
        others = [i for i, other in enumerate(ROWS) if other.device == row.device and i != index]
        if row.device not in SHIPPED or len(others) < _OWN_RUNS:
            continue
        nearest = sorted(others, key=lambda i: (i - index) % len(ROWS))[: 2 * _OWN_RUNS]
        sets = [by_ledger(index, used) for used in itertools.combinations(nearest, _OWN_RUNS)]
        found.append(sorted(sets, key=lambda one: one.seconds)[len(sets) // 2])
    return found


def in_order(found: Sequence[Predicted]) -> tuple[int, int]:
    """How many pairs of ways to do the same work are predicted in the right order, and how many there are.

    The same work is the same model, method and tokens of one source. Pairs that are closer than 10 % have no order.

    Args:
        found: The predictions.
    """

    def work(one: Predicted) -> tuple[object, ...]:
        return (str(one.row.model), one.row.method, one.row.tokens, one.row.source)

    def of_a_row(one: Predicted) -> tuple[float, float]:
        row = one.row
        rows = 1 if row.source in SHARED else row.micro_batch * row.accumulation * row.gpus * row.nodes
        return row.seconds / rows, one.seconds / rows

    right, pairs = 0, 0
    for first, second in itertools.combinations(found, 2):
        (published, predicted), (other, other_predicted) = of_a_row(first), of_a_row(second)
        if work(first) != work(second) or max(published, other) < _CLEARLY * min(published, other):
            continue
        pairs += 1
        right += (published < other) == (predicted < other_predicted)
    return right, pairs


def median_error(found: Iterable[Predicted]) -> float:
    """The median of how far predictions are off, in percent."""
    return 100 * statistics.median(one.error for one in found)


def page(found: Sequence[Predicted], own: Sequence[Predicted]) -> str:
    """What docs/time.md says of all rows.

    Args:
        found: Every row, predicted from the others.
        own: Rows predicted with runs in the ledger.
    """
    listed, (right, pairs) = found[: len(LISTED)], in_order(found)
    within = sum(one.error <= _GOAL for one in found)
    return "\n".join(
        [
            f"**Of {len(listed)} rows, each predicted without itself, the median is {median_error(listed):.1f} % off;"
            f" of all {len(found)}, {median_error(found):.1f} %, and {within} are within 25 %.**",
            f"Of {pairs} pairs of ways to do the same work, {right} are in the right order.",
            f"With three other runs of the same device in the ledger, the median of {len(own)} rows is"
            f" {median_error(own):.1f} % off.",
            "",
            "| GPUs: model, method, rows x tokens (x passes) | published | predicted | ratio | reached | from rows |",
            "|---|---|---|---|---|---|",
            *(_line(one) for one in listed),
            "",
            "More rows of the same pages:",
            "",
            "| GPUs: model, method, rows x tokens (x passes) | published | predicted | ratio | reached | from rows |",
            "|---|---|---|---|---|---|",
            *(_line(one) for one in found[len(LISTED) :]),
            "",
        ]
    )


def _line(one: Predicted) -> str:
    unit = " s of the run" if one.row.source in SHARED else " s"
    note = f" ({one.row.note})" if one.row.note else ""
    numbers = [f"{one.row.seconds:,.3g}{unit}" if one.row.seconds < 100 else f"{one.row.seconds:,.0f}{unit}"]
    numbers.append(f"{one.seconds:,.3g}" if one.seconds < 100 else f"{one.seconds:,.0f}")
    share = f"{one.share:.2f}" if one.others else f"{one.share:.2f}, assumed"
    return f"| {one.row.name}{note} | {' | '.join(numbers)} | {one.ratio:.2f} | {share} | {one.others} |"


def main() -> None:
    """Print the table, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write it into docs/time.md")
    is_written = parser.parse_args().write
    text = page([predict(index) for index in range(len(ROWS))], after_own_runs())
    if not is_written:
        sys.stdout.write(text)
        return
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    PAGE.write_text(f"{before}{START}{text}{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
