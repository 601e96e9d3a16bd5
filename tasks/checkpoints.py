"""Where the checkpoints of a training are, and what its attempts say of them: found by what is trained, not by attempt.

In a pod they lie in one folder for each training, named by its cache key, which every attempt and execution of it
finds. A local run has them beside its results.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flytekit import current_context
from flytekit.exceptions.user import FlyteRecoverableException

from tasks import settings
from tasks.transfer import transient_errors_retried
from thriftune import artifacts, distributed
from thriftune.checkpoints import attempts, lease
from thriftune.checkpoints.errors import NoProgressError
from thriftune.checkpoints.location import CheckpointLocation, Writer
from thriftune.errors import ThriftuneError, UserError, in_a_line
from thriftune.stores.store import Store

logger = logging.getLogger("thriftune.tasks.checkpoints")

_LONGEST_CAUSE = 500


def checkpoint_location(run_name: str, training: str) -> CheckpointLocation:
    """Where a training keeps its checkpoints.

    Args:
        run_name: Name of the run.
        training: What Flyte's cache knows the training by.
    """
    writer = None
    if settings.is_local():
        here = str(settings.result_path(run_name, "checkpoints"))
    else:
        here, writer = _prefix(training), _writer()
    if distributed.current_rank().is_main:
        logger.info("Checkpoints go to %s", here)
    scratch = Path(tempfile.gettempdir()) / f"thriftune-checkpoints-{artifacts.key_of(here)}"
    return CheckpointLocation(here, scratch, settings.PLATFORM.grace_seconds, writer)


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
    except FlyteRecoverableException as error:
        raise _tried_again_or_not(error, store, writer) from error.__cause__
    except UserError as error:
        raise error.advising(_ways_on(store)) from error.__cause__
    except Exception:
        logger.error("%s", _ways_on(store))
        raise


def remove(training: str) -> None:
    """Remove the checkpoints of a training whose result is in the cache. A failure is said, and nothing more.

    Args:
        training: What Flyte's cache knows it by.
    """
    if settings.is_local():
        return
    root, store = Store(settings.checkpoints_root()), Store(_prefix(training))
    try:
        other = lease.in_force(store)
        if other is not None and other.execution != _writer().execution:
            logger.info("The checkpoints in %s stay: %s trains the same.", store.prefix, other)
            return
        root.remove(training)
    except (ThriftuneError, OSError) as error:
        logger.warning("The checkpoints in %s are no longer needed, and were not removed: %s", store.prefix, error)


def _prefix(training: str) -> str:
    return f"{settings.checkpoints_root()}/{training}"


def _writer() -> Writer:
    return Writer(str(current_context().execution_id.name), settings.attempt_number())


def _tried_again_or_not(error: FlyteRecoverableException, store: Store, writer: Writer) -> Exception:
    """What to raise in place of an error that another attempt may overcome, with the last words of a run."""
    following = Writer(writer.execution, writer.attempt + 1)
    try:
        attempts.require_progress(store, following, attempts.newest_step(store), in_a_line(error, _LONGEST_CAUSE))
    except NoProgressError as useless:
        return useless.advising(_ways_on(store))
    except (ThriftuneError, OSError) as unknown:
        logger.warning("The checkpoints could not be looked at: %s", unknown)
    again: Exception = FlyteRecoverableException(
        f"{error}\nIf Flyte does not try again: {_ways_on(store)}", timestamp=error.timestamp
    )
    return again


def _ways_on(store: Store) -> str:
    """Where the newest checkpoint is, and how to go on from it."""
    try:
        step = attempts.newest_step(store)
    except (ThriftuneError, OSError):  # the error that is on its way says more than this one
        step = 0
    where = f"The newest checkpoint is that of step {step}, in" if step else "No checkpoint is known in"
    execution = current_context().execution_id
    recover = f"-p {execution.project} -d {execution.domain} --execution-id {execution.name} recover"
    return (
        f"{where} {store.prefix}. To go on from there, start the same run file again, or recover this execution: "
        f"`pyflyte execution {recover}`."
    )
