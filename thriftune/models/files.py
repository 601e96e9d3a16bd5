"""The files of a directory that a person names: which of them are taken, where they really are, and copying them.

The taken files are copied into outputs/cache, and uploaded on a cluster. So a link out of the directory is refused: the
person who made the directory may not have had the right to read the file. Snapshot folders in the hub's own cache are
allowed: they link to the blobs next to them.

The copy shares nothing with the original. Hard links would be free, but damage to one would be damage to both. Reading
the directory in place has the same flaw, and a person may write to it while a run reads it again. A file system that
can (Btrfs, XFS) shares the blocks until one of the two is written to; on any other, a model is on the disk twice.
"""

import fcntl
import fnmatch
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

from thriftune.disk import is_circle, writing_to
from thriftune.errors import Problem, UserError
from thriftune.progress import bytes_progress

if TYPE_CHECKING:
    from tqdm import tqdm

# Weights only as safetensors, and the files of a tokenizer and a configuration; no pickles, no other frameworks.
WANTED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.model",
    "*.jinja",
    "*.txt",
    "LICENSE*",
    "*.tiktoken",
)
UNWANTED = (
    "original/*",
    "*.bin",
    "*.pth",
    "*.pt",
    "onnx/*",
    "consolidated*",
    # transformers would put an adapter that lies next to a model on it, and freeze the model.
    "adapter_config.json",
    "adapter_model*",
)
CODE = "*.py"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
TEMPLATES = "additional_chat_templates"  # a folder of named templates, such as the one for rows with tools

_HUB_FOLDERS, _HUB_BLOBS, _HUB_SNAPSHOTS = ("models--*", "datasets--*"), "blobs", "snapshots"
_NO_LINKS = "Put the file itself there; `cp -rL` copies a directory with the files that its links lead to."
_FICLONE = 0x40049409  # linux/fs.h: share the blocks of a file
_CHUNK_BYTES = 1 << 24


def is_wanted(name: str, patterns: Collection[str] = WANTED, unwanted: Collection[str] = UNWANTED) -> bool:
    """Whether a file of a directory is taken.

    Args:
        name: Its path within the directory.
        patterns: Patterns of the files to take.
        unwanted: Patterns of files to leave out even so.
    """
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns) and not any(
        fnmatch.fnmatch(name, pattern) for pattern in unwanted
    )


def files_of(
    directory: Path | str,
    field: str,
    error: type[UserError],
    patterns: Collection[str] = (*WANTED, CODE),
    unwanted: Collection[str] = UNWANTED,
) -> dict[str, Path]:
    """The files of a directory that are taken, and their real paths.

    Args:
        directory: A model or an adapter, as a person names it.
        field: The key that names it, for messages.
        error: The class to raise.
        patterns: Patterns of the files to take.
        unwanted: Patterns of files to leave out even so.

    Returns:
        Paths without links, by the files' names within the directory.

    Raises:
        UserError: As `error`: the directory cannot be read, links in it form a loop, lead to nothing or out of it, or
            something is not a regular file. All problems at once.
    """
    root = real_path(directory, field, error)
    allowed = [root, *_blobs_of(root)]
    found: dict[str, Path] = {}
    problems = []
    try:
        entries = [*root.iterdir(), *_templates_in(root)]
    except OSError as cause:
        raise _unreadable(directory, field, error, cause) from cause
    for path in sorted(entries):
        name = path.relative_to(root).as_posix()
        if not is_wanted(name, patterns, unwanted):
            continue
        place = _place_of(path, allowed)
        if isinstance(place, Path):
            found[name] = place
        elif place:
            problems.append(Problem(field, str(directory), f"{name} {place}.", _NO_LINKS))
    if problems:
        raise error(problems)
    return found


def exists(path: Path) -> bool:
    """Whether a path exists, even as a link that leads nowhere."""
    return path.exists() or path.is_symlink()


def real_path(path: Path | str, field: str, error: type[UserError]) -> Path:
    """The real path behind a path that a person names.

    Args:
        path: The path, as the person writes it.
        field: The key that names it, for the message.
        error: The class to raise.

    Raises:
        UserError: As `error`: its links form a loop or lead to nothing, or it cannot be read.
    """
    try:
        return Path(os.path.realpath(Path(path).expanduser(), strict=True))
    except OSError as cause:
        raise _unreadable(path, field, error, cause) from cause


def copy_files(files: Mapping[str, Path], directory: Path) -> None:
    """Copy files into a directory, so that changes to one never affect the other.

    Args:
        files: The path of each file, by the name to give it.
        directory: Existing directory to write to.

    Raises:
        DiskFullError: The disk has too little space; nothing is copied then.
    """
    left = {name: file for name, file in files.items() if not _is_cloned(file, _ready(directory / name))}
    needed = sum(file.stat().st_size for file in left.values())
    with writing_to(directory, "fetching the base model", needed), bytes_progress(needed, "Copying") as bar:
        for name, file in left.items():
            with file.open("rb") as source, (directory / name).open("wb") as target:
                _copy(source, target, bar)


def _place_of(path: Path, allowed: Sequence[Path]) -> Path | str:
    """The real path of a file, or what is wrong with it, or an empty text for a folder."""
    try:
        place = Path(os.path.realpath(path, strict=True))
    except OSError as cause:
        return _said(cause)
    if place.is_dir():
        return ""
    if not place.is_file():
        return "is not a file, but a pipe, a socket or a device"
    if not any(place.is_relative_to(root) for root in allowed):
        return f"is a link out of the directory, to {place}"
    return place


def _said(cause: OSError) -> str:
    """What is wrong with a path, as the end of a sentence that begins with its name."""
    if isinstance(cause, FileNotFoundError):
        return f"is a link to a missing file ({cause.filename})"
    if isinstance(cause, PermissionError):
        return "cannot be read: permission denied"
    return f"is a link that leads back to itself ({cause.strerror})" if is_circle(cause) else f"({cause.strerror})"


def _unreadable(path: Path | str, field: str, error: type[UserError], cause: OSError) -> UserError:
    is_absent = isinstance(cause, FileNotFoundError)
    if is_absent and not Path(path).expanduser().is_symlink():
        return error.single(field, path, "does not exist or is empty.", "Check the path.", code=error.missing)
    return error.single(field, path, f"{_said(cause)}.", "Check the path.")


def _blobs_of(root: Path) -> Iterator[Path]:
    """The folder with the files of a snapshot in the hub's cache."""
    repository = root.parent.parent
    if root.parent.name == _HUB_SNAPSHOTS and is_wanted(repository.name, _HUB_FOLDERS, ()):
        yield repository / _HUB_BLOBS


def _templates_in(root: Path) -> Iterator[Path]:
    folder = root / TEMPLATES
    if folder.is_dir():
        yield from folder.iterdir()


def _ready(target: Path) -> Path:
    target.parent.mkdir(exist_ok=True)
    return target


def _is_cloned(source: Path, target: Path) -> bool:
    """Copy a file by sharing its blocks, if the file system can."""
    with source.open("rb") as held, target.open("wb") as made:
        try:
            fcntl.ioctl(made.fileno(), _FICLONE, held.fileno())
        except OSError:
            return False
    return True


def _copy(source: IO[bytes], target: IO[bytes], bar: "tqdm[None]") -> None:
    while chunk := source.read(_CHUNK_BYTES):
        target.write(chunk)
        bar.update(len(chunk))
