"""The section of a run file about publishing: where to, and what has to hold before."""

from typing import Literal

from pydantic import Field

from thriftune.config.data import Section

# What metrics of how a model answers are named by, as in answers.stops, and what there is to measure.
ANSWERS, LENGTH = "answers", "length"
BEHAVIOURS = ("stops", "repeats", "empty", "other_language", LENGTH, "refusals", "template_text")


class Improves(Section):
    """A metric that must get better."""

    metric: str = Field(
        description="As task.metric or task/group.metric: general-mini.accuracy, held_out.loss, arc_easy.acc_norm."
    )
    by: float = Field(
        default=0.0,
        description="Least improvement, in the metric's own unit and never negative: 0.02 is two points of accuracy "
        "more, or 0.02 nats a token less.",
    )


class Keeps(Section):
    """A metric that must not get worse."""

    metric: str = Field(
        description="As in `improves`; or how the model answers: answers.stops, answers.repeats, answers.empty, "
        "answers.other_language, answers.length, answers.refusals, answers.template_text."
    )
    within: float = Field(
        default=0.0,
        description="Largest loss that is accepted, in the metric's own unit: 0.02 is two points, up or down as the "
        "metric is better. Of answers.length, which is neither, the largest change both ways, as a share: 0.2 is 20 %. "
        "With 0 only a result passes that is surely no worse at all.",
    )


class GateConfig(Section):
    """What a result must show on its benchmarks, beside the base model, before it is published."""

    improves: tuple[Improves, ...] = Field(default=(), description="Metrics that must get better: {metric, by}.")
    keeps: tuple[Keeps, ...] = Field(default=(), description="Metrics that must not get worse: {metric, within}.")
    confidence: float = Field(default=0.95, gt=0.5, le=0.999, description="Confidence of every decision.")
    on_fail: Literal["hold", "error"] = Field(
        default="hold",
        description="hold: the run succeeds, keeps its result, publishes nothing and says why. error: the run fails.",
    )
    on_undecided: Literal["hold", "publish"] = Field(
        default="hold", description="What to do where there are too few items to tell."
    )


class PublishConfig(Section):
    """Where to push the result."""

    repository: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="Hub repository, as owner/name.")
    private: bool = Field(default=True, description="Create a private repository.")
    dry_run: bool = Field(default=False, description="Only write what would be pushed, to a directory.")
    gate: GateConfig | None = Field(
        default=None, description="What the result must show on its benchmarks; it is pushed anyway when left out."
    )
