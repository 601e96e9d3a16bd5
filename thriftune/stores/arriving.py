"""A file that arrives on this disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from thriftune.disk import DiskFullError, free_bytes
from thriftune.stores.local_files import PARTIAL
from thriftune.stores.meter import Meter


class ChangedError(Exception):
    """A file changed while it was moved, or did not arrive as it was sent."""


def expect(size: int, file: Path, meter: Meter) -> None:
    """See that there is room for a file whose size was not known.

    Args:
        size: Its bytes.
        file: Where it will be.
        meter: What counts.

    Raises:
        DiskFullError: There is none.
    """
    if not meter.total:
        meter.total = size
        if size > free_bytes(file):
            raise DiskFullError.at(file, size, "fetching a file")


@contextmanager
def partial_of(file: Path) -> Iterator[Path]:
    """A file to write to, which gets the other's name if nothing went wrong, and else is removed.

    Args:
        file: The other.

    Yields:
        The file to write to.
    """
    partial = file.with_name(file.name + PARTIAL)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
