"""The metrics of a run, and a table of them for the log."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from thriftune.models.saving import SavedWeights
from thriftune.training.held_out import EvalReport
from thriftune.training.memory_watch import MemoryUse
from thriftune.training.result import TrainingResult

_TABLE_COLUMNS = 110


@dataclass(frozen=True)
class RunMetrics:
    """The metrics of one run.

    Attributes:
        name: Name of the run.
        method: The method.
        training: What was measured before, during and after training.
        outputs: Where each result is, by kind (model, adapter, published).
        merged: What merging the adapter did to its loss; None if nothing was merged.
        saved_model: The saved result measured again on the held-out rows; None if the run does not ask for it.
    """

    name: str
    method: str
    training: TrainingResult
    outputs: dict[str, str]
    merged: SavedWeights | None = None
    saved_model: EvalReport | None = None


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
    table.add_row("held-out loss", f"{before.loss:.4f}" if before else "", f"{after.loss:.4f}")
    table.add_row("held-out perplexity", f"{before.perplexity:.2f}" if before else "", f"{after.perplexity:.2f}")
    for saved, trained_as in (
        (training.saved, "trained, before rounding"),
        (metrics.merged, "adapter, before merging"),
    ):
        for row in _rows_of(saved, trained_as) if saved else ():
            table.add_row(*row)
    if metrics.saved_model:
        table.add_row("the result, loaded again", "", f"{metrics.saved_model.loss:.4f}")
    if after.prompts:
        earlier = _shortened(before.answers[0]) if before and before.answers else ""
        table.add_row(Text(_shortened(after.prompts[0])), Text(earlier), Text(_shortened(after.answers[0])))
    table.add_section()
    table.add_row("steps, time", "", f"{training.steps}, {training.seconds:.0f} s")
    if training.kept_step != training.steps:
        table.add_row("weights of step", "", f"{training.kept_step}, the lowest held-out loss")
    table.add_row("tokens per second", "", f"{training.tokens_per_second:.0f}")
    table.add_row("peak memory (predicted)", "", _memory(training.memory))
    console = Console(file=io.StringIO(), width=_TABLE_COLUMNS, force_terminal=False)
    console.print(table)
    for name, place in metrics.outputs.items():
        console.print(Text(f"{name}: {place}"), soft_wrap=True)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def _rows_of(saved: SavedWeights, trained_as: str) -> Iterator[tuple[str, str, str]]:
    """Rows of the table that show what saving did to the loss."""
    yield f"{trained_as} ({saved.rows} rows)", f"{saved.base_loss:.4f}", f"{saved.trained_loss:.4f}"
    yield f"as saved, in {saved.how}", "", f"{saved.saved_loss:.4f}"
    if saved.rounded_loss is not None:
        yield "in 16 bits it would be", "", f"{saved.rounded_loss:.4f}"


def _memory(use: MemoryUse) -> str:
    return f"device {use.device:.1f} GiB ({use.predicted_device:.1f}), host {use.host:.1f} ({use.predicted_host:.1f})"


def _shortened(text: str, longest: int = 300) -> str:
    return text if len(text) <= longest else text[: longest - 3] + "..."
