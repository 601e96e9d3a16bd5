"""The files of a directory that a person names: which of them are taken, where they really lie, and copies of them.

What is taken is copied into outputs/cache, and on a cluster uploaded. So a link out of the directory is refused: who
made the directory need not be who may read the file. Folders of the hub's own cache are links to the blobs beside them.

The copy shares nothing with what it was made of. Hard links would cost nothing, and damage to one would be damage to
both; so would reading the directory where it is, which a person may also write to while a run reads it again. A file
system that can (Btrfs, XFS) shares the blocks until one of the two is written to; on any other, a model is on the disk
twice.
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

# Weights as safetensors only, and what a tokenizer and a configuration consist of; no pickles, no other frameworks.
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
    # transformers would put an adapter that lies beside a model on it, and freeze the model.
    "adapter_config.json",
    "adapter_model*",
)
CODE = "*.py"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
TEMPLATES = "additional_chat_templates"  # a folder of named templates, such as the one for rows with tools

_HUB_FOLDERS, _HUB_BLOBS, _HUB_SNAPSHOTS = ("models--*", "datasets--*"), "blobs", "snapshots"
_NO_LINKS = "Put the file itself in its place; `cp -rL` copies a directory with what its links lead to."
_FICLONE = 0x40049409  # linux/fs.h: share the blocks of a file
_CHUNK_BYTES = 1 << 24


def is_wanted(name: str, patterns: Collection[str] = WANTED, unwanted: Collection[str] = UNWANTED) -> bool:
    """Whether a file belongs to what is taken of a directory.

    Args:
        name: Its path within it.
        patterns: Of what is taken.
        unwanted: Of what is left out all the same.
    """
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns) and not any(
        fnmatch.fnmatch(name, pattern) for pattern in unwanted
    )


def files_of(
    directory: Path,
    field: str,
    error: type[UserError],
    patterns: Collection[str] = (*WANTED, CODE),
    unwanted: Collection[str] = UNWANTED,
) -> dict[str, Path]:
    """The files of a directory that are taken, and where each of them really lies.

    Args:
        directory: A model or an adapter.
        field: What names it, for messages.
        error: What is raised.
        patterns: Of what is taken.
        unwanted: Of what is left out all the same.

    Returns:
        Paths without links, by their names within the directory.

    Raises:
        UserError: As `error`: the directory cannot be read; or links in it lead in a circle, to nothing, or out of it,
            or what bears the name of a file is none. All of them at once.
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
    """Whether something bears a name, be it a link that leads nowhere."""
    return path.exists() or path.is_symlink()


def real_path(path: Path, field: str, error: type[UserError]) -> Path:
    """Where a path that a person names leads to.

    Args:
        path: The path.
        field: What names it, for the message.
        error: What is raised.

    Raises:
        UserError: As `error`: its links lead in a circle, or to nothing, or it may not be looked at.
    """
    try:
        return Path(os.path.realpath(path, strict=True))
    except OSError as cause:
        raise _unreadable(path, field, error, cause) from cause


def copy_files(files: Mapping[str, Path], directory: Path) -> None:
    """Copy files into a directory, so that nothing that happens to one happens to the other.

    Args:
        files: Where each lies, by the name to give it.
        directory: Where to; it is there.

    Raises:
        DiskFullError: The disk has no room; nothing is copied then.
    """
    left = {name: file for name, file in files.items() if not _is_cloned(file, _ready(directory / name))}
    needed = sum(file.stat().st_size for file in left.values())
    with writing_to(directory, "fetching the base model", needed), bytes_progress(needed, "Copying") as bar:
        for name, file in left.items():
            with file.open("rb") as source, (directory / name).open("wb") as target:
                _copy(source, target, bar)


def _place_of(path: Path, allowed: Sequence[Path]) -> Path | str:
    """Where a file really lies; or what is wrong with it; or an empty text for a folder."""
    try:
        place = Path(os.path.realpath(path, strict=True))
    except OSError as cause:
        return _said(cause)
    if place.is_dir():
        return ""
    if not place.is_file():
        return "is no file, but a pipe, a socket or a device"
    if not any(place.is_relative_to(root) for root in allowed):
        return f"is a link out of the directory, to {place}"
    return place


def _said(cause: OSError) -> str:
    """What is wrong with a path, as a sentence goes on after its name."""
    if isinstance(cause, FileNotFoundError):
        return f"is a link to what is not there ({cause.filename})"
    if isinstance(cause, PermissionError):
        return "may not be read"
    return f"is a link that leads in a circle ({cause.strerror})" if is_circle(cause) else f"({cause.strerror})"


def _unreadable(path: Path, field: str, error: type[UserError], cause: OSError) -> UserError:
    is_absent = isinstance(cause, FileNotFoundError)
    if is_absent and not path.is_symlink():
        return error.single(field, path, "does not exist or is empty.", "Check the path.", code=error.missing)
    return error.single(field, path, f"{_said(cause)}.", "Check the path.")


def _blobs_of(root: Path) -> Iterator[Path]:
    """Where the files of a snapshot in the hub's cache lie."""
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
    """Copy a file without its bytes, where the file system can."""
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
