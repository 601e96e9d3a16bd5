"""Plan every file of configs/, as `pyflyte run workflows/plan.py plan` does, and write a table into docs/planning.md.

Usage: python scripts/planning_table.py [--check]
    --check  say which rows of the page are not what is planned now, instead of writing it

No network is asked: how many rows a dataset has, and how long they are, is in `ROWS` below, with its source.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from thriftune.config import RunConfig
    from thriftune.planning.time.run import Size
    from thriftune.training_plan import TrainingPlan

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "planning.md"
START, END = "<!-- plans: written by scripts/planning_table.py -->\n", "<!-- end of plans -->"
_HEAD = (
    "| file | machines | method, strategy | s/step | waiting | hours | USD | leans on | verdict |",
    "|---|---|---|---|---|---|---|---|---|",
)
# Lengths of rows around their mean, which is 1: of instructions, some are a few times as long as others. An assumption.
_SPREAD = (0.95, 0.55, 1.4, 0.7, 1.9, 0.45, 0.85, 1.2, 0.6, 1.6, 0.75, 1.05)

_REPEATED = 16


@dataclass(frozen=True)
class Rows:
    """What is known of a dataset.

    Attributes:
        count: Its rows.
        tokens: Their mean length with the template, in tokens of a Llama's tokenizer.
    """

    count: int
    tokens: int


ROWS = {
    # Card of disham993/alpaca-train-validation-test-split: 52,002 rows, 47,764,738 bytes of instruction, input, output
    # and all three in their template, so 540 bytes of the last one; four bytes a token, an assumption.
    "tatsu-lab/alpaca": Rows(52_002, 134),
    # Its card: 2,508 rows. Some sixty tokens, an assumption (configs/english-quotes.yaml).
    "Abirate/english_quotes": Rows(2_508, 60),
    # 755 sentences of the split validation with four corrections each (configs/grammar.yaml); 70 tokens, an assumption.
    "jhu-clsp/jfleg": Rows(3_020, 70),
}
SAID = "rows and their mean length from scripts/planning_table.py"


def files() -> list[Path]:
    """The files of single runs that train, by name."""
    configs = ROOT / "configs"
    others = {*configs.glob("benchmark-*.yaml"), *configs.glob("*-sweep.yaml")}
    return sorted({*configs.glob("*.yaml")} - others)


def config_of(file: Path, **changes: Any) -> "RunConfig":
    """A run file.

    Args:
        file: The file.
        **changes: Sections in place of those in the file.
    """
    from thriftune.config import RunConfig

    return RunConfig.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")) | changes)


def size_of(config: "RunConfig") -> "Size | None":
    """How many rows a run trains on, and how long they are; None where that is not in `ROWS`.

    Args:
        config: The run.
    """
    from thriftune.planning.time.run import Size

    known = ROWS.get(str(config.data.source))
    if known is None:
        return None
    longest, share = config.data.max_length, 1 - config.data.validation_share
    # As often as makes rows of one length lie beside each other where a run groups them by length.
    lengths = _REPEATED * tuple(min(longest, round(known.tokens * each)) for each in _SPREAD)
    if config.data.packing:
        return Size(round(share * known.count * known.tokens / longest), (longest,), SAID)
    return Size(round(share * known.count), lengths, SAID)


def plan_of(config: "RunConfig") -> "TrainingPlan":
    """The plan of a run, with the shipped catalogue.

    Args:
        config: The run.
    """
    from thriftune.planning import catalogue, planner

    return planner.plan(config, catalogue.load(), size=size_of(config))


def row(file: Path) -> str:
    """The row of a file.

    Args:
        file: The run file.
    """
    plan = plan_of(config_of(file))
    return f"| [{file.stem}](../configs/{file.name}) | {' | '.join(_cells(plan))} |"


def _cells(plan: "TrainingPlan") -> Iterator[str]:
    from thriftune.strategies import STRATEGIES

    how = STRATEGIES[plan.strategy].short(plan) or plan.strategy
    yield f"{plan.nodes} x {plan.instance}"
    yield f"{plan.method}, {how}, micro batch {plan.micro_batch}"
    time, price = plan.time, plan.price_per_hour
    if time is None:
        yield from ("-", "-", "not known: no speed of CPUs in the catalogue", "-", "-")
    else:
        yield f"{time.step.seconds:,.3g}"
        yield f"{100 * time.step.waiting:.0f} %" if time.step.waiting else "-"
        if time.steps:
            yield f"{time.hours:,.1f} ({time.hours_low:,.1f} to {time.hours_high:,.1f})"
            yield f"{price * time.hours:,.2f} ({price * time.hours_low:,.2f} to {price * time.hours_high:,.2f})"
        else:
            yield "-"
            yield f"{1000 * price * time.step.seconds / 3600:,.2f} per 1,000 steps"
        yield time.leans_on
    assert plan.memory.verdict is not None
    verdict = plan.memory.verdict
    yield f"{verdict.answer}: at most {verdict.high_gib:.1f} of {verdict.limit_gib:.1f} GiB"


def table(rows: list[str]) -> str:
    """The table with its head.

    Args:
        rows: The rows.
    """
    return "\n".join([*_HEAD, *rows, ""])


def written() -> dict[str, str]:
    """The rows on the page, by the name of the file."""
    lines = PAGE.read_text(encoding="utf-8").split(START)[1].split(END)[0].splitlines()
    return {line.split("](")[0].removeprefix("| ["): line for line in lines if line.startswith("| [")}


def main() -> None:
    """Write the table, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare the page with what is planned now")
    is_checked = parser.parse_args().check
    rows = {file.stem: row(file) for file in files()}
    if is_checked:
        there = written()
        old = [name for name, line in rows.items() if there.get(name) != line]
        sys.exit(f"Not current: {', '.join(old)}. Run python scripts/planning_table.py." if old else 0)
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    PAGE.write_text(f"{before}{START}{table(list(rows.values()))}{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
