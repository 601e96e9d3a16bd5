"""The files on this disk that a path or a glob stands for."""

import glob
from collections.abc import Iterable
from pathlib import Path

from thriftune.disk import is_circle
from thriftune.errors import DataError


def matching(source: str) -> list[str]:
    """The files that a path or a glob stands for, in a fixed order; none where there are none.

    Args:
        source: As in the configuration.

    Raises:
        DataError: Links among them lead in a circle: a glob with ** would find the files behind one some forty times.
    """
    place = Path(source).expanduser()
    # With [brackets] in it, a file need not match its own name.
    is_named = place.is_symlink() or place.is_file()
    found = [place] if is_named else [Path(path) for path in glob.glob(str(place), recursive=True)]
    circle = next((path for path in found if _is_circle(path)), None) or (None if is_named else _leading_up(found))
    if circle is not None:
        message = f"{circle} is a link that leads in a circle."
        raise DataError.single("data.source", source, message, "Take the link away, or name the files otherwise.")
    return sorted(str(path) for path in found if path.is_file())


def _is_circle(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        return is_circle(error)
    return False


def _leading_up(found: Iterable[Path]) -> Path | None:
    """A link on the way to one of the files that leads to a folder that it lies in."""
    folders = {folder for path in found for folder in path.parents}
    return next((f for f in sorted(folders) if f.is_symlink() and f.parent.resolve().is_relative_to(f.resolve())), None)
