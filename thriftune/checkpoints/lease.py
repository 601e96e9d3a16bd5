"""Who may write a training's checkpoints: one attempt at a time, by a lease in the store with an owner and a time.

Flyte's cache lets one training of a kind run at a time, within a project and domain. The lease is for those that the
cache does not see: `--overwrite-cache`, or an aborted execution whose pod is still ending.

A lease is a numbered file; the one with the highest number is in force. Its owner writes the present time into it again
and again. To take over is to create the next number, which of several processes one can (`Store.create`), so nothing
has to be compared and swapped. Whoever waits does not compare clocks, but looks whether the file changes.
"""

import json
import logging
import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from thriftune.checkpoints import layout
from thriftune.checkpoints.errors import LeaseError
from thriftune.checkpoints.location import Writer
from thriftune.errors import ThriftuneError
from thriftune.stores.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Periods:
    """Times of a lease, in seconds.

    Attributes:
        renew: Between two renewals by its owner.
        expire: Without a renewal, after which another execution may take it over.
        poll: Between two looks of a process that waits for it.
    """

    renew: float = 20.0
    expire: float = 90.0
    poll: float = 2.0


@dataclass(frozen=True)
class _Held:
    """A lease as it is in the store.

    Attributes:
        number: Its number.
        content: Its bytes, which change with every renewal.
        writer: Its owner; None if it cannot be read.
        renewed: When its owner last renewed it, by the owner's clock.
        is_released: Whether the owner has given it back.
    """

    number: int
    content: bytes
    writer: Writer | None
    renewed: str
    is_released: bool


class Lease:
    """A lease that this process holds until it is released; a thread renews it.

    Args:
        store: Prefix of the training's checkpoints.
        writer: The attempt that this process belongs to.
        patience: Seconds to wait for another execution that still renews its lease, as a pod does that is ending.
        periods: Times.

    Raises:
        LeaseError: Another execution holds it and goes on renewing it.
        TransientError: The store does not answer.
    """

    def __init__(self, store: Store, writer: Writer, patience: float, periods: Periods = Periods()) -> None:
        self._store, self._writer, self._periods = store, writer, periods
        self._ended = threading.Event()
        self._lost_to: Writer | None = None
        self._number = _taken(store, writer, patience, periods)
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def require_held(self) -> None:
        """Refuse to write any more if another attempt has taken over.

        Raises:
            LeaseError: It has.
        """
        if self._lost_to is not None:
            message = f"{self._lost_to} has taken over, as {self._writer} was not heard of for too long."
            raise LeaseError.single("checkpoints", self._store.prefix, message, "It goes on from what is saved here.")

    def release(self) -> None:
        """Give the lease back, so that another execution need not wait. Does nothing the second time."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        if self._lost_to is None:
            try:
                self._store.without_retries().put_bytes(*_file(self._number, self._writer, is_released=True))
            except (ThriftuneError, OSError) as error:
                logger.warning("The lease of %s was not given back: %s", self._store.prefix, error)

    def _renew(self) -> None:
        while not self._ended.wait(self._periods.renew):
            try:
                present = _newest(self._store)
                if present is not None and present.number > self._number:
                    self._lost_to = present.writer or self._writer
                    return
                self._store.put_bytes(*_file(self._number, self._writer))
            except (ThriftuneError, OSError) as error:  # saving a checkpoint will say so, if it lasts
                logger.debug("The lease of %s was not renewed: %s", self._store.prefix, error)


def in_force(store: Store, periods: Periods = Periods()) -> Writer | None:
    """Who is training there, going by the time of the last renewal; None if nobody is.

    Args:
        store: Prefix of a training's checkpoints.
        periods: Times.

    Raises:
        TransientError: The store does not answer.
    """
    held = _newest(store)
    if held is None or held.is_released or held.writer is None:
        return None
    age = datetime.now(UTC) - datetime.fromisoformat(held.renewed)
    return held.writer if age.total_seconds() < periods.expire else None


def _taken(store: Store, writer: Writer, patience: float, periods: Periods) -> int:
    """Create the next lease as soon as that is allowed, and return its number."""
    began = changed = time.monotonic()
    seen: _Held | None = None
    while True:
        held = _newest(store)
        if held is None or _may_replace(held, writer):
            number = held.number + 1 if held else 1
            if store.create(*_file(number, writer)):
                return number
            continue
        now = time.monotonic()
        if seen is None:
            logger.info("%s keeps its checkpoints here. Waiting until it has ended.", held.writer)
        if seen is None or seen.content != held.content:
            seen, changed = held, now
        if now - changed >= periods.expire:  # its owner is gone, and was killed before it could say so
            if store.create(*_file(held.number + 1, writer)):
                return held.number + 1
            continue
        if now - began >= max(patience, periods.expire) + periods.expire:
            raise _in_use(store, held)
        time.sleep(periods.poll)


def _may_replace(held: _Held, writer: Writer) -> bool:
    """Whether a lease is nobody's, or of an earlier process of the same execution, which Flyte has ended by now."""
    if held.is_released or held.writer is None:
        return True
    return held.writer.execution == writer.execution and held.writer.attempt <= writer.attempt


def _in_use(store: Store, held: _Held) -> LeaseError:
    message = f"{held.writer} trains the same at this moment (heard of at {held.renewed}), and keeps checkpoints here."
    remedy = "Wait until it ends: its result is then served from the cache. Or abort it, and start this run again."
    return LeaseError.single("checkpoints", store.prefix, message, remedy)


def _newest(store: Store) -> _Held | None:
    names = store.names(layout.LEASES)
    numbers = [number for name in names if (number := layout.number_of(name)) is not None]
    content = store.get_bytes(layout.lease_name(max(numbers))) if numbers else None
    if content is None:
        return None
    number = max(numbers)
    try:
        read = json.loads(content)
        writer, renewed = Writer(str(read["execution"]), int(read["attempt"])), str(read["renewed"])
        datetime.fromisoformat(renewed)
        return _Held(number, content, writer, renewed, is_released=bool(read["released"]))
    except (KeyError, TypeError, ValueError):
        logger.warning("%s/%s is damaged, and is replaced.", store.prefix, layout.lease_name(number))
        return _Held(number, content, None, "", is_released=False)


def _file(number: int, writer: Writer, *, is_released: bool = False) -> tuple[str, bytes]:
    """Name and content of a lease's file."""
    content = {
        "execution": writer.execution,
        "attempt": writer.attempt,
        "renewed": datetime.now(UTC).isoformat(),
        "released": is_released,
    }
    return layout.lease_name(number), json.dumps(content).encode()
