"""Files in a store or on a server, through fsspec: listing, reading, fetching, and a clear error for each failure.

fsspec treats a server that does not answer, or refuses, as an empty one: over http(s) its glob and find then return
nothing, and its info says "not found". So an empty result is asked for once more.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from thriftune import disk
from thriftune.errors import TransientError, UserError, chain_of, in_a_line
from thriftune.redaction import unsigned

Failure = Literal["missing", "forbidden", "unreachable", "unusable"]

_WEB = ("http://", "https://")
# By name, so that the stores' libraries (aiohttp, botocore, gcsfs) are not imported by runs that do not use them.
_UNREACHABLE = frozenset({
    "ConnectionError", "TimeoutError", "gaierror", "ClientConnectionError", "ClientPayloadError", "HTTPClientError",
    "TransportError", "ServerDisconnectedError",
})  # fmt: skip
_FORBIDDEN = frozenset({"PermissionError", "NoCredentialsError", "PartialCredentialsError", "RefreshError"})
_STATUSES: dict[int, Failure] = {401: "forbidden", 403: "forbidden", 404: "missing", 410: "missing"}
_BUSY = (408, 425, 429)
_SERVER_ERROR = 500


def is_remote(place: str) -> bool:
    """Whether a path is a URL."""
    return "://" in place


def path_of(place: str) -> str:
    """A path or URL without the query and fragment that a web URL may have; its ending tells the file type.

    Args:
        place: Path, glob or URL. In a URL of a store, ? stands for any character.
    """
    return place.partition("#")[0].partition("?")[0] if place.startswith(_WEB) else place


def name_of(place: str) -> str:
    """The file name at the end of a path or URL."""
    return path_of(place).rstrip("/").rpartition("/")[2]


@contextmanager
def explained(
    field: str, place: str, error_class: type[UserError], missing: str = "no such file.", *, code: str = ""
) -> Iterator[None]:
    """Turn what fsspec and the libraries of the stores raise into errors that say what to do.

    Args:
        field: The configuration key that names the path.
        place: Path or URL.
        error_class: What to raise for the user's own mistakes.
        missing: The message if nothing is there.
        code: Code for all of the user's own mistakes; if empty, the codes of the class.

    Raises:
        UserError: As `error_class`: nothing is there, access is denied, or it is not a path that can be read.
        TransientError: The store or the server cannot be reached, or is busy.
    """
    try:
        yield
    except (TransientError, UserError):
        raise
    except Exception as error:  # each store's library has its own errors; all others are raised unchanged
        failure = failure_of(error)
        is_refused = is_remote(place) and type(error).__module__ == "builtins" and disk.reason_of(error) is not None
        if failure is None or is_refused or disk.is_full(error):  # an error of this disk, not of the store
            raise
        if failure == "unreachable":
            message = f"the store cannot be reached or does not answer ({_in_words(error)})."
            raise TransientError(f"{field} = {place}: {message}") from error
        messages = {
            "missing": (missing, "Check the path, and that the file still exists."),
            "forbidden": (
                f"access is denied: {_in_words(error)}.",
                "Grant read access; a signature may have expired.",
            ),
            "unusable": (f"cannot be read: {_in_words(error)}.", "Give a path, s3://, gs:// or https:// URL."),
        }
        code = code or (error_class.missing if failure == "missing" else "")
        raise error_class.single(field, place, *messages[failure], code=code) from error


def failure_of(error: BaseException) -> Failure | None:
    """Why something could not be read from a store; None for an error that does not tell."""
    links = list(chain_of(error))
    for link in links:
        if (status := _status_of(link)) is not None:
            return "unreachable" if status in _BUSY or status >= _SERVER_ERROR else _STATUSES.get(status, "unusable")
        names = {kind.__name__ for kind in type(link).__mro__}
        if names & _UNREACHABLE:
            return "unreachable"
        if names & _FORBIDDEN or str(link).startswith("Forbidden"):  # gcsfs says 403 with a plain OSError
            return "forbidden"
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return "missing"
    if isinstance(error, ImportError | ValueError | RecursionError) or disk.is_circle(error):
        return "unusable"
    return "unreachable" if isinstance(error, OSError) else None


def files(url: str) -> list[str]:
    """The files that a URL or a glob in a store matches, as URLs in a fixed order; empty if there are none.

    Raises whatever fsspec does: call it in `explained`.
    """
    filesystem, path = _opened(url)
    is_glob = "*" in path or "[" in path or ("?" in path and not url.startswith(_WEB))
    if url.startswith(_WEB) and not is_glob:
        filesystem.info(path)
        return [url]
    found = filesystem.glob(path)
    if not found and url.startswith(_WEB):
        filesystem.ls(path[: min(path.index(c) for c in "*[" if c in path)].rpartition("/")[0])
    return sorted(filesystem.unstrip_protocol(file) for file in found)


def listing(url: str) -> dict[str, dict[str, Any]]:
    """All files below a URL: the store's names, with what it knows about each. Raises as `files` does."""
    filesystem, path = _opened(url)
    found = found_below(filesystem, path)
    # For a URL of a single file, the entry is empty.
    return {name: entry or filesystem.info(name) for name, entry in found.items()}


def found_below(filesystem: Any, path: str) -> dict[str, dict[str, Any]]:
    """All files below a path of an fsspec filesystem; empty if there are none.

    Raises whatever fsspec does if it cannot be asked.

    Args:
        filesystem: The fsspec filesystem.
        path: Path in it.
    """
    found: dict[str, dict[str, Any]] = filesystem.find(path, detail=True)
    if not found and path.startswith(_WEB):
        with suppress(FileNotFoundError):
            filesystem.ls(path)
    return found


def root_of(url: str) -> str:
    """The common start of the names of `listing`, without a slash at the end."""
    return _opened(url)[1].rstrip("/")


def stamp(url: str) -> str:
    """The present version of a file in a store, as text: by the store's checksum or time, else by the file's content.

    The URL's signature does not count. Raises as `files` does.
    """
    filesystem, path = _opened(url)
    if not url.startswith(_WEB):
        return str(filesystem.checksum(path))
    known = filesystem.info(path)
    marks = [str(known[key]) for key in ("ETag", "Content-MD5", "Digest", "Last-Modified") if known.get(key)]
    return " ".join([str(known.get("size")), *marks]) if marks else _digest(filesystem, path)


def of_entry(name: str, entry: dict[str, Any]) -> str:
    """An entry of `listing` as a line: name, size, and a mark that changes with the content."""
    return (
        f"{unsigned(name)} {entry.get('size')} {entry.get('ETag') or entry.get('mtime') or entry.get('Last-Modified')}"
    )


def content(url: str) -> bytes:
    """The content of a small file. Raises as `files` does."""
    filesystem, path = _opened(url)
    return bytes(filesystem.cat_file(path))


def fetch(url: str, file: Path) -> None:
    """Copy a file to this disk. Raises as `files` does."""
    file.parent.mkdir(parents=True, exist_ok=True)
    filesystem, path = _opened(url)
    filesystem.get_file(path, str(file))


def _opened(url: str) -> tuple[Any, str]:
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(url)
    return filesystem, str(path)


def _digest(filesystem: Any, path: str) -> str:
    with filesystem.open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _status_of(error: BaseException) -> int | None:
    """The HTTP status in an error of aiohttp, gcsfs or botocore."""
    response = getattr(error, "response", None)
    told = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    found = told or getattr(error, "status", None) or getattr(error, "code", None)
    try:
        return int(found) if found is not None and int(found) >= 300 else None
    except (TypeError, ValueError):
        return None


def _in_words(error: BaseException) -> str:
    """The innermost cause in one line; it says more than the errors wrapped around it."""
    return in_a_line(list(chain_of(error))[-1])
