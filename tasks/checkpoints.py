"""Where the checkpoints of a training are, and what its attempts say of them: found by what is trained, not by attempt.

In a pod they lie in one folder for each training, named by its cache key, which every attempt and execution of it
finds. A local run has them beside its results.
"""

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from flytekit import current_context
from flytekit.core.base_task import IgnoreOutputs
from flytekit.exceptions.user import FlyteRecoverableException

from tasks import settings
from tasks.transfer import transient_errors_retried
from thriftune import artifacts, distributed
from thriftune.checkpoints import attempts, layout, lease
from thriftune.checkpoints.errors import NoProgressError
from thriftune.checkpoints.location import CheckpointLocation, Writer
from thriftune.errors import ThriftuneError, UserError, in_a_line
from thriftune.stores.store import Store

logger = logging.getLogger("thriftune.tasks.checkpoints")

_LONGEST_CAUSE = 500


def checkpoint_location(run_name: str, training: str, *, outlives: bool = False) -> CheckpointLocation:
    """Where a training keeps its checkpoints.

    Args:
        run_name: Name of the run.
        training: What Flyte's cache knows the training by.
        outlives: Whether a later local run of the same training finds them, as it does in a pod.
    """
    writer = None
    if settings.is_local():
        here = str(_kept_here(training) if outlives else settings.result_path(run_name, "checkpoints"))
    else:
        here, writer = _prefix(training), _writer()
    if distributed.current_rank().is_main:
        logger.info("Checkpoints go to %s", here)
    scratch = Path(tempfile.gettempdir()) / f"thriftune-checkpoints-{artifacts.key_of(here)}"
    return CheckpointLocation(here, scratch, settings.PLATFORM.grace_seconds, writer)


def place_of(training: str) -> tuple[Store, Writer]:
    """Where everything of a training lies, and who writes there in this attempt; not for a local run.

    Args:
        training: What Flyte's cache knows it by.
    """
    return Store(_prefix(training)), _writer()


@contextmanager
def attempt(training: str) -> Iterator[None]:
    """One attempt at a training, in each of its pods: not begun where it would be no use, and with last words.

    Args:
        training: What Flyte's cache knows the training by.

    Raises:
        NoProgressError: This attempt, or the next one, would follow two that left no new checkpoint.
        FlyteRecoverableException: The attempt failed, and another one may go on.
    """
    if settings.is_local():
        yield
        return
    store, writer = Store(_prefix(training)), _writer()
    try:
        with transient_errors_retried():
            attempts.begin(store, writer)
        yield
    except IgnoreOutputs:  # how a pod of a job ends whose result is in another pod
        raise
    except FlyteRecoverableException as error:
        raise _tried_again_or_not(error, store, writer) from error.__cause__
    except UserError as error:
        _end(store, writer)
        raise error.advising(_ways_on(store)) from error.__cause__
    except Exception as error:
        error.add_note(_ways_on(store))  # Flyte shows it below the traceback
        raise


def mark_done(training: str) -> None:
    """Write down that a training has its result, which is uploaded. A failure is said, and nothing more.

    Args:
        training: What Flyte's cache knows it by.
    """
    if settings.is_local():
        return
    store = Store(_prefix(training))
    with _not_worth_failing(f"The checkpoints in {store.prefix} are kept, although they are no longer needed"):
        lease.end(store, _writer(), is_done=True)


def remove(training: str) -> None:
    """Remove the checkpoints of a training whose result is in the cache. A failure is said, and nothing more.

    They stay where another execution trains the same, with --overwrite-cache, and has no result yet.

    Args:
        training: What Flyte's cache knows it by.
    """
    if settings.is_local():
        return
    store = Store(_prefix(training))
    with _not_worth_failing(f"The checkpoints in {store.prefix} were not removed"):
        last = lease.newest(store)
        if last is not None and last.is_done:
            Store(settings.checkpoints_root()).remove(_folder(training))


def remove_steps(training: str) -> None:
    """Remove the checkpoints of a trial that has its result; its page and lines stay. A failure is said, and no more.

    Args:
        training: What the trial is known by.
    """
    with _not_worth_failing(f"The checkpoints of {training} were not removed"):
        if settings.is_local():
            shutil.rmtree(_kept_here(training), ignore_errors=True)
            return
        store = Store(_prefix(training))
        last = lease.newest(store)
        if last is not None and last.is_done:  # else another execution trains the same
            for step in {step for name in store.names() if (step := layout.step_of(name)) is not None}:
                store.remove(layout.checkpoint_name(step))


def trial_store(training: str) -> Store:
    """Where everything of a trial lies that others find, also in a later local run.

    Args:
        training: What the trial is known by.
    """
    return Store(str(_kept_here(training)) if settings.is_local() else _prefix(training))


@contextmanager
def _not_worth_failing(what: str) -> Iterator[None]:
    """Go on after an error: a result that is there must not be lost for want of tidiness."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - whatever it is
        logger.warning("%s: %s", what, in_a_line(error))


def _end(store: Store, writer: Writer) -> None:
    """Let others go on at once from where this execution gave up, also if an earlier attempt of it was killed."""
    with _not_worth_failing(f"The lease of {store.prefix} was not given back"):
        lease.end(store, writer, is_done=False)


def _kept_here(training: str) -> Path:
    return settings.cache_path("checkpoints", artifacts.key_of(training))


def _prefix(training: str) -> str:
    return f"{settings.checkpoints_root()}/{_folder(training)}"


def _folder(training: str) -> str:
    """A training's key without its generation: that of a result that is made anew is another one."""
    kind, key, *_ = training.split("-")
    return f"{kind}-{key}"


def _writer() -> Writer:
    execution = str(current_context().execution_id.name)
    return Writer(execution, settings.attempt_number(), settings.node_of_execution())


def _tried_again_or_not(error: FlyteRecoverableException, store: Store, writer: Writer) -> Exception:
    """What to raise in place of an error that another attempt may overcome, with the last words of a run."""
    text = ", ".join(map(str, error.args))
    cause = " ".join(text.split())[:_LONGEST_CAUSE]
    following = replace(writer, attempt=writer.attempt + 1)
    try:
        attempts.require_progress(store, following, attempts.newest_step(store), cause)
    except NoProgressError as useless:
        _end(store, writer)
        return useless.advising(_ways_on(store))
    except (ThriftuneError, OSError) as unknown:
        logger.warning("The checkpoints could not be looked at: %s", unknown)
    again: Exception = FlyteRecoverableException(
        f"{text}\nIf Flyte does not try again: {_ways_on(store)}", timestamp=error.timestamp
    )
    return again


def _ways_on(store: Store) -> str:
    """Where the newest checkpoint is, and how to go on from it."""
    seen = ""
    try:
        step = attempts.newest_step(store)
        if store.sizes(layout.PAGE):
            seen = f". What it did until then is on this page: {store.prefix}/{layout.PAGE}"
    except (ThriftuneError, OSError):  # the error that is on its way says more than this one
        step = 0
    execution = current_context().execution_id
    recover = f"-p {execution.project} -d {execution.domain} --execution-id {execution.name} recover"
    both = f"start the same run file again, or recover this execution: `pyflyte execution {recover}`"
    if not step:
        return f"No checkpoint is known in {store.prefix}. To begin again, {both}{seen}."
    return (
        f"The newest checkpoint is that of step {step}, in {store.prefix}. To go on from there, {both}. With other "
        f"values in the run file, name it there, as far as they allow it: checkpoints.resume_from: {store.prefix}{seen}"
    )
