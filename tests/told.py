"""Lines of trainings that never were, and a plan with round numbers for them."""

from dataclasses import replace

from thriftune.training.lines import Line
from thriftune.training_plan import RunTime, StepTime, TrainingPlan

START = 1_700_000_000.0


def timed(plan: TrainingPlan) -> TrainingPlan:
    """A plan on 4 devices for 3.60 USD an hour, of steps of 2 s after 100 s."""
    time = RunTime(
        StepTime({"matrix products": 2.0}, 0.25), (0.5, 2.0), 1.0, 100.0, "told", "datasheets", 0, {"loading": 100.0}
    )
    return replace(plan, nodes=1, devices_per_node=4, price_per_hour=3.6, currency="USD", time=time)


def told(*lines):
    """Lines at seconds since the start: each a kind, seconds, a step and values."""
    return [Line(START + at, kind, step, values) for at, kind, step, values in lines]


def steps(first, last, begin, each=1.0, **values):
    """Lines of steps, one after the other, the first ending after `begin` seconds."""
    return [
        Line(START + begin + each * number, "step", step,
             {"loss": 3.0 - step / 1000, "tokens": 100.0 * step, "busy_seconds": each * (number + 1), **values})
        for number, step in enumerate(range(first, last + 1))
    ]  # fmt: skip


def attempt(at, resumed=0, devices=4):
    """The lines of an attempt until its first step, which begins 100 s later."""
    return told(
        (at, "began", 0, {"devices": devices}), (at + 40, "loading", 0, {}),
        (at + 100, "training", resumed, {"steps": 100, "planned_gib": 2.0}),
    )  # fmt: skip
