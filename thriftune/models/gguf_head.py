"""The head of a GGUF file in a store: all but its weights, which a plan and a preflight do without.

The head ends where the list of tensors does, and nothing in the file says where that is. So it is walked through while
it arrives. What is wrong with it is left to the library that reads it: the file made here begins as the real one does.
"""

import logging
from contextlib import suppress
from pathlib import Path
from typing import IO, Literal

from thriftune.disk import writing_to
from thriftune.errors import ModelSourceError
from thriftune.stores import failures, remote, transfer

logger = logging.getLogger(__name__)

_FIELD = "model.source"
_BLOCK_BYTES = 1 << 20
# A vocabulary of 300,000 tokens with its merges takes 20 MB.
_MOST_BYTES = 1 << 28
_MAGIC = b"GGUF"
# Bytes of the values that have a fixed length, by their type's number; then those of strings and lists.
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_STRING, _LIST = 8, 9


class _NoHeadError(ValueError):
    """It ends too early, is too long, or is none."""


def fetch(url: str, folder: Path) -> Path:
    """Bring the head of a GGUF file to this disk, in a file of the real one's size with a hole in place of the weights.

    Args:
        url: The file.
        folder: Folder to put it in.

    Returns:
        The file, which takes only the space of the head.

    Raises:
        ModelSourceError: There is no such file, or access is denied.
        TransientError: The store did not answer.
    """
    file = folder / "model.gguf"
    what = "fetching the head of a GGUF file"
    with failures.explained(_FIELD, url, ModelSourceError), remote.reading(url) as (stream, size):
        head = _Head(stream)
        with suppress(_NoHeadError, RecursionError):
            _walk(head)
        if size is None:  # a server that does not say it
            logger.info("%s: its size is not known, so all of it is downloaded", url)
            with writing_to(file, what):
                transfer.fetch(url, file)
            return file
        with writing_to(file, what), file.open("wb") as made:
            made.write(head.held)
            made.truncate(size)
    logger.info("%s: read %.1f MB of %.1f", url, len(head.held) / 1e6, size / 1e6)
    return file


class _Head:
    """The start of a file, read as far as it is asked for: what was read, and where the next value starts."""

    def __init__(self, stream: IO[bytes]) -> None:
        """Begin at the start.

        Args:
            stream: The file.
        """
        self.held, self.at = bytearray(), 0
        self.order: Literal["little", "big"] = "little"
        self._stream = stream

    def number(self, width: int) -> int:
        """The next number, of so many bytes."""
        start = self.at
        self.skip(width)
        return int.from_bytes(self.held[start : self.at], self.order)

    def skip(self, count: int) -> None:
        """Go on by so many bytes, which are then held.

        Args:
            count: Number of bytes.

        Raises:
            _NoHeadError: The file ends before, or no head is that long.
        """
        self.at += count
        if self.at > _MOST_BYTES:
            raise _NoHeadError
        while len(self.held) < self.at:
            arrived = self._stream.read(_BLOCK_BYTES)
            if not arrived:
                raise _NoHeadError
            self.held += arrived


def _walk(head: _Head) -> None:
    """Go to the end of the list of tensors.

    Raises:
        _NoHeadError: There is no such end.
    """
    head.skip(len(_MAGIC) + 4)
    if not head.held.startswith(_MAGIC):
        raise _NoHeadError
    if not any(head.held[4:6]):  # the version, a small number
        head.order = "big"
    tensors, pairs = head.number(8), head.number(8)
    for _ in range(pairs):
        head.skip(head.number(8))
        _skip_value(head, head.number(4))
    for _ in range(tensors):
        head.skip(head.number(8))
        dimensions = head.number(4)
        head.skip(8 * dimensions + 4 + 8)


def _skip_value(head: _Head, kind: int) -> None:
    if kind in _WIDTHS:
        head.skip(_WIDTHS[kind])
    elif kind == _STRING:
        head.skip(head.number(8))
    elif kind == _LIST:
        inner, count = head.number(4), head.number(8)
        if inner in _WIDTHS:
            head.skip(_WIDTHS[inner] * count)
            return
        for _ in range(count):
            _skip_value(head, inner)
    else:
        raise _NoHeadError
