"""Show HTML pages: as a Flyte deck, and in a local run also as files."""

import json
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import asdict

from flytekit import Deck, FlyteContextManager, current_context
from flytekit.core.data_persistence import FileAccessProvider

from tasks import settings
from thriftune import artifacts
from thriftune.disk import DiskFullError, NotWritableError, writing_to
from thriftune.inference import report as result_report
from thriftune.inference.report import RunMetrics
from thriftune.redaction import redacted
from thriftune.training import live_report
from thriftune.training.lines import Line
from thriftune.training.result import TrainingResult
from thriftune.training_plan import TrainingPlan

logger = logging.getLogger("thriftune.tasks.pages")


def show_training(
    run_name: str, plan: TrainingPlan, result: TrainingResult, lines: Sequence[Line], ranks: Sequence[Line]
) -> None:
    """Show the page of a finished training: loss, memory and disk over time, and its events.

    Args:
        run_name: Name of the run.
        plan: Its plan.
        result: What was measured.
        lines: What it told of itself while it went on.
        ranks: What other ranks of this node told.
    """
    page = live_report.page_of_result(run_name, plan, result, lines, ranks)
    show("training", run_name, page, json.dumps(asdict(result), indent=2) + "\n")


def show_result(metrics: RunMetrics) -> None:
    """Show the page of a run's result: losses, answers, cost, where everything is, and the command that fetches it.

    Args:
        metrics: The metrics of the run.
    """
    show("result", metrics.name, result_report.page_of(metrics, settings.output_url("model")))


def show_deck(name: str, page: str) -> None:
    """Show a page as a deck of the running task, without secrets.

    Args:
        name: Name of the deck.
        page: HTML.
    """
    Deck(name, redacted(page))


def publish_deck(name: str, page: str) -> None:
    """Show a page as a deck of the running task, in place of the one of that name, and let people see it at once.

    In a worker of a training this does nothing, as only the task's own process can.

    Args:
        name: Name of the deck.
        page: HTML.
    """
    decks = current_context().decks
    decks[:] = [deck for deck in decks if deck.name != name]
    show_deck(name, page)
    if current_context().enable_deck:  # flytekit's map tasks have none, and it warns each time
        try:
            _publish()
        except OSError as error:  # the run continues without the page
            logger.warning("The page %s could not be shown: %s", name, error)


def _publish() -> None:
    """Publish the decks, and remove the file that flytekit leaves each time: in a week they would be gigabytes."""
    context = FlyteContextManager.current_context()
    usual = context.file_access
    with tempfile.TemporaryDirectory(prefix="thriftune-deck-") as folder:
        access = FileAccessProvider(folder, usual.raw_output_prefix, usual.data_config)
        with FlyteContextManager.with_context(context.with_file_access(access)):
            Deck.publish()


def show(what: str, run_name: str, page: str, content: str = "") -> None:
    """Show a page as a deck of the running task, without secrets; a local run also finds it on disk.

    Args:
        what: Name of the deck and of the files, such as plan.
        run_name: Name of the run.
        page: HTML.
        content: The content of the page as JSON; empty where another file has it.
    """
    show_deck(what.capitalize(), page)
    if not settings.is_local():
        return
    try:
        folder = settings.result_path(run_name, what)
        with writing_to(folder, f"writing the page of the {what}"):
            folder.mkdir(parents=True, exist_ok=True)
            artifacts.write_text(folder / f"{what}.html", page)
            if content:
                artifacts.write_text(folder / f"{what}.json", content)
    except (OSError, DiskFullError, NotWritableError) as error:  # the run continues without the page
        logger.warning("The page of the %s was not written: %s", what, error)
        return
    logger.info("See %s", folder / f"{what}.html")
