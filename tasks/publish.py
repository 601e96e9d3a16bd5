"""Pushing a result to the hub."""

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from tasks import settings
from tasks.declaring import hub_task
from tasks.transfer import download, place_of, transient_errors_retried, upload
from thriftune import publishing
from thriftune.config import PublishConfig


@task(**hub_task())
def publish(result: FlyteDirectory, to: PublishConfig, run_name: str) -> str:
    """Push a model or adapter with a model card made from its manifest.

    Args:
        result: A model or adapter directory.
        to: The publish section of a run.
        run_name: Name of the run.

    Returns:
        The URL of the repository; with `dry_run` where what would be pushed lies.
    """
    place = settings.result_place(run_name, "publish")
    with transient_errors_retried():
        url = publishing.publish(download(result), to, place, settings.hub_token())
    return place_of(upload(place)) if to.dry_run else url
