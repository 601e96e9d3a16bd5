"""The operations that a store on a local disk does without fsspec."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

# Ending of files that are being written; listings leave them out.
PARTIAL = ".partial"


def create(path: str, content: bytes) -> bool:
    """Write a file unless it exists. Readers see it when it is complete.

    Args:
        path: The file.
        content: The content.

    Returns:
        Whether it was written.
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(suffix=PARTIAL, dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        os.link(partial, file)  # unlike a rename it fails if the name is taken
    except FileExistsError:
        return False
    finally:
        Path(partial).unlink()
    return True


def sizes_below(path: str) -> dict[str, int]:
    """Files below a path with their bytes. fsspec would leave out a folder in which a file vanishes meanwhile."""
    sizes = {}
    folders = (
        [(str(Path(path).parent), [], [Path(path).name])]
        if Path(path).is_file()
        else os.walk(path, onerror=_raise_unless_gone)
    )
    for folder, _, files in folders:
        for file in files:
            with suppress(FileNotFoundError):
                if not file.endswith(PARTIAL):
                    sizes[f"{folder}/{file}"] = Path(folder, file).stat().st_size
    return sizes


def _raise_unless_gone(error: OSError) -> None:
    """Raise an error unless a folder is gone: one that may not be read must not look empty."""
    if not isinstance(error, FileNotFoundError):
        raise error


def remove_empty_folders(path: str) -> None:
    """Remove a folder and the folders in it, except those that contain files."""
    folders = sorted((p for p in Path(path).rglob("*") if p.is_dir()), reverse=True)
    for folder in [*folders, Path(path)]:
        with suppress(OSError):  # there is a new file in it, or it was a file itself
            folder.rmdir()
