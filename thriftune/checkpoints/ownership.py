"""That one attempt, and no other, writes a training's checkpoints: on every rank of a job."""

from thriftune import distributed
from thriftune.checkpoints import attempts
from thriftune.checkpoints.lease import Lease, Terms, require_held
from thriftune.checkpoints.location import CheckpointLocation
from thriftune.stores.store import Store


class Ownership:
    """What an attempt has to say and to ask where others might write too; nothing where one run is alone.

    Args:
        store: Prefix of the training's checkpoints.
        place: Where that is, and who trains.

    Raises:
        LeaseError: Another execution trains the same at this moment.
        TransientError: The store does not answer.
    """

    def __init__(self, store: Store, place: CheckpointLocation) -> None:
        self._store, self._place = store, place
        self._rank = distributed.current_rank()
        self._lease: Lease | None = None
        # Every node has the terms, and looks whether they are in force before it writes.
        self._terms = distributed.from_main(self._take)

    @property
    def execution(self) -> str:
        """The execution that trains; empty in a local run."""
        return self._place.writer.execution if self._place.writer else ""

    def require_held(self) -> None:
        """Refuse to write where another attempt has taken over.

        Raises:
            LeaseError: It has.
            TransientError: The store does not answer.
        """
        if self._terms is not None:
            require_held(self._store, self._terms)

    def begins_at(self, step: int) -> None:
        """Write down the step that this attempt goes on from.

        Args:
            step: Step of the checkpoint; 0 if there is none.
        """
        if self._place.writer is not None and self._rank.is_main:
            attempts.begins_at(self._store, self._place.writer, step)

    def give_back(self) -> None:
        """Let another execution go on from here. Not collective: other ranks may be gone."""
        if self._lease is not None:
            self._lease.release()

    def _take(self) -> Terms | None:
        if self._place.writer is None:
            return None
        lingers = self._rank.nodes > 1
        self._lease = Lease(self._store, self._place.writer, self._place.grace_seconds, lingers=lingers)
        return self._lease.terms
