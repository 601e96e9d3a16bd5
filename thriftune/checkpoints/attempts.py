"""The attempts of an execution at one training: where each begins, and when another one is no use.

Flyte counts attempts. What counts here is whether they get anywhere: a training that loses its node every hour and
saves a checkpoint in between is not given up, one that twice in a row leaves no new checkpoint is.
"""

import json

from thriftune.checkpoints import layout, restoring
from thriftune.checkpoints.errors import NoProgressError
from thriftune.checkpoints.location import Writer
from thriftune.stores.store import Store

# Attempts in a row without a new checkpoint that end a run.
_WITHOUT_PROGRESS = 2
_BEGINS_AT = "begins_at"


def begin(store: Store, writer: Writer) -> int:
    """Write down where an attempt begins. Every node of a job may call it.

    Args:
        store: Prefix of the training's checkpoints.
        writer: The attempt.

    Returns:
        The step of the newest complete checkpoint; 0 if there is none.

    Raises:
        NoProgressError: The two attempts before it began there already.
        TransientError: The store does not answer.
    """
    newest = newest_step(store)
    store.create(layout.attempt_name(writer.execution, writer.attempt), json.dumps({_BEGINS_AT: newest}).encode())
    require_progress(store, writer, newest)
    return newest


def require_progress(store: Store, writer: Writer, newest: int, cause: str = "") -> None:
    """Refuse an attempt that the last two have shown to be useless.

    An attempt that ended before it could write down where it began, such as one whose pod never got so far, counts as
    one that got nowhere.

    Args:
        store: Prefix of the training's checkpoints.
        writer: The attempt.
        newest: The step that it would begin at.
        cause: Why the attempt before it ended, if that is known.

    Raises:
        NoProgressError: The attempt two before it began there, or later.
        TransientError: The store does not answer.
    """
    before = writer.attempt - _WITHOUT_PROGRESS
    if before < 0 or newest > _begun_at(store, writer.execution, before):
        return
    what = f"the checkpoint of step {newest}" if newest else "the first step, without any checkpoint"
    message = f"attempts {before + 1} and {before + 2} of execution {writer.execution} both ended at {what}."
    known = f" The last one: {cause}" if cause else ""
    remedy = f"Look at their logs for what ended them, and mend it.{known}"
    raise NoProgressError.single("checkpoints", store.prefix, message, remedy)


def newest_step(store: Store) -> int:
    """The step of the newest complete checkpoint; 0 if there is none.

    Args:
        store: Prefix of the training's checkpoints.

    Raises:
        TransientError: The store does not answer.
    """
    found = restoring.complete([store])
    return found[0][1].step if found else 0


def _begun_at(store: Store, execution: str, number: int) -> int:
    """The step that an attempt, or the last one before it that wrote it down, began at; 0 if none did."""
    names = store.names(layout.attempts_name(execution))
    written = [found for name in names if (found := layout.number_of(name)) is not None and found <= number]
    content = store.get_bytes(layout.attempt_name(execution, max(written))) if written else None
    try:
        return int(json.loads(content or b"")[_BEGINS_AT])
    except (KeyError, TypeError, ValueError):
        return 0
