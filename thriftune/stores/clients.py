"""What moves one file of a store: obstore in parts, or fsspec block by block."""

import hashlib
import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, TypeVar

from thriftune.digests import sha256_of
from thriftune.stores.access import Access
from thriftune.stores.local_files import PARTIAL
from thriftune.stores.meter import Meter
from thriftune.stores.retrying import retried
from thriftune.urls import bucket_of

if TYPE_CHECKING:
    from obstore import GetOptions, GetResult
    from obstore.store import ObjectStore

T = TypeVar("T")

# Parts that are moved at once, of all files together. Those that are sent wait in memory, 128 MiB in all; those that
# come are written as they come.
PARTS_AT_ONCE = 16
SENT_BYTES, FETCHED_BYTES = 8 << 20, 16 << 20
_MOST_PARTS = 9_000  # S3 takes 10,000
_BLOCK_BYTES = 1 << 20
_DIGEST = "thriftune-sha256"
_NO_SUCH_RANGE = "status code: 416"

# The process in which obstore was used first. Its threads do not survive a fork, and a child would wait for them.
_owner: int | None = None


class ChangedError(Exception):
    """A file changed while it was moved, or did not arrive as it was sent."""


class Client(Protocol):
    """Moves a file. Both operations repeat what breaks off. ChangedError: the whole file must be moved again."""

    def get(self, url: str, file: Path, meter: Meter, *, check: bool = True) -> None:
        """Bring a file to this disk, unless it is there and whole; compare it with its checksum, if it carries one."""

    def put(self, file: Path, url: str, sha256: str, meter: Meter) -> None:
        """Bring a file to the store, unless it is there and whole. An empty checksum is computed where it is needed."""


def client_of(how: Access, files_at_once: int, pauses: Sequence[float]) -> Client:
    """A client for the stores of one protocol.

    Args:
        how: How to reach them.
        files_at_once: Files that are moved at once.
        pauses: Seconds to wait between the attempts at one request.
    """
    if how.moves_in_parts and _is_owner():
        return _InParts(how, max(1, PARTS_AT_ONCE // files_at_once), pauses)
    return _InBlocks(how, pauses)


def _is_owner() -> bool:
    """Whether this process may use obstore: no process that it was forked from has used it."""
    global _owner  # noqa: PLW0603 - a fact about the process
    _owner = _owner or os.getpid()
    return _owner == os.getpid()


class _InParts:
    """obstore: several parts of a file at once. What is sent carries its checksum, which is compared when it comes."""

    def __init__(self, how: Access, parts: int, pauses: Sequence[float]) -> None:
        self._how, self._parts, self._pauses = how, parts, pauses

    def get(self, url: str, file: Path, meter: Meter, *, check: bool = True) -> None:
        import obstore

        store, key = self._opened(url)
        if (
            file.is_file()
            and (known := self._known(url, store, key))
            and known == (file.stat().st_size, sha256_of(file))
        ):
            return meter.add(known[0])
        first = self._retried(url, lambda: _first_part(store, key))
        size = first.meta["size"]
        requests, answered = _requests_for(size, first.meta["e_tag"]), [first]
        with _partial(file) as partial:
            with partial.open("wb", buffering=0) as out:

                def bring(request: "GetOptions") -> _Part:
                    def receive() -> _Part:
                        is_answered = request is requests[0] and answered
                        result = answered.pop() if is_answered else obstore.get(store, key, options=request)
                        return _received(result, out, meter)

                    return self._retried(url, receive)

                with ThreadPoolExecutor(self._parts) as pool:
                    came, is_same = pool.map(bring, requests), True
                    if check:
                        is_same = _is_what_was_sent(partial, came)
                    else:
                        deque(came, maxlen=0)
            if not is_same:
                raise ChangedError("does not hold what was saved.")
        return None

    def put(self, file: Path, url: str, sha256: str, meter: Meter) -> None:
        import obstore

        store, key = self._opened(url)
        size = file.stat().st_size
        digest = sha256 or sha256_of(file)
        if self._known(url, store, key) == (size, digest):
            return meter.add(size)
        part = max(SENT_BYTES, -(-size // _MOST_PARTS))
        at_once = max(1, self._parts * SENT_BYTES // part)

        def send() -> None:
            with _Counted(file, meter) as stream:
                obstore.put(
                    store, key, stream, attributes={_DIGEST: digest}, use_multipart=size > part,
                    chunk_size=part, max_concurrency=at_once,
                )  # fmt: skip

        self._retried(url, send)
        known = self._known(url, store, key)
        if known is not None and known[0] != size:
            raise ChangedError("changed while it was uploaded.")
        return None

    def _opened(self, url: str) -> "tuple[ObjectStore, str]":
        bucket = bucket_of(url)
        return self._how.object_store(bucket.partition("://")[2]), url.removeprefix(bucket).strip("/")

    def _known(self, url: str, store: "ObjectStore", key: str) -> tuple[int, str] | None:
        """Size and checksum of an object; None if there is none, or if these keys may not look."""
        import obstore
        from obstore.exceptions import PermissionDeniedError

        try:
            answer = self._retried(url, lambda: obstore.get(store, key, options={"head": True}))
        except (FileNotFoundError, PermissionDeniedError):  # the next request says which, with the store's reason
            return None
        return answer.meta["size"], _digest_of(answer)

    def _retried(self, url: str, call: Callable[[], T]) -> T:
        from obstore.exceptions import PreconditionError

        try:
            return retried(call, bucket_of(url), url.removeprefix(bucket_of(url)).strip("/"), pauses=self._pauses)
        except PreconditionError as error:
            raise ChangedError("changed while it was fetched.") from error


class _InBlocks:
    """fsspec: for web servers, memory and this disk; and for all in a process that obstore does not work in."""

    def __init__(self, how: Access, pauses: Sequence[float]) -> None:
        self._how, self._pauses = how, pauses

    def get(self, url: str, file: Path, meter: Meter, *, check: bool = True) -> None:
        filesystem, path = self._how.opened(url)
        with _partial(file) as partial:
            retried(lambda: filesystem.get_file(path, str(partial)), url, "it", pauses=self._pauses)
            meter.add(partial.stat().st_size)

    def put(self, file: Path, url: str, sha256: str, meter: Meter) -> None:
        filesystem, path = self._how.opened(url)
        retried(lambda: filesystem.put_file(str(file), path), url, "it", pauses=self._pauses)
        meter.add(file.stat().st_size)


class _Counted(io.FileIO):
    """A file whose reading is counted, and counted back if it ends with an error."""

    def __init__(self, file: Path, meter: Meter) -> None:
        super().__init__(file)
        self._meter, self._count = meter, 0

    def read(self, size: int | None = -1) -> bytes:
        block = super().read(-1 if size is None else size) or b""
        self._count += len(block)
        self._meter.add(len(block))
        return block

    def __exit__(self, *error: object) -> None:
        if error[0] is not None:
            self._meter.add(-self._count)
        super().close()


@contextmanager
def _partial(file: Path) -> Iterator[Path]:
    """A file to write to, which gets the other's name if nothing went wrong, and else is removed."""
    partial = file.with_name(file.name + PARTIAL)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _first_part(store: "ObjectStore", key: str) -> "GetResult":
    """The first part of an object, with what the store knows of all of it. Unlike HEAD, a refusal has words."""
    import obstore
    from obstore.exceptions import GenericError

    try:
        return obstore.get(store, key, options={"range": (0, FETCHED_BYTES)})
    except GenericError as error:
        if _NO_SUCH_RANGE not in str(error):
            raise
        return obstore.get(store, key)  # an empty object has no parts


def _requests_for(size: int, tag: str | None) -> "list[GetOptions]":
    """Requests for the parts of an object, as it is now: a range is no request for an empty one.

    Args:
        size: Its bytes.
        tag: Its version, which each part must still be of; None where the store has none.
    """
    same: GetOptions = {"if_match": tag} if tag else {}
    starts = range(0, size, FETCHED_BYTES)
    return [{**same, "range": (start, min(start + FETCHED_BYTES, size))} for start in starts] or [same]


@dataclass(frozen=True)
class _Part:
    """A part of an object that is on this disk.

    Attributes:
        size: Its bytes.
        digest: SHA-256 of the whole object, which it carries; empty if it carries none.
    """

    size: int
    digest: str


def _received(result: "GetResult", out: IO[bytes], meter: Meter) -> _Part:
    """Write a part of an object where it belongs in a file.

    Args:
        result: The answer to the request for the part.
        out: The file.
        meter: What counts.
    """
    start, end = result.range
    at = start
    try:
        for block in result.stream(min_chunk_size=_BLOCK_BYTES):
            view = memoryview(block)
            while view:
                written = os.pwrite(out.fileno(), view, at)
                at, view = at + written, view[written:]
                meter.add(written)
        if at != end:
            raise ConnectionError(f"the store ended at byte {at} of {end}")
    except BaseException:
        meter.add(start - at)
        raise
    return _Part(end - start, _digest_of(result))


def _is_what_was_sent(file: Path, parts: Iterable[_Part]) -> bool:
    """Whether a file has the checksum that its parts carry, if they carry one. Reads each part when it has come.

    Args:
        file: The file.
        parts: Its parts, in order.
    """
    digest, expected = hashlib.sha256(), ""
    with file.open("rb", buffering=0) as stream:
        for part in parts:
            expected, left = part.digest, part.size if part.digest else 0
            while left:
                block = stream.read(min(left, _BLOCK_BYTES))
                if not block:  # somebody cut it off
                    return False
                digest.update(block)
                left -= len(block)
    return not expected or digest.hexdigest() == expected


def _digest_of(result: "GetResult") -> str:
    return str(result.attributes.get(_DIGEST, ""))
