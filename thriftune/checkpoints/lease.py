"""Who may write a training's checkpoints: one attempt at a time, by a lease in the store with an owner and a time.

Flyte's cache lets one training of a kind run at a time, within a project and domain. The lease is for those that the
cache does not see: `--overwrite-cache`, or an attempt or aborted execution whose pod is still ending.

A lease is a numbered file; the one with the highest number is in force. Its owner writes the present time into it again
and again. To take over is to create the next number, which of several processes one can (`Store.create`), so nothing
has to be compared and swapped. Whoever waits looks whether the file changes, so that clocks need not agree. Whoever
writes a checkpoint first looks whether its lease is still in force.
"""

import json
import logging
import threading
import time
import uuid
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Self

from thriftune.checkpoints import layout
from thriftune.checkpoints.errors import LeaseError
from thriftune.checkpoints.location import Writer
from thriftune.stores.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Periods:
    """Times of a lease, in seconds.

    Attributes:
        renew: Between two renewals by its owner.
        expire: Without a renewal, after which another execution may take it over.
        poll: Between two looks of a process that waits for it.
        skew: By which clocks may differ. Who finds a lease that was renewed longer ago need not wait for all of it.
    """

    renew: float = 10.0
    expire: float = 60.0
    poll: float = 2.0
    skew: float = 30.0

    @property
    def quiet(self) -> float:
        """Without a renewal, after which an attempt of the owner itself has ended."""
        return 1.5 * self.renew


@dataclass(frozen=True)
class Terms:
    """A lease as it is written down.

    Attributes:
        number: Its number.
        writer: Its owner; None if the file is damaged.
        token: Tells two apart that got the same number, from a store that ignores conditions.
        renewed: When its owner last renewed it, by the owner's clock, as in ISO 8601.
        is_released: Whether the owner has given it back.
        is_done: Whether the training has its result.
    """

    number: int
    writer: Writer | None
    token: str = field(default_factory=lambda: uuid.uuid4().hex)
    renewed: str = ""
    is_released: bool = False
    is_done: bool = False

    @property
    def name(self) -> str:
        """Name of its file."""
        return layout.lease_name(self.number)

    def written(self) -> bytes:
        """Content of its file, with the present time."""
        writer = self.writer or Writer("")
        return json.dumps({
            "execution": writer.execution, "attempt": writer.attempt, "node": writer.node, "token": self.token,
            "renewed": datetime.now(UTC).isoformat(), "released": self.is_released, "done": self.is_done,
        }).encode()  # fmt: skip

    @classmethod
    def read(cls, number: int, content: bytes) -> Self:
        """Read what `written` made; a damaged file is nobody's."""
        try:
            found = json.loads(content)
            datetime.fromisoformat(str(found["renewed"]))
            writer = Writer(str(found["execution"]), int(found["attempt"]), str(found["node"]))
            token, renewed = str(found["token"]), str(found["renewed"])
            return cls(number, writer, token, renewed, bool(found["released"]), bool(found["done"]))
        except (KeyError, TypeError, ValueError):
            return cls(number, None)


class Lease:
    """A lease that this process holds until it is released; a thread renews it.

    Args:
        store: Prefix of the training's checkpoints.
        writer: The attempt that this process belongs to.
        patience: Seconds to wait for another execution that still renews its lease, as a pod does that is ending.
        lingers: Whether an earlier attempt of the same node may still be ending, as the pods of a job may.
        periods: Times.

    Raises:
        LeaseError: Another execution holds it and goes on renewing it.
        TransientError: The store does not answer.
    """

    def __init__(
        self, store: Store, writer: Writer, patience: float, *, lingers: bool = False, periods: Periods = Periods()
    ) -> None:
        # What fails is tried again at the next renewal, and giving back must not wait for minutes.
        self._store, self._periods = store.without_retries(), periods
        self._ended = threading.Event()
        self.terms = _taken(store, writer, patience, lingers, periods)
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def release(self) -> None:
        """Give the lease back, so that another execution need not wait. Never fails; does nothing the second time."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        try:
            require_held(self._store, self.terms)
            self._store.put_bytes(self.terms.name, replace(self.terms, is_released=True).written())
        except Exception as error:  # noqa: BLE001 - whatever it is, a training that is done must not be lost for it
            logger.debug("The lease of %s was not given back: %s", self._store.prefix, error)

    def _renew(self) -> None:
        while not self._ended.wait(self._periods.renew):
            try:
                require_held(self._store, self.terms)
                self._store.put_bytes(self.terms.name, self.terms.written())
            except LeaseError:
                return  # whoever writes the next checkpoint finds out, too
            except Exception as error:  # noqa: BLE001 - whatever it is, it must not end the renewing
                logger.debug("The lease of %s was not renewed: %s", self._store.prefix, error)


def require_held(store: Store, own: Terms) -> None:
    """Refuse to write where another attempt has taken over. Every node of a job may ask.

    Args:
        store: Prefix of the training's checkpoints.
        own: The lease that this attempt took.

    Raises:
        LeaseError: It is not in force any more.
        TransientError: The store does not answer.
    """
    present = newest(store)
    if present is None or (present.number, present.token) == (own.number, own.token):  # None: somebody removed it
        return
    message = f"{present.writer or 'another attempt'} has taken over, as {own.writer} was not heard of for too long."
    raise LeaseError.single("checkpoints", store.prefix, message, "It goes on from what is saved here.")


def end(store: Store, writer: Writer, *, is_done: bool) -> None:
    """Write down that no attempt of an execution's node goes on: nobody has to wait for those that were killed.

    Args:
        store: Prefix of the training's checkpoints.
        writer: The last attempt.
        is_done: Whether the training has its result, so that what it saved is no longer needed.

    Raises:
        TransientError: The store does not answer.
    """
    present = newest(store)
    held_by = present.writer if present else None
    if present and held_by and held_by.owner == writer.owner and held_by.attempt <= writer.attempt:
        store.put_bytes(present.name, replace(present, is_released=True, is_done=is_done).written())


def newest(store: Store) -> Terms | None:
    """The lease that is in force, or was the last one; None if there never was one.

    Args:
        store: Prefix of the training's checkpoints.

    Raises:
        TransientError: The store does not answer.
    """
    names = store.names(layout.LEASES)
    numbers = [number for name in names if (number := layout.number_of(name)) is not None]
    content = store.get_bytes(layout.lease_name(max(numbers))) if numbers else None
    return None if content is None else Terms.read(max(numbers), content)


def _taken(store: Store, writer: Writer, patience: float, lingers: bool, periods: Periods) -> Terms:
    """Create the next lease as soon as that is allowed."""
    began = changed = time.monotonic()
    seen: Terms | None = None
    while True:
        held, now = newest(store), time.monotonic()
        if held is None or now - changed >= _wait_for(held, writer, lingers, periods):
            own = Terms(held.number + 1 if held else 1, writer)
            if store.create(own.name, own.written()):
                return own
        elif now - began >= max(patience, periods.expire) + periods.expire:
            raise _in_use(store, held)
        if held != seen:
            changed = now - (max(_age(held) - periods.skew, 0) if seen is None and held else 0)
            if seen is None and held is not None:
                logger.info("%s keeps its checkpoints here. Waiting until it has ended.", held.writer)
            seen = held
        time.sleep(min(periods.poll, periods.quiet / 4))


def _age(held: Terms) -> float:
    """Seconds since the last renewal, by the clocks of its owner and of this process."""
    return (datetime.now(UTC) - datetime.fromisoformat(held.renewed)).total_seconds() if held.renewed else 0.0


def _wait_for(held: Terms, writer: Writer, lingers: bool, periods: Periods) -> float:
    """Seconds without a change after which a lease may be replaced: 0 if it is nobody's."""
    if held.is_released or held.writer is None:
        return 0
    is_own = held.writer.owner == writer.owner
    if is_own and held.writer.attempt == writer.attempt:
        return 0  # workers that are started again; their agent has ended the ones before
    if is_own and held.writer.attempt < writer.attempt:
        return periods.quiet if lingers else 0  # else the pod of the attempt before has ended
    return periods.expire


def _in_use(store: Store, held: Terms) -> LeaseError:
    message = f"{held.writer} trains the same at this moment (heard of at {held.renewed}), and keeps checkpoints here."
    remedy = "Wait until it ends: its result is then served from the cache. Or abort it, and start this run again."
    return LeaseError.single("checkpoints", store.prefix, message, remedy)
