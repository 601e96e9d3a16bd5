"""The manifest of a checkpoint: the files it consists of. It has a checksum of its own, so any change is noticed."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from pydantic import TypeAdapter

from thriftune.digests import FileDigest, require_inside
from thriftune.redaction import redacted

_FORMAT = 1


@dataclass(frozen=True)
class FileEntry(FileDigest):
    """One file of a checkpoint.

    Attributes:
        node: Which node wrote it.
    """

    node: int


@dataclass(frozen=True)
class Manifest:
    """One checkpoint, or the part of it that one node wrote.

    Attributes:
        step: Optimizer steps done.
        world_size: Number of ranks that wrote it.
        nodes: Number of nodes that these ranks were on.
        files: The files. Two nodes may have written the same name.
        content: Other information for the reader; JSON.
    """

    step: int
    world_size: int
    nodes: int
    files: tuple[FileEntry, ...]
    content: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files)

    def chosen(self, wanted: Callable[[str], bool]) -> list[FileEntry]:
        """The files with a wanted name, one for each: if several nodes have it, that of the lowest (global rank 0's).

        Args:
            wanted: Whether a name is wanted.
        """
        by_name: dict[str, FileEntry] = {}
        for entry in sorted(self.files, key=lambda e: (e.name, e.node)):
            if wanted(entry.name):
                by_name.setdefault(entry.name, entry)
        return list(by_name.values())

    def to_bytes(self) -> bytes:
        """The manifest as JSON, without secrets and with its checksum."""
        return _written(replace(self, content=as_json(self.content)))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` made.

        Args:
            data: Content of the file.

        Raises:
            ValueError: The bytes were changed, or are not a manifest of this version.
        """
        try:
            body = json.loads(data)["manifest"]
            if body.pop("format") != _FORMAT:
                raise ValueError("it was written by another version")
            manifest = TypeAdapter(cls).validate_python(body)
            # Writing it again compares the checksum, and everything that a parser would overlook, such as spaces.
            # Secrets are not removed here: an older version may have written what this one takes for a secret.
            if _written(manifest) != data:
                raise ValueError("its checksum is wrong")
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"The manifest is damaged: {error}.") from error
        for entry in manifest.files:
            require_inside(entry.name)
        return manifest


def as_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of some content after a round trip through JSON, so that later changes do not reach it; without secrets.

    Args:
        content: Values that JSON can hold.

    Raises:
        TypeError: A value cannot be written as JSON.
    """
    copy: dict[str, Any] = json.loads(redacted(json.dumps(dict(content))))
    return copy


def _written(manifest: Manifest) -> bytes:
    body = {"format": _FORMAT, **asdict(manifest)}
    return _encoded({"checksum": hashlib.sha256(_encoded(body)).hexdigest(), "manifest": body})


def _encoded(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, sort_keys=True, indent=1) + "\n").encode()
