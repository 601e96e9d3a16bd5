"""Show HTML pages: as a Flyte deck, and in a local run also as files."""

import json
import logging
from dataclasses import asdict

from flytekit import Deck

from tasks import settings
from thriftune import artifacts
from thriftune.disk import DiskFullError, NotWritableError, writing_to
from thriftune.inference import report as result_report
from thriftune.inference.report import RunMetrics
from thriftune.redaction import redacted
from thriftune.training import report as training_report
from thriftune.training.result import TrainingResult

logger = logging.getLogger("thriftune.tasks.pages")


def show_training(run_name: str, result: TrainingResult) -> None:
    """Show the page of a training: loss, memory and disk over time, and its events.

    Args:
        run_name: Name of the run.
        result: What was measured.
    """
    page = training_report.page_of(run_name, result)
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
