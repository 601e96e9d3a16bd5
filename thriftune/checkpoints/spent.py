"""What the attempts at a training took, whatever came of it: a small file for each process, beside the checkpoints."""

import json
import uuid

from thriftune.checkpoints import attempts
from thriftune.checkpoints.location import Writer
from thriftune.stores.store import Store

_FOLDER = "spent"
_SECONDS = "seconds"
_ENDED_AT = "ended_at"


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

    def note(self, seconds: float, ended_at: int | None = None) -> None:
        """Note the time of this process; it replaces what it noted before.

        Args:
            seconds: Seconds since it began to fetch the model.
            ended_at: The last step of the training, where that is done; None before.

        Raises:
            TransientError: The store does not answer.
        """
        content = {_SECONDS: seconds} if ended_at is None else {_SECONDS: seconds, _ENDED_AT: ended_at}
        self._store.without_retries().put_bytes(self._name, json.dumps(content).encode())

    def seconds(self) -> float:
        """The seconds that were noted so far, with those of steps that were lost; what cannot be read counts as none.

        Raises:
            TransientError: The store does not answer.
        """
        return sum(max(0.0, _number_in(content, _SECONDS)) for content in self._contents())

    def has_all_steps(self) -> bool:
        """Whether an attempt did the last step of the training, and the checkpoint of that step is in the store.

        Raises:
            TransientError: The store does not answer.
        """
        ended_at = max((_number_in(content, _ENDED_AT) for content in self._contents()), default=0.0)
        return 0 < ended_at <= self.newest_step()

    def newest_step(self) -> int:
        """The step of the newest checkpoint that is whole in the store; 0 if there is none.

        Raises:
            TransientError: The store does not answer.
        """
        return attempts.newest_step(self._store)

    def _contents(self) -> list[bytes | None]:
        return [self._store.get_bytes(name) for name in self._store.names(_FOLDER)]


def _number_in(content: bytes | None, key: str) -> float:
    try:
        return float(json.loads(content or b"")[key])
    except (KeyError, TypeError, ValueError):
        return 0.0
