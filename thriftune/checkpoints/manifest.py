"""What a whole checkpoint consists of. Its bytes carry a checksum of their own: any change of them is found."""

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
        world_size: Ranks that wrote it.
        nodes: Nodes that they were on.
        files: What was written. Two nodes may have written the same name.
        content: Whatever else the reader must know; JSON.
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
        """The files with a wanted name, one for each: of several nodes' the one of the lowest, where global rank 0 is.

        Args:
            wanted: Says of a name whether it is wanted.
        """
        by_name: dict[str, FileEntry] = {}
        for entry in sorted(self.files, key=lambda e: (e.name, e.node)):
            if wanted(entry.name):
                by_name.setdefault(entry.name, entry)
        return list(by_name.values())

    def to_bytes(self) -> bytes:
        """As JSON without secrets, with its checksum."""
        return _written(replace(self, content=as_json(self.content)))

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read what `to_bytes` made.

        Raises:
            ValueError: These are not the bytes that were written, or not a manifest of this version.
        """
        try:
            body = json.loads(data)["manifest"]
            if body.pop("format") != _FORMAT:
                raise ValueError("it was written by another version")
            manifest = TypeAdapter(cls).validate_python(body)
            # Writing it again compares the checksum and everything a parser would overlook, such as spaces. As it is:
            # what an older version wrote may hold what this one takes for a secret, and is whole all the same.
            if _written(manifest) != data:
                raise ValueError("its checksum is wrong")
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"The manifest is damaged: {error}.") from error
        for entry in manifest.files:
            require_inside(entry.name)
        return manifest


def as_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of free content as JSON would give it back, so that it cannot change any more; without secrets.

    Raises:
        TypeError: Something in it has no form in JSON.
    """
    copy: dict[str, Any] = json.loads(redacted(json.dumps(dict(content))))
    return copy


def _written(manifest: Manifest) -> bytes:
    body = {"format": _FORMAT, **asdict(manifest)}
    return _encoded({"checksum": hashlib.sha256(_encoded(body)).hexdigest(), "manifest": body})


def _encoded(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, sort_keys=True, indent=1) + "\n").encode()
