"""The chain of a task's attempts: Flyte tells each attempt only about the one just before it."""

import json
import logging
from typing import Annotated

from pydantic import Field, TypeAdapter

from thriftune.checkpoints.layout import ATTEMPTS
from thriftune.stores.store import Store

logger = logging.getLogger(__name__)

_PREFIXES = TypeAdapter(list[Annotated[str, Field(min_length=1)]])


def begin_attempt(here: str, previous: str | None) -> list[Store]:
    """Find the prefixes of all earlier attempts, and write them down for the next attempt.

    Call it as early as possible: if an attempt dies before this call, later attempts cannot find the earlier ones.
    Several nodes and ranks may call it.

    Args:
        here: This attempt's own prefix (Flyte's `checkpoint_dest`).
        previous: The prefix of the attempt just before (`checkpoint_src`); None, empty or `""` in quotes in the first.

    Returns:
        The stores of all attempts, newest first: this attempt's own is at the front.

    Raises:
        TransientError: The store does not answer.
    """
    own = Store(here)
    previous = (previous or "").strip("\"' ")
    known = _read(own)
    learned = []
    if previous:
        before = Store(previous)
        learned = [before.prefix, *_read(before)]
    earlier = [prefix for prefix in dict.fromkeys([*learned, *known]) if prefix != own.prefix]
    if earlier != known:  # a first attempt leaves nothing here before its first checkpoint
        own.put_bytes(ATTEMPTS, json.dumps(earlier, indent=1).encode())
    return [own, *map(Store, earlier)]


def _read(store: Store) -> list[str]:
    """The earlier prefixes that a prefix lists; none if it lists none or cannot be read."""
    data = store.get_bytes(ATTEMPTS)
    if data is None:
        return []
    try:
        return _PREFIXES.validate_json(data)
    except ValueError:
        logger.warning(
            "%s/%s is damaged: checkpoints of earlier attempts cannot be found.",
            store.prefix,
            ATTEMPTS,
        )
        return []
