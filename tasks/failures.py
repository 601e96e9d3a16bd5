"""Errors on their way out of a task: without secrets, and of a disk that refuses with its place."""

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
    """Let no error out whose text, or that of a cause, holds a secret: Flyte prints and keeps all of them.

    Args:
        task: Which is running, for what no phase of its own says of a disk.
    """
    try:
        with _of_disk(task):
            yield
    except Exception as error:
        shown = without_secrets(error)
        if shown is error:
            raise
        if isinstance(error, FlyteRecoverableException):  # by its class, and no other, Flyte knows what to try again
            text = ", ".join(redacted(str(part)) for part in error.args)
            raise FlyteRecoverableException(text, timestamp=error.timestamp) from shown.__cause__
        raise shown from shown.__cause__  # which also keeps the first one from being shown as what came before


@contextmanager
def _of_disk(task: str) -> Iterator[None]:
    carried: FlyteException | None = None
    with writing_to(Path(), f"running {task}"):
        try:
            yield
        except FlyteException as error:  # it may carry the text of another process, which has said it
            carried = error
    if carried is not None:
        raise carried


class ExplainsErrors:
    """Mixed into a task class: whatever a task raises is fit to be shown."""

    def execute(self, **kwargs: Any) -> Any:
        """Run the task."""
        above: Any = super()
        with explained(str(getattr(self, "name", "a task"))):
            return above.execute(**kwargs)
