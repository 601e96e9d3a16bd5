"""Files in a store or on a server, through fsspec: listing and reading. Call it in `failures.explained`.

fsspec treats a server that does not answer, or refuses, as an empty one: over http(s) its glob and find then return
nothing, and its info says "not found". So an empty result is asked for once more.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from thriftune.redaction import unsigned
from thriftune.stores import access
from thriftune.urls import WEB

# Read ahead in a file that is read from its start, where the store gives parts of it.
_BLOCK_BYTES = 4 << 20


def files(url: str) -> list[str]:
    """The files that a URL or a glob in a store matches, as URLs in a fixed order; empty if there are none.

    Raises whatever fsspec does: call it in `explained`.
    """
    filesystem, path = access.opened(url)
    is_glob = "*" in path or "[" in path or ("?" in path and not url.startswith(WEB))
    if url.startswith(WEB) and not is_glob:
        filesystem.info(path)
        return [url]
    found = filesystem.glob(path)
    if not found:  # which is also what is found where there is no bucket, or no server
        filesystem.ls(path[: min((path.index(c) for c in "*[?" if c in path), default=None)].rpartition("/")[0])
    return sorted(filesystem.unstrip_protocol(file) for file in found)


def listing(url: str) -> dict[str, dict[str, Any]]:
    """All files below a URL: the store's names, with what it knows about each. Raises as `files` does."""
    filesystem, path = access.opened(url)
    found = found_below(filesystem, path)
    # For a URL of a single file the entry is empty, and on a web server nobody knows what is behind a link.
    return {name: entry if entry.get("size") is not None else filesystem.info(name) for name, entry in found.items()}


def found_below(filesystem: Any, path: str) -> dict[str, dict[str, Any]]:
    """All files below a path of an fsspec filesystem; empty if there are none.

    Raises whatever fsspec does if it cannot be asked.

    Args:
        filesystem: The fsspec filesystem.
        path: Path in it.
    """
    found: dict[str, dict[str, Any]] = filesystem.find(path, detail=True)
    # What the consoles of stores, Hadoop and Spark write to show a folder that has no other existence.
    found = {name: entry for name, entry in found.items() if not (name.endswith("/") and not entry.get("size"))}
    if not found and path.startswith(WEB):
        with suppress(FileNotFoundError):
            filesystem.ls(path)
    return found


def root_of(url: str) -> str:
    """The common start of the names of `listing`, without a slash at the end."""
    return access.opened(url)[1].rstrip("/")


def stamp(url: str) -> str:
    """The present version of a file in a store, as text: by the store's checksum or time, else by the file's content.

    The URL's signature does not count. Raises as `files` does.
    """
    filesystem, path = access.opened(url)
    if not url.startswith(WEB):
        return str(filesystem.checksum(path))
    known = filesystem.info(path)
    marks = [str(known[key]) for key in ("ETag", "Content-MD5", "Digest", "Last-Modified") if known.get(key)]
    return " ".join([str(known.get("size")), *marks]) if marks else _digest(url)


def of_entry(name: str, entry: dict[str, Any]) -> str:
    """An entry of `listing` as a line: name, size, and a mark that changes with the content."""
    return (
        f"{unsigned(name)} {entry.get('size')} {entry.get('ETag') or entry.get('mtime') or entry.get('Last-Modified')}"
    )


def content(url: str) -> bytes:
    """The content of a small file. Raises as `files` does."""
    filesystem, path = access.opened(url)
    return bytes(filesystem.cat_file(path))


@contextmanager
def reading(url: str) -> Iterator[tuple[IO[bytes], int | None]]:
    """Read a file from its start, without what is not asked for. Raises as `files` does.

    Args:
        url: The file.

    Yields:
        The file, to be read in order; and its size in bytes, None if a web server does not say it.
    """
    filesystem, path = access.opened(url)
    size = filesystem.info(path).get("size")
    # Many web servers know nothing of parts: of them the whole file is asked for, and the answer cut off.
    block = 0 if url.startswith(WEB) else _BLOCK_BYTES
    with filesystem.open(path, "rb", block_size=block) as stream:
        yield stream, None if size is None else int(size)


def try_to_write(url: str) -> None:
    """Write a file of a few bytes, and remove it. Raises as `files` does.

    Args:
        url: The file.
    """
    filesystem, path = access.opened(url)
    filesystem.pipe_file(path, b"thriftune")
    with suppress(OSError):  # a permission to write need not include removing
        filesystem.rm_file(path)


def _digest(url: str) -> str:
    digest = hashlib.sha256()
    with reading(url) as (stream, _):
        while chunk := stream.read(_BLOCK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
