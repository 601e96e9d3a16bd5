"""What the attempts at a training took, whatever came of it: a small file for each process, beside the checkpoints."""

import json
import uuid

from thriftune.checkpoints import attempts
from thriftune.checkpoints.location import Writer
from thriftune.stores.store import Store

_FOLDER = "spent"
_SECONDS = "seconds"


class SpentTime:
    """The time of all attempts at a training, and how far they came.

    Args:
        store: Prefix of the training's checkpoints.
        writer: This attempt; None in a local run.
    """

    def __init__(self, store: Store, writer: Writer | None) -> None:
        self._store = store
        # Each process of an attempt that is started again within it has a name of its own.
        who = f"{writer.owner}-{writer.attempt:05}-" if writer else ""
        self._name = f"{_FOLDER}/{who}{uuid.uuid4().hex[:12]}.json"

    def note(self, seconds: float) -> None:
        """Note the time of this process; it replaces what it noted before.

        Args:
            seconds: Seconds since it began to fetch the model.

        Raises:
            TransientError: The store does not answer.
        """
        self._store.without_retries().put_bytes(self._name, json.dumps({_SECONDS: seconds}).encode())

    def seconds(self) -> float:
        """The seconds that were noted so far, with those of steps that were lost; what cannot be read counts as none.

        Raises:
            TransientError: The store does not answer.
        """
        return sum(_seconds_in(self._store.get_bytes(name)) for name in self._store.names(_FOLDER))

    def newest_step(self) -> int:
        """The step of the newest checkpoint that is whole in the store; 0 if there is none.

        Raises:
            TransientError: The store does not answer.
        """
        return attempts.newest_step(self._store)


def _seconds_in(content: bytes | None) -> float:
    try:
        return max(0.0, float(json.loads(content or b"")[_SECONDS]))
    except (KeyError, TypeError, ValueError):
        return 0.0
