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
from thriftune.errors import GateError, Problem, PublishError, TransientError
from thriftune.inference.gate import evidence
from thriftune.inference.gate.verdict import Verdict
from thriftune.inference.model_card import card_of
from thriftune.inference.parity import saved
from thriftune.inference.report import RunMetrics
from thriftune.models import publishing
from thriftune.training import run_record

logger = logging.getLogger("thriftune.tasks.publish")


@task(**hub_task(), enable_deck=True, deck_fields=())
def publish(result: FlyteDirectory, config: RunConfig, to: PublishConfig, metrics: RunMetrics) -> RunMetrics:
    """Push a model or adapter, with a model card made from its manifest. It is the last task of a run.

    A result that the cache serves was trained by another run, whose file, prompts and answers are nobody else's: card
    and manifest say those of this run.

    Where the run has a gate that the result does not pass, nothing is pushed: the card and what the gate decided by are
    kept with the run's results, and the run ends well, unless its file asks for an error.

    If the hub refuses, the run fails, since it did not do what its file says; all other results exist by then.

    Args:
        result: A model or adapter directory.
        config: The run.
        to: Its publish section.
        metrics: The metrics of the run.

    Returns:
        The metrics, with the URL of the repository; with `dry_run`, the path of what would be pushed; empty where the
        gate held it back.

    Raises:
        GateError: The gate fails, and the run file asks for an error then.
        ResultParityError: The result is not what was trained.
    """
    is_held = to.gate is not None and not _decided(metrics).publishes(to.gate)
    metrics = replace(metrics, remarks=[*metrics.remarks, *_said_of(metrics.verdict, is_held=is_held)])
    place = settings.result_path(metrics.name, "evidence" if is_held else "publish")
    with transient_errors_retried(), _saying_what_is_whole(metrics, place):
        result_dir = download(result)
        saved.require_same(result_dir, _places(metrics))
        record = run_record.read(result_dir).of_run(config, metrics.training)
        card, beside = card_of(result_dir, record, metrics, to.repository), _evidence(metrics, to)
        if is_held:
            publishing.write_evidence(card, beside, record.as_json(), place)
            outputs = {"published": "", "evidence": uri_of(upload(place))}
        else:
            token = settings.hub_token()
            url = publishing.publish(result_dir, to, card, record.as_json(), place, token, beside)
            outputs = {"published": uri_of(upload(place)) if to.dry_run else url}
    logger.info("published: %s", outputs["published"] or metrics.remarks[-1])
    complete = replace(metrics, outputs={**metrics.outputs, **outputs})
    write_metrics(complete)
    pages.show_result(complete)
    _require_passed(complete, to)
    return complete


def _decided(metrics: RunMetrics) -> Verdict:
    """The verdict of a run with a gate. Without one nothing may be pushed: that is a mistake of ours.

    Raises:
        RuntimeError: The gate was not asked.
    """
    if metrics.verdict is None:
        raise RuntimeError("The run has a gate, but nothing was decided: its benchmarks were not compared.")
    return metrics.verdict


def _said_of(verdict: Verdict | None, *, is_held: bool) -> Iterator[str]:
    """Why nothing was pushed, and what would push it; or that it was pushed though nobody can tell."""
    if is_held and verdict:
        changing = "publish.gate.on_undecided: publish" if verdict.outcome == "undecided" else "another gate"
        yield f"Nothing is published. {verdict.sentence} To publish the result as it is, run again with {changing}."
    elif verdict and verdict.outcome == "undecided":
        yield f"Published all the same, as the run file asks (publish.gate.on_undecided). {verdict.sentence}"


def _evidence(metrics: RunMetrics, to: PublishConfig) -> dict[str, str]:
    """The files that show how good the result is."""
    if metrics.comparison is None:
        return {}
    return {evidence.FILE: evidence.text_of(metrics.comparison, metrics.verdict, to.gate)}


def _require_passed(metrics: RunMetrics, to: PublishConfig) -> None:
    """Fail where the gate does and the file asks for it; all results exist by then.

    Raises:
        GateError: The gate fails.
    """
    if to.gate is None or to.gate.on_fail == "hold" or _decided(metrics).outcome != "fails":
        return
    remedy = f"Everything is kept ({_places(metrics)}). With on_fail: hold the run succeeds, and publishes nothing."
    raise GateError(
        [
            Problem(f"publish.gate.{ruling.rule}", ruling.metric, ruling.reason, remedy)
            for ruling in _decided(metrics).deciding
        ]
    )


def _places(metrics: RunMetrics) -> str:
    return ", ".join(f"{what}: {place}" for what, place in metrics.outputs.items() if place)


@contextmanager
def _saying_what_is_whole(metrics: RunMetrics, staged: Path) -> Iterator[None]:
    """Add to an error of the hub that nothing else is lost, and what to do."""
    places = _places(metrics)
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
