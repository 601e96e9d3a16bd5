"""What is chosen for the files of configs/ with their hardware left out, and what was before plans knew time.

Usage: python scripts/planning_choices.py
    Writes a table into docs/planning.md. What was chosen before, at the lowest price per hour, is recorded in `BEFORE`;
    what that would cost is planned now, with the same time model.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

sys.path.insert(0, str(Path(__file__).parent))

import planning_table as table

if TYPE_CHECKING:
    from thriftune.config import RunConfig
    from thriftune.training_plan import TrainingPlan

START, END = "<!-- choices: written by scripts/planning_choices.py -->\n", "<!-- end of choices -->"
_MUCH = 0.2
_HEAD = (
    "| run | before: USD/h, hours, USD of the run | now: USD/h, hours, USD of the run | why |",
    "|---|---|---|---|",
)


@dataclass(frozen=True)
class Before:
    """A choice that was made.

    Attributes:
        nodes: Number of nodes.
        instance: Their type.
        strategy: The strategy.
        zero: The DeepSpeed configuration; empty for other strategies.
        micro_batch: Rows of a pass.
    """

    nodes: int
    instance: str
    strategy: str
    zero: str
    micro_batch: int


# As the planner of d4e93eb chose, with `hardware: {}`, `strategy: auto` and no training.micro_batch.
BEFORE = {
    "english-quotes": Before(1, "g4dn.xlarge", "single", "", 16),
    "grammar": Before(1, "g6.xlarge", "single", "", 16),
    "llama2-13b-full": Before(2, "g6.16xlarge", "zero", "zero3_offload", 16),
    "llama2-13b-qlora": Before(1, "g4dn.xlarge", "single", "", 4),
    "llama2-70b-qlora": Before(1, "g6.8xlarge", "zero", "zero3_offload", 16),
    "llama2-70b-qlora-layers": Before(1, "g6.12xlarge", "layers", "", 4),
    "llama2-7b-adapter": Before(1, "g6.xlarge", "single", "", 16),
    "llama2-7b-full": Before(1, "g6.16xlarge", "zero", "zero2_offload", 16),
    "llama2-7b-prefix": Before(1, "g6.xlarge", "single", "", 16),
    "llama2-7b-qlora": Before(1, "g4dn.xlarge", "single", "", 8),
    "llama2-7b-qlora-ddp": Before(1, "g4dn.xlarge", "single", "", 8),
    "llama2-7b-top-layers": Before(1, "g6.4xlarge", "zero", "zero2_offload", 16),
    "mistral-7b-lora-fsdp": Before(1, "g4dn.2xlarge", "zero", "zero3_offload", 16),
    "mistral-7b-qlora": Before(1, "g4dn.xlarge", "single", "", 8),
    "mixtral-8x7b-qlora": Before(1, "g6.48xlarge", "layers", "", 16),
}


def free(name: str, **changes: Any) -> "RunConfig":
    """A run file with its hardware, strategy and micro batch left to the planner.

    Args:
        name: Of the file.
        **changes: Keys in place of those.
    """
    from thriftune.config import RunConfig

    content = yaml.safe_load((table.ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8"))
    for key in ("hardware", "strategy", "zero", "fsdp"):
        content.pop(key, None)
    content["training"].pop("micro_batch", None)
    micro_batch = changes.pop("micro_batch", None)
    if micro_batch:
        content["training"]["micro_batch"] = micro_batch
    return RunConfig.model_validate(content | changes)


def as_before(name: str) -> "TrainingPlan | None":
    """What was chosen before, planned now; None where it does not fit for sure any more.

    Args:
        name: Of the file.
    """
    from thriftune.errors import ConfigError

    was = BEFORE[name]
    hardware = {"instance": was.instance, "nodes": was.nodes}
    zero = {"zero": {"config": was.zero}} if was.zero else {}
    try:
        found = table.plan_of(free(name, hardware=hardware, strategy=was.strategy, micro_batch=was.micro_batch, **zero))
    except ConfigError:
        return None
    assert found.memory.verdict is not None
    return found if found.memory.verdict.answer == "fits" else None


def row(name: str) -> str | None:
    """The row of a run; None if the choice is what it was.

    Args:
        name: Of the file.
    """
    was, now = BEFORE[name], table.plan_of(free(name))
    zero = _how(now)
    if (now.nodes, now.instance, now.strategy, zero, now.micro_batch) == _key(was):
        return None
    then = as_before(name)
    before = f"{was.nodes} x {was.instance}, {was.zero or was.strategy}, micro batch {was.micro_batch}"
    after = f"{now.nodes} x {now.instance}, {zero or now.strategy}, micro batch {now.micro_batch}"
    price = f": {then.price_per_hour:.2f}, {_run(then)}" if then else ": no longer fits for sure"
    return f"| {name} | {before}{price} | {after}: {now.price_per_hour:.2f}, {_run(now)} | {_why(then, now)} |"


def _why(then: "TrainingPlan | None", now: "TrainingPlan") -> str:
    """Why it is another choice now, in one sentence."""
    from thriftune.planning.time.step import HOST, HOST_UPDATE

    if then is None:
        return "what was chosen fits only if it needs less than it may need, so a plan of what fits for sure is made"
    assert then.time is not None
    assert now.time is not None
    step, price = then.time.step, now.price_per_hour / then.price_per_hour
    times = f"{price:.2g} times the price per hour and {then.time.hours / now.time.hours:.2g} times as fast"
    moved = sum(step.parts.get(part, 0.0) for part in (HOST, HOST_UPDATE)) / step.seconds
    if step.waiting:
        return f"{times}: {100 * step.waiting:.0f} % of the GPUs waited for other layers"
    if moved > _MUCH:
        return f"{times}: {100 * moved:.0f} % of a step was spent on offloading"
    return f"{times}: it was cheap per hour because its GPUs are few or slow"


def _key(was: Before) -> tuple[object, ...]:
    return was.nodes, was.instance, was.strategy, was.zero, was.micro_batch


def _how(plan: "TrainingPlan") -> str:
    from thriftune.strategies import STRATEGIES

    return STRATEGIES[plan.strategy].short(plan)


def _run(plan: "TrainingPlan") -> str:
    assert plan.time is not None
    return f"{plan.time.hours:,.1f} h, {plan.price_per_hour * plan.time.hours:,.2f}"


def written() -> str:
    """The table on the page."""
    return table.PAGE.read_text(encoding="utf-8").split(START)[1].split(END)[0]


def main() -> None:
    """Write the table."""
    rows = [line for name in BEFORE if (line := row(name))]
    before, rest = table.PAGE.read_text(encoding="utf-8").split(START)
    text = "\n".join([*_HEAD, *rows, ""])
    table.PAGE.write_text(f"{before}{START}{text}{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
