"""The attempts of an execution at one training: where each begins, and when another one is no use.

Flyte counts attempts. What counts here is whether they get anywhere: a training that loses its node every hour and
saves a checkpoint in between is not given up, one that twice in a row leaves no new checkpoint is. A pod that ends
before it can write down where it begins has not tried, so it does not count; Flyte's number is the limit for those.
"""

import itertools
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
        The step of the newest whole checkpoint; 0 if there is none.

    Raises:
        NoProgressError: The two attempts before it left no new checkpoint.
        TransientError: The store does not answer.
    """
    newest = newest_step(store)
    store.create(layout.attempt_name(writer.owner, writer.attempt), _content(newest))
    require_progress(store, writer, newest)
    return newest


def begins_at(store: Store, writer: Writer, step: int) -> None:
    """Write down where an attempt really begins, which is earlier if the newest checkpoint proved damaged.

    Workers that are started again within an attempt begin later, which is not where the attempt began.

    Args:
        store: Prefix of the training's checkpoints.
        writer: The attempt.
        step: Step of the checkpoint that it goes on from; 0 if there is none.

    Raises:
        TransientError: The store does not answer.
    """
    name = layout.attempt_name(writer.owner, writer.attempt)
    known = _step_in(store.get_bytes(name))
    if known is None or step < known:
        store.put_bytes(name, _content(step))


def require_progress(store: Store, writer: Writer, newest: int, cause: str = "") -> None:
    """Refuse an attempt that the last two have shown to be useless.

    Args:
        store: Prefix of the training's checkpoints.
        writer: The attempt.
        newest: The step that it would begin at.
        cause: Why the attempt before it ended, if that is known.

    Raises:
        NoProgressError: Neither of the last two attempts left a checkpoint newer than the one that it began at.
        TransientError: The store does not answer.
    """
    began = [*_begun_at(store, writer), newest]
    left = list(itertools.pairwise(began))[-_WITHOUT_PROGRESS:]
    if len(left) < _WITHOUT_PROGRESS or any(after > before for before, after in left):
        return
    what = f"at the checkpoint of step {newest}" if newest else "before the first checkpoint"
    message = f"two attempts of execution {writer.execution} in a row ended {what}, and this would be the next."
    known = f" The last one: {cause}" if cause else ""
    remedy = f"Look at their logs for what ended them, and mend it.{known}"
    raise NoProgressError.single("checkpoints", store.prefix, message, remedy)


def newest_step(store: Store) -> int:
    """The step of the newest checkpoint whose files are all there, by the store's listing; 0 if there is none.

    Args:
        store: Prefix of the training's checkpoints.

    Raises:
        TransientError: The store does not answer.
    """
    whole = (found.step for at, found in restoring.complete([store]) if not restoring.wrong_sizes(at, found))
    return next(whole, 0)


def _begun_at(store: Store, writer: Writer) -> list[int]:
    """The steps that the earlier attempts began at, as far as they wrote that down, in their order."""
    names = store.names(layout.attempts_name(writer.owner))
    written = sorted(n for name in names if (n := layout.number_of(name)) is not None and n < writer.attempt)
    contents = [store.get_bytes(layout.attempt_name(writer.owner, n)) for n in written[-_WITHOUT_PROGRESS:]]
    return [step for content in contents if (step := _step_in(content)) is not None]


def _content(step: int) -> bytes:
    return json.dumps({_BEGINS_AT: step}).encode()


def _step_in(content: bytes | None) -> int | None:
    """The step that is written down; None if it cannot be read."""
    try:
        return int(json.loads(content or b"")[_BEGINS_AT])
    except (KeyError, TypeError, ValueError):
        return None
