"""What moves one file of a store: obstore in parts, or fsspec block by block."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from thriftune.stores import object_stores
from thriftune.stores.access import Access
from thriftune.stores.arriving import partial_of
from thriftune.stores.in_parts import InParts
from thriftune.stores.meter import Meter
from thriftune.stores.retrying import retried
from thriftune.urls import bucket_of, name_of

if TYPE_CHECKING:
    from fsspec.callbacks import Callback

logger = logging.getLogger(__name__)

# The process in which obstore was used first. Its threads do not survive a fork, and a child would wait for them.
_owner: int | None = None


class Client(Protocol):
    """Moves a file. Both operations repeat what breaks off. ChangedError: the whole file must be moved again.

    Attributes:
        files_at_once: Number of files that it may move at once.
    """

    files_at_once: int

    def get(self, url: str, file: Path, meter: Meter, *, check: bool = True) -> None:
        """Bring a file to this disk, unless it is there and whole; compare it with its checksum, if it carries one."""

    def put(self, file: Path, url: str, sha256: str, meter: Meter) -> None:
        """Bring a file to the store, unless it is there and whole. An empty checksum is computed where it is needed."""


def client_of(how: Access, files: int, pauses: Sequence[float]) -> Client:
    """A client for the stores of one protocol.

    Args:
        how: How to reach them.
        files: Number of files that are to be moved.
        pauses: Seconds to wait between the attempts at one request.
    """
    obstacle = object_stores.why_not(how)
    if how.protocol in object_stores.PROTOCOLS and obstacle:
        logger.info("Files of %s:// are moved by fsspec, not obstore: %s.", how.protocol, obstacle)
    if obstacle or not _is_owner():
        return _InBlocks(how, pauses)
    return InParts(how, files, pauses)


def _is_owner() -> bool:
    """Whether this process may use obstore: no process that it was forked from has used it."""
    global _owner  # noqa: PLW0603 - a fact about the process
    _owner = _owner or os.getpid()
    return _owner == os.getpid()


class _InBlocks:
    """fsspec: for web servers, memory and this disk; and for all that obstore cannot do, one file at a time."""

    def __init__(self, how: Access, pauses: Sequence[float]) -> None:
        self._how, self._pauses = how, pauses
        # s3fs holds four parts of 50 MiB of a file.
        self.files_at_once = 1 if how.protocol in object_stores.PROTOCOLS else 4

    def get(self, url: str, file: Path, meter: Meter, *, check: bool = True) -> None:
        filesystem, path = self._how.opened(url)
        with partial_of(file) as partial:
            get = lambda: filesystem.get_file(path, str(partial), callback=_counting(meter))  # noqa: E731
            retried(get, bucket_of(url), name_of(url), pauses=self._pauses)

    def put(self, file: Path, url: str, sha256: str, meter: Meter) -> None:
        filesystem, path = self._how.opened(url)
        put = lambda: filesystem.put_file(str(file), path, callback=_counting(meter))  # noqa: E731
        retried(put, bucket_of(url), name_of(url), pauses=self._pauses)


def _counting(meter: Meter) -> "Callback":
    """What fsspec calls with the bytes that it has moved."""
    from fsspec.callbacks import Callback

    class Counting(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            meter.add(inc)

    return Counting()
