"""The files on this disk that match a path or a glob."""

import glob
from collections.abc import Iterable
from pathlib import Path

from thriftune.disk import is_circle
from thriftune.errors import DataError


def matching(source: str) -> list[str]:
    """The files that match a path or a glob, in a fixed order; none if there are none.

    Args:
        source: The source as in the configuration.

    Raises:
        DataError: Links among them form a loop: a glob with ** would find the files behind it about forty times.
    """
    place = Path(source).expanduser()
    # As a glob, a file name with [brackets] need not match itself.
    is_named = place.is_symlink() or place.is_file()
    found = [place] if is_named else [Path(path) for path in glob.glob(str(place), recursive=True)]
    circle = next((path for path in found if _is_circle(path)), None) or (None if is_named else _leading_up(found))
    if circle is not None:
        message = f"{circle} is a link that leads back to itself."
        raise DataError.single("data.source", source, message, "Remove the link, or name the files in another way.")
    return sorted(str(path) for path in found if path.is_file())


def _is_circle(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        return is_circle(error)
    return False


def _leading_up(found: Iterable[Path]) -> Path | None:
    """A link on the way to one of the files that leads to a folder above itself."""
    folders = {folder for path in found for folder in path.parents}
    return next((f for f in sorted(folders) if f.is_symlink() and f.parent.resolve().is_relative_to(f.resolve())), None)
