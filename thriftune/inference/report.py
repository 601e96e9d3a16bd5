"""The metrics of a run: a table for the log, and a page with losses, answers, cost, and where the result is."""

import io
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter

from thriftune import pages
from thriftune.inference.cost import Cost
from thriftune.inference.gate.comparison import Comparison
from thriftune.inference.gate.report import rows_of
from thriftune.inference.gate.verdict import Verdict
from thriftune.inference.gate.view import view_of
from thriftune.inference.side_by_side import side_by_side
from thriftune.inference.timing import Timing
from thriftune.methods import METHODS
from thriftune.models.merging.comparing import MergedWeights
from thriftune.planning.time.report import duration as spent
from thriftune.training import report as training_report
from thriftune.training.charts import HEIGHT, WIDTH, duration
from thriftune.training.held_out import EvalReport
from thriftune.training.live_report import hours_rows
from thriftune.training.memory_watch import MemoryUse
from thriftune.training.result import TrainingResult
from thriftune.urls import WEB

_TABLE_COLUMNS = 110
# What stands where the place of a published result would, if the gate held it back.
NOT_PUBLISHED = "no, the gate held it back"


@dataclass(frozen=True)
class RunMetrics:
    """The metrics of one run.

    Attributes:
        name: Name of the run.
        method: The method.
        training: What was measured before, during and after training.
        outputs: Where each result is, by kind: model, adapter, published (empty where the gate held it back) and
            evidence (what the gate decided by).
        merged: What merging the adapter did to its loss and next tokens; None if nothing was merged.
        saved_model: The saved result measured again on the held-out rows; None if the run does not ask for it.
        cost: What the training's nodes cost; None in metrics of older versions.
        remarks: Sentences that a reader of these numbers must know.
        timing: Planned and measured time of a step; None where one of them is not known.
        comparison: Base and result on the run's benchmarks; None if it has none.
        verdict: What the gate decides by them; None if there is no gate.
        contamination: By benchmark, the share of its items that are in the training rows too.
    """

    name: str
    method: str
    training: TrainingResult
    outputs: dict[str, str]
    merged: MergedWeights | None = None
    saved_model: EvalReport | None = None
    cost: Cost | None = None
    remarks: list[str] = field(default_factory=list)
    timing: Timing | None = None
    comparison: Comparison | None = None
    verdict: Verdict | None = None
    contamination: dict[str, float] = field(default_factory=dict)


def metrics_from_json(content: dict[str, Any]) -> RunMetrics:
    """Read the metrics that a run wrote to metrics.json."""
    return TypeAdapter(RunMetrics).validate_python(content)


def summary_table(metrics: RunMetrics) -> str:
    """The metrics of a run on one screen, as plain text."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    training = metrics.training
    before, after = training.before, training.after
    table = Table(title=f"{metrics.name} ({metrics.method})", title_justify="left")
    table.add_column("")
    table.add_column("before")
    table.add_column("after")
    for row in loss_rows(metrics):
        table.add_row(*row)
    if after.prompts:
        earlier = _shortened(before.answers[0]) if before and before.answers else ""
        table.add_row(Text(_shortened(after.prompts[0])), Text(earlier), Text(_shortened(after.answers[0])))
    if metrics.comparison:
        table.add_section()
        for row in rows_of(metrics.comparison):
            table.add_row(*row)
    table.add_section()
    table.add_row("steps, time", "", f"{training.steps}, {training.seconds:.0f} s")
    if training.kept_step != training.steps:
        table.add_row("weights of step", "", f"{training.kept_step}, the lowest held-out loss")
    table.add_row("tokens per second", "", f"{training.tokens_per_second:.0f}")
    if metrics.timing:
        table.add_row("time of a step", "", f"{spent(metrics.timing.measured)}, {metrics.timing.note}")
    table.add_row("peak memory (predicted)", "", _memory(training.memory))
    if metrics.cost and metrics.cost.price_per_hour:
        table.add_row("cost", "", metrics.cost.short)
    if training.gpu_hours:
        table.add_row(
            "GPU-hours", "", ", ".join(f"{name} {hours}" for name, hours, _ in hours_rows(training.gpu_hours))
        )
    console = Console(file=io.StringIO(), width=_TABLE_COLUMNS, force_terminal=False)
    console.print(table)
    if metrics.verdict:
        console.print(Text(metrics.verdict.sentence), soft_wrap=True)
    for name, place in metrics.outputs.items():
        console.print(Text(f"{name}: {place or NOT_PUBLISHED}"), soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def loss_rows(metrics: RunMetrics) -> Iterator[tuple[str, str, str]]:
    """What was measured on held-out rows, each as its name, the value before training and the one after.

    Args:
        metrics: The metrics.
    """
    training, before, after = metrics.training, metrics.training.before, metrics.training.after
    yield "held-out loss", f"{before.loss:.4f}" if before else "", f"{after.loss:.4f}"
    for name, measure, form in (
        ("perplexity", "perplexity", ".2f"), ("accuracy", "accuracy", ".1%"), ("macro-F1", "macro_f1", ".3f"),
    ):  # fmt: skip
        earlier, later = (getattr(report, measure, None) for report in (before, after))
        if later is not None:
            yield f"held-out {name}", "" if earlier is None else f"{earlier:{form}}", f"{later:{form}}"
    if after.general_loss is not None:
        earlier = None if before is None else before.general_loss
        yield "loss of general answers", "" if earlier is None else f"{earlier:.4f}", f"{after.general_loss:.4f}"
    for saved, trained_as in (
        (training.saved, "trained, before rounding"),
        (metrics.merged, "adapter, before merging"),
    ):
        if saved:
            yield f"{trained_as} ({saved.rows} rows)", f"{saved.base_loss:.4f}", f"{saved.trained_loss:.4f}"
            yield f"as saved, in {saved.how}", "", f"{saved.saved_loss:.4f}"
            if saved.rounded_loss is not None:
                yield "in 16 bits it would be", "", f"{saved.rounded_loss:.4f}"
    if metrics.merged and (found := metrics.merged.next_tokens):
        yield f"next tokens, merged ({found.tokens})", "", f"KL divergence {found.kl:.2g} nats"
        yield "their likeliest agree", "", f"{found.agreement:.1%}"
    if metrics.saved_model:
        yield "the result, loaded again", "", f"{metrics.saved_model.loss:.4f}"


def remarks_of(metrics: RunMetrics) -> Iterator[str]:
    """Sentences that a reader of the metrics must know: what happened while training, and what the result is.

    Args:
        metrics: The metrics.
    """
    training, before, after = metrics.training, metrics.training.before, metrics.training.after
    yield from metrics.remarks
    if before is None:
        yield "The model was not measured before training: the checkpoint that it went on from does not have that."
    elif after.loss >= before.loss:
        yield "The held-out loss did not fall: on rows that it was not trained on, the model is no better than before."
    if training.kept_step != training.steps:
        lowest = "which had the lowest held-out loss"
        yield f"The result has the weights of step {training.kept_step:,} of {training.steps:,}, {lowest}."
    yield from (event.text for event in training_report.events_of(training) if event.kind != "checkpoint")
    yield from () if training.resumed_at else training.remarks  # else the event of resuming has them
    for saved in (training.saved, metrics.merged):
        yield from saved.remarks if saved else ()
    yield from contamination_of(metrics)
    yield from training.memory.remarks


def contamination_of(metrics: RunMetrics) -> Iterator[str]:
    """Sentences about benchmarks of which the model has seen items in training.

    Args:
        metrics: The metrics.
    """
    for task, share in metrics.contamination.items():
        if share:
            yield f"Of the items of {task}, {share:.1%} are in the training rows too: its scores say less."


def page_of(metrics: RunMetrics, fetch: str) -> str:
    """The result of a run as one HTML page: losses, answers, cost, where everything is, and how to get it.

    Args:
        metrics: The metrics.
        fetch: URL by which `pyflyte fetch` finds the model; empty where it is on this disk, or not known.
    """
    training, before, after = metrics.training, metrics.training.before, metrics.training.after
    model, is_adapter = metrics.outputs["model"], metrics.outputs["model"] == metrics.outputs.get("adapter")
    folder = f"{metrics.name}/data" if fetch else model
    answers = {"Before": before.answers} if before and before.answers else {}
    curve = training_report.curve_of(training)
    events = training_report.events_of(training)
    return pages.render(
        "inference/report.html.jinja",
        {"duration": duration, "spent": spent},
        metrics=metrics,
        technique=METHODS[metrics.method].facts.title,
        before=before,
        after=after,
        rows=list(loss_rows(metrics)),
        remarks=list(remarks_of(metrics)),
        loss=training_report.loss_chart(curve, events) if curve.losses or curve.validations else None,
        answers=side_by_side(after.prompts, answers | {"After": after.answers}),
        places=_places(metrics.outputs),
        not_published=NOT_PUBLISHED,
        benchmarks=view_of(metrics.comparison, metrics.verdict) if metrics.comparison else None,
        fetch=shlex.join(["pyflyte", "fetch", "-r", fetch, metrics.name]) if fetch else "",
        folder=folder,
        ask=_asking(folder),
        is_adapter=is_adapter,
        is_classifier=after.accuracy is not None,
        hours=hours_rows(training.gpu_hours) if training.gpu_hours else [],
        width=WIDTH,
        height=HEIGHT,
    )


def _places(outputs: dict[str, str]) -> dict[str, str]:
    """Where each result is, once; what a dry run would have pushed is called so."""
    names = {place: what for what, place in outputs.items()}  # of an adapter that is the result, the second name
    if outputs.get("published") and not outputs["published"].startswith(WEB):
        names[outputs["published"]] = "to be published"
    return {what: place for place, what in names.items()}


def _asking(folder: str) -> str:
    """The command that asks a model directory something."""
    return shlex.join(
        [
            "pyflyte",
            "run",
            "workflows/generate.py",
            "generate",
            "--model_dir",
            folder,
            "--prompts",
            '["What is a GPU?"]',
        ]
    )


def _memory(use: MemoryUse) -> str:
    return f"device {use.device:.1f} GiB ({use.predicted_device:.1f}), host {use.host:.1f} ({use.predicted_host:.1f})"


def _shortened(text: str, longest: int = 300) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."
