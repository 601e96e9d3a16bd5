"""Errors that leave a task: without secrets, and with the path if a disk is full or not writable."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from flytekit.exceptions.base import FlyteException
from flytekit.exceptions.user import FlyteRecoverableException

from thriftune.disk import writing_to
from thriftune.errors import without_secrets
from thriftune.redaction import redacted


@contextmanager
def explained(task: str) -> Iterator[None]:
    """Remove secrets from an error and its causes before it leaves the task: Flyte prints and keeps all of them.

    Args:
        task: Name of the running task, for disk errors outside of a more specific phase.
    """
    try:
        with _of_disk(task):
            yield
    except Exception as error:
        shown = without_secrets(error)
        if shown is error:
            raise
        if isinstance(error, FlyteRecoverableException):  # only by this exact class does Flyte know what to try again
            text = ", ".join(redacted(str(part)) for part in error.args)
            raise FlyteRecoverableException(text, timestamp=error.timestamp) from shown.__cause__
        raise shown from shown.__cause__  # `from` also keeps the original error from being shown as its context


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

    def execute(self, **kwargs: Any) -> Any:
        """Run the task."""
        above: Any = super()
        with explained(str(getattr(self, "name", "a task"))):
            return above.execute(**kwargs)
