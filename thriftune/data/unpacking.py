"""Opening files, compressed or not; a file that expands too much is refused before it is read to its end."""

import gzip
import io
from pathlib import Path
from typing import IO, Any

from thriftune.limits import EXPANSION, EXPANSION_FREE_BYTES


class ExpandsTooMuchError(OSError):
    """A small file made to fill memory, disk or time."""


def open_binary(file: Path) -> IO[bytes]:
    """Open a file, unpacking .gz and .zst.

    Args:
        file: A local file.

    Returns:
        A buffered stream; reading it raises `ExpandsTooMuchError` beyond `EXPANSION` times the size of the file.
    """
    if file.suffix.lower() == ".gz":
        return _limited(gzip.open(file, "rb"), file)
    if file.suffix.lower() == ".zst":
        import pyarrow as pa

        # Arrow can read it and is installed anyway; Python 3.11 and fsspec would need another package.
        return _limited(pa.CompressedInputStream(str(file), "zstd"), file)
    return file.open("rb")


def open_text(file: Path) -> io.TextIOWrapper:
    """Open a file as text with unchanged line breaks. Bytes that are not UTF-8 become surrogates, refused in rows.

    Args:
        file: A local file, as for `open_binary`.
    """
    return io.TextIOWrapper(open_binary(file), encoding="utf-8-sig", errors="surrogateescape", newline="")


def require_plausible(packed: int, unpacked: int) -> None:
    """Refuse content that expands too much.

    Args:
        packed: Size of the file in bytes.
        unpacked: Bytes unpacked so far.

    Raises:
        ExpandsTooMuchError: It expands too much.
    """
    if unpacked > max(EXPANSION_FREE_BYTES, EXPANSION * packed):
        raise ExpandsTooMuchError(
            f"it unpacks to more than {EXPANSION} times its size, {packed:,} bytes; if that is right, unpack it first"
        )


def _limited(stream: Any, file: Path) -> IO[bytes]:
    return io.BufferedReader(_Limited(stream, file.stat().st_size), _BUFFER_BYTES)


_BUFFER_BYTES = 1 << 18


class _Limited(io.RawIOBase):
    """A stream with a count of the bytes it unpacks."""

    def __init__(self, stream: Any, packed: int) -> None:
        self._stream, self._packed, self._unpacked = stream, packed, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read = self._stream.read(len(buffer))
        buffer[: len(read)] = read
        self._unpacked += len(read)
        require_plausible(self._packed, self._unpacked)
        return len(read)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()
