"""Push a result to the hub."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from tasks import pages, settings
from tasks.declaring import hub_task
from tasks.summarize import write_metrics
from tasks.transfer import download, transient_errors_retried, upload, uri_of
from thriftune.config import PublishConfig, RunConfig
from thriftune.errors import PublishError, TransientError
from thriftune.inference.model_card import card_of
from thriftune.inference.report import RunMetrics
from thriftune.models import publishing
from thriftune.training import run_record

logger = logging.getLogger("thriftune.tasks.publish")


@task(**hub_task(), enable_deck=True, deck_fields=())
def publish(result: FlyteDirectory, config: RunConfig, to: PublishConfig, metrics: RunMetrics) -> RunMetrics:
    """Push a model or adapter, with a model card made from its manifest. It is the last task of a run.

    A result that the cache serves was trained by another run, whose file, prompts and answers are nobody else's: card
    and manifest say those of this run.

    If the hub refuses, the run fails, since it did not do what its file says; all other results exist by then.

    Args:
        result: A model or adapter directory.
        config: The run.
        to: Its publish section.
        metrics: The metrics of the run.

    Returns:
        The metrics, with the URL of the repository; with `dry_run`, the path of what would be pushed.
    """
    place = settings.result_path(metrics.name, "publish")
    with transient_errors_retried(), _saying_what_is_whole(metrics, place):
        result_dir = download(result)
        record = run_record.read(result_dir).of_run(config, metrics.training)
        card = card_of(result_dir, record, metrics, to.repository)
        url = publishing.publish(result_dir, to, card, record.as_json(), place, settings.hub_token())
    published = uri_of(upload(place)) if to.dry_run else url
    logger.info("published: %s", published)
    complete = replace(metrics, outputs={**metrics.outputs, "published": published})
    write_metrics(complete)
    pages.show_result(complete)
    return complete


@contextmanager
def _saying_what_is_whole(metrics: RunMetrics, staged: Path) -> Iterator[None]:
    """Add to an error of the hub that nothing else is lost, and what to do."""
    places = ", ".join(f"{what}: {place}" for what, place in metrics.outputs.items())
    again = "start the same run again, which takes everything else from the cache and only publishes"
    if settings.is_local():  # a local run would train again
        again = f"what was to be pushed is in {staged}; `hf upload` pushes it"
    advice = f"Nothing but publishing failed ({places}): {again}."
    try:
        yield
    except PublishError as error:
        raise error.advising(advice) from error
    except TransientError as error:
        raise TransientError(f"{error} {advice}") from error
