"""Files and directories moved between stores and this disk, in memory that does not grow with their number or size.

obstore moves the files of S3, Google and Azure in parts, several at once. s3fs, which flytekit uses, holds up to
0.5 GiB of every file that it uploads and 1.4 of every file that it downloads, all files at once (docs/transfers.md).
Any other place goes through fsspec, one block at a time.

What obstore uploads carries its SHA-256, and is compared with it when it is downloaded here.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from thriftune.disk import writing_to
from thriftune.errors import UserError
from thriftune.redaction import redacted
from thriftune.stores import access, remote, retrying
from thriftune.stores.arriving import ChangedError
from thriftune.stores.clients import client_of
from thriftune.stores.meter import Meter
from thriftune.urls import name_of

logger = logging.getLogger(__name__)
T = TypeVar("T", "Incoming", "Outgoing")

# Memory that a transfer adds to a process, at most, in GiB: parts that are sent, and buffers of connections.
# docs/transfers.md has what was measured.
MEMORY_GIB = 0.25
# Times that a file is moved again from its beginning, if it changed meanwhile or arrived damaged.
_AGAIN = 2


@dataclass(frozen=True)
class Incoming:
    """A file of a store to bring to this disk.

    Attributes:
        url: Where it is.
        file: Where to write it. It appears there when it is complete.
        size: Bytes; 0 if not known.
    """

    url: str
    file: Path
    size: int = 0


@dataclass(frozen=True)
class Outgoing:
    """A file of this disk to bring to a store.

    Attributes:
        file: The file.
        url: Where to write it.
        sha256: Its checksum, hexadecimal; empty if not known.
    """

    file: Path
    url: str
    sha256: str = ""


def fetch(url: str, file: Path) -> None:
    """Bring a file to this disk. Raises as `fetch_all`.

    Args:
        url: Where it is.
        file: Where to write it.
    """
    fetch_all([Incoming(url, file)])


def download(url: str, directory: Path) -> None:
    """Bring all files below a URL to this disk, in the same folders; or one file. Raises as `fetch_all`.

    Args:
        url: The folder.
        directory: Where to write them.
    """
    root, found = remote.root_of(url), remote.listing(url)
    if not found:
        raise FileNotFoundError(f"{redacted(url)} holds no files")
    if list(found) == [root]:  # a file itself
        return fetch_all([Incoming(url, directory / name_of(url), int(found[root].get("size") or 0))])
    sizes = {name.removeprefix(f"{root}/"): int(entry.get("size") or 0) for name, entry in found.items()}
    return fetch_all([Incoming(f"{url.rstrip('/')}/{name}", directory / name, size) for name, size in sizes.items()])


def upload(directory: Path, url: str, digests: Mapping[str, str]) -> None:
    """Bring all files below a directory to a store, in the same folders. Raises as `send_all`.

    Args:
        directory: The directory.
        url: The folder to write to.
        digests: SHA-256 of files by their path in the directory, as far as they are known.
    """
    names = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    root = url.rstrip("/")
    send_all([Outgoing(directory / name, f"{root}/{name}", digests.get(name, "")) for name in names])


def fetch_all(files: Sequence[Incoming]) -> None:
    """Bring files of one bucket to this disk, several at once.

    Args:
        files: The files.

    Raises:
        DiskFullError: This disk has no room for them.
        FileNotFoundError: The store has no such file. What else a store refuses is raised as its library does: call it
            in `failures.explained`.
        TransientError: The store does not answer, although it was asked several times.
        UserError: A file does not hold what was saved, or changes while it is fetched, each time.
    """
    if not files:
        return
    total = sum(item.size for item in files)
    client = client_of(access.of(files[0].url), len(files), retrying.PAUSES_S)

    def move(item: Incoming, meter: Meter) -> None:
        client.get(item.url, item.file, meter)

    there = sum(i.size for i in files if i.file.is_file() and i.file.stat().st_size == i.size)
    with writing_to(files[0].file, "fetching files", total - there):
        _move(files, move, client.files_at_once, Meter(f"Fetching {_in_words(files)}", total))


def send_all(files: Sequence[Outgoing]) -> None:
    """Bring files to one bucket, several at once.

    Args:
        files: The files.

    Raises:
        FileNotFoundError: There is no such file or bucket. What else a store refuses is raised as its library does:
            call it in `failures.explained`.
        TransientError: The store does not answer, although it was asked several times.
    """
    if not files:
        return
    client = client_of(access.of(files[0].url), len(files), retrying.PAUSES_S)

    def move(item: Outgoing, meter: Meter) -> None:
        client.put(item.file, item.url, item.sha256, meter)

    total = sum(item.file.stat().st_size for item in files)
    _move(files, move, client.files_at_once, Meter(f"Uploading {_in_words(files)}", total))


def _move(files: Sequence[T], move: Callable[[T, Meter], None], at_once: int, meter: Meter) -> None:
    """Move several files at once. The first that fails ends all of them, and so does Ctrl-C."""
    with ThreadPoolExecutor(min(at_once, len(files))) as pool:
        pending = [pool.submit(_moved_whole, item, move, meter) for item in files]
        try:
            for done in wait(pending, return_when=FIRST_EXCEPTION).done:
                done.result()
        except BaseException:
            meter.stop()
            for other in pending:
                other.cancel()
            raise
    meter.finish()


def _moved_whole(item: T, move: Callable[[T, Meter], None], meter: Meter) -> None:
    for trial in range(1 + _AGAIN):
        try:
            return move(item, meter)
        except ChangedError as error:
            logger.warning("%s %s", redacted(item.url), error)
            if trial == _AGAIN:
                remedy = "Make it again, or let nobody write to it meanwhile."
                raise UserError.single("file", item.url, f"{error} It was moved {1 + _AGAIN} times.", remedy) from error
    return None


def _in_words(files: Sequence[Incoming] | Sequence[Outgoing]) -> str:
    return redacted(files[0].url) if len(files) == 1 else f"{len(files)} files ({redacted(files[0].url)} and others)"
