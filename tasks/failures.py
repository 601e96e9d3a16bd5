"""Errors that leave a task: without secrets, and with the path if a disk is full or not writable."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flytekit.exceptions.base import FlyteException
from flytekit.exceptions.user import FlyteRecoverableException

from tasks import local_run, run_files
from thriftune.disk import writing_to
from thriftune.errors import ConfigError, TransientError, UserError, without_secrets
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
                above it. Its status is 2 if the run file has to be changed, as for one that cannot be read.
        """
        above: Any = super()
        try:
            return above.local_execute(ctx, **kwargs)
        except (UserError, FlyteRecoverableException) as error:
            if not local_run.is_ours() or error.__cause__ is not None:
                raise
            sys.stderr.write(f"{type(error).__name__}: {error}\n")
            raise SystemExit(run_files.USAGE if isinstance(error, ConfigError) else 1) from None

    def _literal_map_to_python_input(self, literal_map: Any, ctx: Any) -> Any:
        """The inputs as values. Of a run that is refused here, flytekit would print all of its content first."""
        above: Any = super()
        with explained(str(getattr(self, "name", "a task"))):
            try:
                return above._literal_map_to_python_input(literal_map, ctx)  # noqa: SLF001
            except Exception as error:
                if isinstance(error.__context__, UserError):
                    raise error.__context__ from None
                raise

    def execute(self, **kwargs: Any) -> Any:
        """Run the task."""
        above: Any = super()
        with explained(str(getattr(self, "name", "a task"))):
            return above.execute(**kwargs)
