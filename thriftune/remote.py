"""Files in a store or on a server, through fsspec: found, read and fetched; and why not, told apart.

fsspec takes a server that does not answer, or refuses, for one that holds nothing: over http(s) its glob and find are
empty then, and its info says "not found". So what comes of it empty is asked for once more.
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
# By name: the libraries of the stores (aiohttp, botocore, gcsfs) are of no use to who reads from none of them.
_UNREACHABLE = frozenset({
    "ConnectionError", "TimeoutError", "gaierror", "ClientConnectionError", "ClientPayloadError", "HTTPClientError",
    "TransportError", "ServerDisconnectedError",
})  # fmt: skip
_FORBIDDEN = frozenset({"PermissionError", "NoCredentialsError", "PartialCredentialsError", "RefreshError"})
_STATUSES: dict[int, Failure] = {401: "forbidden", 403: "forbidden", 404: "missing", 410: "missing"}
_BUSY = (408, 425, 429)
_SERVER_ERROR = 500


def is_remote(place: str) -> bool:
    """Whether a place is a URL."""
    return "://" in place


def path_of(place: str) -> str:
    """A place without the query and fragment that a URL of a web server may have: what its kind is told by.

    Args:
        place: Path, glob or URL; of a store, in which ? stands for any character.
    """
    return place.partition("#")[0].partition("?")[0] if place.startswith(_WEB) else place


def name_of(place: str) -> str:
    """The name of the file that a place is of."""
    return path_of(place).rstrip("/").rpartition("/")[2]


@contextmanager
def explained(
    field: str, place: str, error_class: type[UserError], missing: str = "no such file.", *, code: str = ""
) -> Iterator[None]:
    """Turn what fsspec and the libraries of the stores raise into errors that say what to do.

    Args:
        field: The configuration key that names the place.
        place: The place.
        error_class: What to raise for the user's own mistakes.
        missing: What to say where nothing is there.
        code: Of whatever is the user's own mistake; where it is empty, those of the class.

    Raises:
        UserError: As `error_class`: nothing is there, it may not be read, or it is no place that can be read.
        TransientError: The store or the server cannot be reached, or is busy.
    """
    try:
        yield
    except (TransientError, UserError):
        raise
    except Exception as error:  # each store's library has errors of its own; what is none of them goes on as it is
        failure = failure_of(error)
        is_refused = is_remote(place) and type(error).__module__ == "builtins" and disk.reason_of(error) is not None
        if failure is None or is_refused or disk.is_full(error):  # of this disk: nothing is said of the place
            raise
        if failure == "unreachable":
            message = f"the store cannot be reached, or does not answer ({_in_words(error)})."
            raise TransientError(f"{field} = {place}: {message}") from error
        messages = {
            "missing": (missing, "Check the path, and that it is still there."),
            "forbidden": (
                f"may not be read: {_in_words(error)}.",
                "Grant read access; a signature may be out of date.",
            ),
            "unusable": (f"cannot be read: {_in_words(error)}.", "Give a path, s3://, gs:// or https:// URL."),
        }
        code = code or (error_class.missing if failure == "missing" else "")
        raise error_class.single(field, place, *messages[failure], code=code) from error


def failure_of(error: BaseException) -> Failure | None:
    """Why something could not be had from a store; None for an error that says nothing of it."""
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
    """The files that a URL or a glob in a store stands for, as URLs, in a fixed order; empty where there are none.

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
    """What lies below a URL: names, as the store has them, with what it knows of each. Raises as `files` does."""
    filesystem, path = _opened(url)
    found = found_below(filesystem, path)
    # Of a file itself nothing is said there.
    return {name: entry or filesystem.info(name) for name, entry in found.items()}


def found_below(filesystem: Any, path: str) -> dict[str, dict[str, Any]]:
    """What lies below a path of a filesystem of fsspec; empty where there is nothing.

    Raises whatever fsspec does where it cannot be asked.
    """
    found: dict[str, dict[str, Any]] = filesystem.find(path, detail=True)
    if not found and path.startswith(_WEB):
        with suppress(FileNotFoundError):
            filesystem.ls(path)
    return found


def root_of(url: str) -> str:
    """What the names of `listing` begin with, without a slash at its end."""
    return _opened(url)[1].rstrip("/")


def stamp(url: str) -> str:
    """What a file in a store is now, as text: by the checksum or time that the store knows, else by its content.

    Who signed the URL and when is no part of it. Raises as `files` does.
    """
    filesystem, path = _opened(url)
    if not url.startswith(_WEB):
        return str(filesystem.checksum(path))
    known = filesystem.info(path)
    marks = [str(known[key]) for key in ("ETag", "Content-MD5", "Digest", "Last-Modified") if known.get(key)]
    return " ".join([str(known.get("size")), *marks]) if marks else _digest(filesystem, path)


def of_entry(name: str, entry: dict[str, Any]) -> str:
    """An entry of `listing` as a line: a name, a size, and what tells another content."""
    return (
        f"{unsigned(name)} {entry.get('size')} {entry.get('ETag') or entry.get('mtime') or entry.get('Last-Modified')}"
    )


def content(url: str) -> bytes:
    """The whole of a small file. Raises as `files` does."""
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
    """The HTTP status that an error is about, as aiohttp, gcsfs and botocore have it."""
    response = getattr(error, "response", None)
    told = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    found = told or getattr(error, "status", None) or getattr(error, "code", None)
    try:
        return int(found) if found is not None and int(found) >= 300 else None
    except (TypeError, ValueError):
        return None


def _in_words(error: BaseException) -> str:
    """The innermost cause, which says more than what stands for it outside."""
    return in_a_line(list(chain_of(error))[-1])
