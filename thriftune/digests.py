"""Checksums of files, computed in one way for checkpoints and finished directories.

SHA-256 does 1.4 GB/s on one core of an AMD EPYC, which has instructions for it; a CPU without them does about a third
(on paper). xxh3 does 10 GB/s there (benchmarks/cache_checks.py), more than most disks deliver; but existing checkpoints
use SHA-256, so it would be a second way.
"""

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from thriftune.progress import bytes_progress

_CHUNK_BYTES = 1 << 20
_AT_ONCE = 4
# A file that changed within the last tick of the file system's clock may change again with the same time stamp.
_SETTLED_NS = 2_000_000_000
# Checksums of this process, by what changes when a file does: a run checks the same model several times.
_KNOWN: dict[tuple[int, int, int, int], str] = {}


@dataclass(frozen=True)
class FileDigest:
    """One finished file.

    Attributes:
        name: Path relative to its directory, with `/`.
        size: Bytes.
        sha256: Checksum of its content, hexadecimal; empty where none was computed.
    """

    name: str
    size: int
    sha256: str


def sha256_of(file: Path, read: Callable[[int], object] | None = None) -> str:
    """The checksum of a file, as hexadecimal digits. Other threads can run: hashing releases Python's lock.

    Args:
        file: The file.
        read: Called after each block with the bytes read in it.
    """
    digest = hashlib.sha256()
    with file.open("rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
            if read is not None:
                read(len(chunk))
    return digest.hexdigest()


def checksums(directory: Path, names: Sequence[str]) -> list[str | OSError]:
    """The checksums of several files. Each file is read at most once in this process unless it changes.

    Args:
        directory: Where they are.
        names: Their paths within it.

    Returns:
        The checksums in the order of the names; for a file that cannot be read, the error.
    """
    with (
        bytes_progress(_size(directory, names), f"Checking {directory.name}") as bar,
        ThreadPoolExecutor(min(_AT_ONCE, os.cpu_count() or 1)) as pool,
    ):
        return list(pool.map(lambda name: _once(directory / name, bar.update), names))


def require_inside(name: str) -> None:
    """Refuse a file name that leads outside the directory whose manifest lists it.

    Args:
        name: Path relative to the directory.

    Raises:
        ValueError: It leads outside.
    """
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\\" in name:
        raise ValueError(f"The manifest names {name!r}, which is not inside the directory.")


def _once(file: Path, read: Callable[[int], object]) -> str | OSError:
    try:
        status = file.stat()
        is_settled = time.time_ns() - status.st_ctime_ns > _SETTLED_NS
        key = (status.st_dev, status.st_ino, status.st_size, status.st_ctime_ns)
        found = _KNOWN.get(key) or sha256_of(file, read)
    except OSError as error:
        return error
    if is_settled:
        _KNOWN[key] = found
    return found


def _size(directory: Path, names: Sequence[str]) -> int:
    files = (directory / name for name in names)
    return sum(file.stat().st_size for file in files if file.is_file())
