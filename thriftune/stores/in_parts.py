"""Files of S3, Google and Azure through obstore, in parts, several of a file at once."""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypeVar

from thriftune.digests import sha256_of
from thriftune.stores import object_stores
from thriftune.stores.access import Access
from thriftune.stores.arriving import ChangedError, expect, partial_of
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
# Among the metadata of an object. Azure takes identifiers only, and some proxies drop names with an underscore.
_DIGEST = "thriftunesha256"
# Parts of messages of obstore.
_ABORTING = "Error performing DELETE"
_NO_SUCH_RANGE = "status code: 416"


class InParts:
    """Moves files in parts. What is sent carries its checksum, which is compared when it comes.

    Attributes:
        files_at_once: Number of files that it may move at once.
    """

    files_at_once = 4

    def __init__(self, how: Access, files: int, pauses: Sequence[float]) -> None:
        """Share the parts among the files.

        Args:
            how: How the store is reached.
            files: Number of files that are to be moved.
            pauses: Seconds to wait between the attempts at one request.
        """
        parts = max(1, PARTS_AT_ONCE // min(files, self.files_at_once))
        self._how, self._parts, self._pauses = how, parts, pauses
        self._stores: dict[tuple[str, bool], ObjectStore] = {}

    def get(self, url: str, file: Path, meter: Meter, *, check: bool = True) -> None:
        """As `Client.get`."""
        import obstore

        store, key = self._opened(url)
        if file.is_file() and (known := self._known(url)) and known == (file.stat().st_size, sha256_of(file)):
            return meter.keep(known[0])
        first = self._retried(url, lambda: _first_part(store, key))
        size = first.meta["size"]
        expect(size, file, meter)
        requests, answered = _requests_for(size, first.meta["e_tag"]), [first]
        with partial_of(file) as partial:
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
        """As `Client.put`."""
        store, key = self._opened(url, writing=True)
        size, digest = file.stat().st_size, sha256 or sha256_of(file)
        part = max(SENT_BYTES, -(-size // _MOST_PARTS))
        at_once = max(1, self._parts * SENT_BYTES // part)

        def send() -> int | None:
            # Looked at before each attempt: the last answer of one that seemed to fail may have been lost.
            if self._known(url) == (size, digest):
                return None
            return _send(store, key, file, digest, meter, part, at_once)

        sent = self._retried(url, send)
        if sent is None:
            return meter.keep(size)
        known = self._known(url)
        if sent != size or (known is not None and known[0] != size):
            raise ChangedError("changed while it was uploaded.")
        return None

    def _opened(self, url: str, *, writing: bool = False) -> "tuple[ObjectStore, str]":
        bucket = bucket_of(url)
        name = bucket.partition("://")[2]
        if (name, writing) not in self._stores:
            self._stores[name, writing] = object_stores.make(self._how, name, writing=writing)
        return self._stores[name, writing], url.removeprefix(bucket).strip("/")

    def _known(self, url: str) -> tuple[int, str] | None:
        """Size and checksum of an object; None if there is none, or the store does not say.

        What it refuses comes without a reason here; the next request has it.
        """
        import obstore
        from obstore.exceptions import GenericError, PermissionDeniedError

        store, key = self._opened(url)
        try:
            answer = obstore.get(store, key, options={"head": True})
        except (FileNotFoundError, PermissionDeniedError, GenericError):
            return None
        return answer.meta["size"], _digest_of(answer)

    def _retried(self, url: str, call: Callable[[], T]) -> T:
        from obstore.exceptions import PreconditionError

        try:
            return retried(call, bucket_of(url), url.removeprefix(bucket_of(url)).strip("/"), pauses=self._pauses)
        except PreconditionError as error:
            raise ChangedError("changed while it was fetched.") from error


def _send(store: "ObjectStore", key: str, file: Path, digest: str, meter: Meter, part: int, at_once: int) -> int:
    """Send a file, and return its bytes.

    This thread reads it: obstore's own threads would need Python to do so, and abort a process that ends meanwhile.

    Args:
        store: The client of the bucket.
        key: Name of the object, which is there when all of it is.
        file: The file.
        digest: Its checksum.
        meter: What counts.
        part: Bytes of a part.
        at_once: Parts that are sent at once.
    """
    import obstore

    sent = 0
    writer = obstore.open_writer(store, key, attributes={_DIGEST: digest}, buffer_size=part, max_concurrency=at_once)
    try:
        with file.open("rb", buffering=0) as stream:
            while block := stream.read(_BLOCK_BYTES):
                writer.write(block)
                sent += len(block)
                meter.add(len(block))
        writer.close()
    except BaseException as error:  # without closing it: what is there would look whole
        meter.add(-sent)
        if _ABORTING in str(error):  # obstore tells what its cleaning up met, and not what went wrong before
            raise ConnectionError("the upload broke off, and could not be aborted") from error
        raise
    return sent


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
