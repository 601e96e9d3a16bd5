"""Pages to look at: as a Flyte Deck, and in a local run as files too."""

import json
import logging
from dataclasses import asdict

from flytekit import Deck

from tasks import settings
from thriftune import training_report
from thriftune.training import TrainingResult

logger = logging.getLogger("thriftune.tasks.pages")


def show_training(run_name: str, result: TrainingResult) -> None:
    """Show how a training went: loss, memory and disk over time, and what happened to it.

    Args:
        run_name: Name of the run.
        result: What was measured.
    """
    losses = list(zip(result.loss_steps, result.losses, strict=True))
    page = training_report.html(run_name, losses, result.resources, result.events)
    show("training", run_name, page, json.dumps(asdict(result), indent=2) + "\n")


def show(what: str, run_name: str, page: str, content: str) -> None:
    """Show a page as a deck of the running task; a local run also finds it on disk.

    Args:
        what: Name of the deck and of the files, as plan.
        run_name: Name of the run.
        page: HTML.
        content: The same as JSON.
    """
    Deck(what.capitalize(), page)
    if not settings.is_local():
        return
    try:
        folder = settings.result_place(run_name, what)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{what}.html").write_text(page, encoding="utf-8", errors="backslashreplace")
        (folder / f"{what}.json").write_text(content, encoding="utf-8", errors="backslashreplace")
    except OSError as error:  # a full disk; what the page is about goes on without it
        logger.warning("The page of the %s is not written: %s", what, error)
        return
    logger.info("To look at: %s", folder / f"{what}.html")
