"""Which weight files of a model are read, and their content by their headers. No weight is read."""

import json
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from thriftune import disk
from thriftune.errors import ModelSourceError, Problem
from thriftune.stores import access, failures
from thriftune.urls import is_remote

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
Shapes = dict[str, tuple[int, ...]]

_SUFFIX = ".safetensors"
_METADATA = "__metadata__"
_LENGTH_BYTES = 8  # a safetensors file begins with the length of its header
_FIRST_BYTES = 100_000  # to read over the network: most headers are shorter, so one request is enough
_CONNECTIONS = 8
_LONGEST_HEADER = 100_000_000  # MAX_HEADER_SIZE of safetensors
# Messages of safetensors (0.8) about a bad header, and about a good one that does not match the size of the file.
_DESERIALIZING, _NOT_COVERED = "Error while deserializing header: ", "file not fully covered"
_LFS_POINTER = b"version https://git-lfs"
_AGAIN = "Download or save the model again."


@dataclass(frozen=True)
class Weights:
    """The content of a model's weight files.

    Attributes:
        shapes: Shape of each tensor, by its name in the files.
        unread: Other safetensors files next to them, which transformers does not read.
    """

    shapes: Shapes
    unread: tuple[str, ...] = ()


class Store(Protocol):
    """A location of a model, as far as its weight files are concerned."""

    @property
    def names(self) -> set[str]:
        """Names of its files."""

    def content(self, name: str) -> bytes:
        """The content of a small file."""

    def shapes(self, name: str) -> Shapes:
        """The shape of each tensor of a safetensors file.

        Args:
            name: Name of the file.

        Raises:
            ValueError: The file is damaged; the message says how.
        """


class Folder:
    """A folder on this disk or in a store, through fsspec."""

    def __init__(self, place: str | Path) -> None:
        """Open a folder.

        Args:
            place: Path or URL.
        """
        url = str(place) if is_remote(str(place)) else str(Path(place).expanduser())
        self._filesystem, self._path = access.opened(url)

    @cached_property
    def _sizes(self) -> dict[str, int]:
        entries = [entry for entry in self._filesystem.ls(self._path, detail=True) if entry["type"] != "directory"]
        # A web server's page names files, and not their sizes.
        sized = (e if e["size"] is not None else self._filesystem.info(e["name"]) for e in entries)
        return {_last_part(entry["name"]): entry["size"] for entry in sized}

    @property
    def names(self) -> set[str]:
        """Names of its files."""
        return set(self._sizes)

    def content(self, name: str) -> bytes:
        """The content of a small file."""
        return bytes(self._filesystem.cat_file(f"{self._path}/{name}"))

    def shapes(self, name: str) -> Shapes:
        """The shape of each tensor of a safetensors file.

        Args:
            name: Name of the file.

        Raises:
            ValueError: The file is damaged; the message says how.
        """
        if name not in self._sizes:
            raise ValueError("is missing")
        path, size = f"{self._path}/{name}", self._sizes[name]
        first = bytes(self._filesystem.cat_file(path, start=0, end=min(_FIRST_BYTES, size)))
        length = header_length(first, size)
        end = _LENGTH_BYTES + length
        start = first[:end]
        if end > len(first):
            start += bytes(self._filesystem.cat_file(path, start=len(first), end=end))
        return shapes_of(start, size)


def header_length(start: bytes, size: int) -> int:
    """The length of a safetensors header.

    Args:
        start: The first bytes of the file.
        size: Size of the file in bytes.

    Raises:
        ValueError: The length is impossible.
    """
    if start.startswith(_LFS_POINTER):
        raise ValueError("is the pointer of Git LFS, not the file that it points to (run `git lfs pull`)")
    length = int.from_bytes(start[:_LENGTH_BYTES], "little")
    if size < _LENGTH_BYTES or length > size - _LENGTH_BYTES:
        raise ValueError(f"is not a complete safetensors file: its {size:,} bytes end before the header does")
    if length > _LONGEST_HEADER:
        raise ValueError(f"has a header of {length:,} bytes, but safetensors reads at most {_LONGEST_HEADER:,}")
    return length


def shapes_of(start: bytes, size: int) -> Shapes:
    """The shapes in a safetensors header, as safetensors itself reads it.

    safetensors refuses what Python's JSON would let through: offsets that overlap, leave gaps or do not match the
    shape, unknown types, negative numbers, endless nesting. It is given a sparse file with the same header, and a hole
    instead of the weights.

    Args:
        start: The start of the file, including its header.
        size: Size of the file in bytes.

    Raises:
        ValueError: The header is invalid, or the file is smaller or larger than it says.
    """
    from safetensors import SafetensorError, safe_open

    looking = disk.writing_to(disk.temporary(), "looking at the header of a safetensors file")
    with looking, tempfile.NamedTemporaryFile(suffix=_SUFFIX) as hollow:
        hollow.write(start)
        hollow.truncate(size)
        hollow.flush()
        try:
            with safe_open(hollow.name, framework="numpy") as opened:
                return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        except SafetensorError as error:
            if _NOT_COVERED not in str(error):
                reason = str(error).removeprefix(_DESERIALIZING)
                raise ValueError(f"has a header that is not valid safetensors ({reason})") from error
    # safetensors checks everything else in the header before that.
    entries: dict[str, dict[str, Any]] = json.loads(start[_LENGTH_BYTES:])
    ends = (entry["data_offsets"][1] for name, entry in entries.items() if name != _METADATA)
    whole = len(start) + max(ends, default=0)
    is_cut = "is truncated" if size < whole else "holds more than it should"
    raise ValueError(f"{is_cut}: it has {size:,} bytes, but its header says {whole:,}")


def shapes_in_entries(entries: Mapping[str, Any]) -> Shapes:
    """The shapes in a safetensors header that was read elsewhere, of a file whose size is not known.

    Args:
        entries: The parsed header.

    Raises:
        ValueError: The header is invalid.
    """
    header = json.dumps(entries).encode()
    try:
        end = max((entry["data_offsets"][1] for name, entry in entries.items() if name != _METADATA), default=0)
        return shapes_of(len(header).to_bytes(_LENGTH_BYTES, "little") + header, _LENGTH_BYTES + len(header) + end)
    except (TypeError, OSError) as error:  # not a number, or an impossible one
        raise ValueError("has a header that is not valid safetensors") from error


def weights_in(store: Store, source: str) -> Weights:
    """The content of the files that transformers would read, by their headers.

    Args:
        store: The model's location.
        source: The model's source, for messages.

    Raises:
        ModelSourceError: Files are missing, damaged or truncated; names each.
        TransientError: The store did not answer.
    """
    nothing = "its weights cannot be read."
    with failures.explained("model.source", source, ModelSourceError, nothing, code="model-incomplete"):
        files = files_to_read(store, source)
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            read = list(pool.map(lambda name: _or_reason(lambda: store.shapes(name)), files))
    bad = {name: found for name, found in zip(files, read, strict=True) if isinstance(found, str)}
    if bad:
        problems = [Problem("model.source", source, f"{n} {reason}.", _AGAIN) for n, reason in bad.items()]
        raise ModelSourceError.of("model-incomplete", problems)
    shapes = {key: shape for found in read if not isinstance(found, str) for key, shape in found.items()}
    others = {name for name in store.names if _is_weights(name)} - set(files)
    return Weights(shapes, tuple(sorted(others)))


def files_to_read(store: Store, source: str) -> list[str]:
    """The files that transformers (5.23) reads: the single file, or those that the index names.

    Args:
        store: The model's location.
        source: The model's source, for messages.

    Raises:
        ModelSourceError: There are none, or some of them are missing.
    """
    named = sorted(set(_weight_map(store, source).values()))
    if chosen := _explicit(store):
        return [chosen]
    if SINGLE in store.names and SINGLE not in named:  # the index lists shards that are gone
        return [SINGLE]
    if missing := [name for name in named if name not in store.names]:
        some = f"{', '.join(missing[:5])}{' and more' if missing[5:] else ''}"
        raise ModelSourceError.single(
            "model.source", source, f"lacks {some}, which {INDEX} names.", _AGAIN, code="model-incomplete"
        )
    if pickled := [name for name in named if not name.endswith(_SUFFIX)]:
        raise ModelSourceError.single(
            "model.source",
            source,
            f"{INDEX} names {pickled[0]}, which is not a safetensors file.",
            "Save the model again as safetensors, with save_pretrained.",
            code="model-incomplete",
        )
    if not named:
        found = sorted(name for name in store.names if _is_weights(name))
        raise ModelSourceError.single(
            "model.source",
            source,
            f"has neither {SINGLE} nor {INDEX}, so nothing says which files belong to it; it holds "
            f"{', '.join(found[:5]) or 'no weights'}.",
            f"Bring {INDEX} too, or save the model again with save_pretrained.",
            code="model-incomplete",
        )
    return named


def _explicit(store: Store) -> str:
    """The weight file that config.json itself names, which takes precedence; empty if it names none."""
    try:
        named = json.loads(store.content("config.json")).get("transformers_weights")
    except (ValueError, AttributeError, FileNotFoundError, RecursionError):
        return ""  # reported by the code that needs it
    return str(named) if named in store.names and str(named).endswith(_SUFFIX) else ""


def _weight_map(store: Store, source: str) -> dict[str, str]:
    """The file of each tensor by its name, from the index; empty if there is no index.

    Args:
        store: The model's location.
        source: The model's source, for messages.

    Raises:
        ModelSourceError: The index is invalid.
    """
    if INDEX not in store.names:
        return {}
    try:
        return {str(tensor): str(file) for tensor, file in json.loads(store.content(INDEX))["weight_map"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        message = f"its {INDEX} has no readable weight_map."
        raise ModelSourceError.single("model.source", source, message, _AGAIN, code="model-incomplete") from error


def _or_reason(action: Callable[[], Shapes]) -> Shapes | str:
    try:
        return action()
    except ValueError as error:
        return str(error)


def _is_weights(name: str) -> bool:
    return name.endswith(_SUFFIX) and not name.startswith(("consolidated", "adapter_model"))


def _last_part(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
