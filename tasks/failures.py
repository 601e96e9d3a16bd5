"""Errors that leave a task: without secrets, and with the path if a disk is full or not writable."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flytekit.exceptions.base import FlyteException
from flytekit.exceptions.user import FlyteRecoverableException

from tasks import local_run
from thriftune.disk import writing_to
from thriftune.errors import TransientError, UserError, without_secrets
from thriftune.redaction import redacted

logger = logging.getLogger("thriftune.tasks.failures")


@contextmanager
def explained(task: str) -> Iterator[None]:
    """Remove secrets from an error and its causes before it leaves the task: Flyte prints and keeps all of them.

    Of an error that says what to do, nothing is kept but what it says; the log has its traceback at level DEBUG.

    Args:
        task: Name of the running task, for disk errors outside of a more specific phase.
    """
    try:
        with _of_disk(task):
            yield
    except Exception as error:
        shown = without_secrets(error)
        if isinstance(error, UserError):  # made anew, as the traceback of the first belongs to it
            logger.debug("%s failed", task, exc_info=shown)
            raise type(error)(error.problems) from None
        if isinstance(error, FlyteRecoverableException) and isinstance(error.__cause__, TransientError):
            logger.debug("%s failed", task, exc_info=shown)
            raise _again(error) from None
        if shown is error:
            raise
        if isinstance(error, FlyteRecoverableException):
            raise _again(error) from shown.__cause__
        raise shown from shown.__cause__  # `from` also keeps the original error from being shown as its context


def _again(error: FlyteRecoverableException) -> FlyteRecoverableException:
    """The same error without secrets; only by this exact class does Flyte know what to try again."""
    text = ", ".join(redacted(str(part)) for part in error.args)
    return FlyteRecoverableException(text, timestamp=error.timestamp)


@contextmanager
def _of_disk(task: str) -> Iterator[None]:
    carried: FlyteException | None = None
    with writing_to(Path(), f"running {task}"):
        try:
            yield
        except FlyteException as error:  # it may contain the error of another process, which was explained there
            carried = error
    if carried is not None:
        raise carried


class ExplainsErrors:
    """Mixin for a task class: removes secrets from everything a task raises."""

    def local_execute(self, ctx: Any, **kwargs: Any) -> Any:
        """Run the task in this process.

        Args:
            ctx: Flyte's context.
            **kwargs: Inputs of the task.

        Raises:
            SystemExit: In `pyflyte run`, of an error that says what to do: pyflyte would print sixty lines of traceback
                above it.
        """
        above: Any = super()
        try:
            return above.local_execute(ctx, **kwargs)
        except (UserError, FlyteRecoverableException) as error:
            if not local_run.is_ours() or error.__cause__ is not None:
                raise
            raise SystemExit(f"{type(error).__name__}: {error}") from None

    def execute(self, **kwargs: Any) -> Any:
        """Run the task."""
        above: Any = super()
        with explained(str(getattr(self, "name", "a task"))):
            return above.execute(**kwargs)
