"""What a store on a local disk does otherwise than through fsspec."""

import os
from contextlib import suppress
from pathlib import Path

# Ending of files that are being written; they are in no listing.
PARTIAL = ".partial"


def sizes_below(path: str) -> dict[str, int]:
    """Files below a path. fsspec leaves out a whole folder when one file in it vanishes while it looks."""
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
    """A folder that may not be read must not look empty."""
    if not isinstance(error, FileNotFoundError):
        raise error


def remove_empty_folders(path: str) -> None:
    """Remove a folder and those in it, as far as no file is in them."""
    folders = sorted((p for p in Path(path).rglob("*") if p.is_dir()), reverse=True)
    for folder in [*folders, Path(path)]:
        with suppress(OSError):  # something new is in it, or it was a file
            folder.rmdir()
