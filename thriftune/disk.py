"""Errors of a local disk that is full or not writable, with the path and what was being done."""

import errno
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import psutil

from thriftune.errors import TransientError, UserError

_GIB = 2**30
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
# safetensors and tokenizers, written in Rust, give the error number only in the text.
_IN_TEXT = re.compile(r"\(os error (\d+)\)")
# torch's own file writer, and others, give none at all.
_FULL_TEXTS = (
    "failed writing file", "file write failed", "unexpected pos ", "No space left on device", "Disk quota exceeded",
    "Not enough disk space",  # datasets, before it starts
)  # fmt: skip
_REMEDY = (
    "Free space there, or name a larger disk: THRIFTUNE_OUTPUTS for results of local runs, TMPDIR for temporary files, "
    "on a cluster THRIFTUNE_DISK_GIB or THRIFTUNE_SCRATCH."
)


class DiskFullError(TransientError):
    """A local disk has no space left.

    Transient although waiting frees nothing here: the next attempt starts on another node, or in a new pod with an
    empty disk, and a training resumes from the newest complete checkpoint. So it is not retried in the same pod.
    """

    @classmethod
    def at(cls, path: Path, needed: int = 0, what: str = "", why: str = "no space left on the disk") -> Self:
        """The error for a path on the full disk.

        Args:
            path: The path that could not be written; need not exist.
            needed: Bytes to write there; 0 when unknown.
            what: What was being done, for example: saving the model.
            why: The disk's reason.
        """
        need = f", and {needed / _GIB:.2f} GiB are needed" if needed else ""
        while_doing = f" while {what}" if what else ""
        free = f"{free_bytes(path)} bytes free{need}"
        return cls(f"{path}: {why} ({free}){while_doing}. {_REMEDY}")


class NotWritableError(UserError):
    """A path on a local disk is not writable."""

    headline = "A path cannot be written to"
    code = "output-not-writable"


def reason_of(error: BaseException) -> int | None:
    """The errno of a disk's refusal, from an error or its causes; None for any other error.

    Args:
        error: Raised by Python, or by a library that writes by itself.
    """
    for link in _causes(error):
        number = getattr(link, "errno", None) if isinstance(link, OSError) else None
        text = str(link)
        if number is None and (told := _IN_TEXT.search(text)):
            number = int(told[1])
        if number in (*_FULL, *_FORBIDDEN):
            return int(number)
        if number is None and any(part in text for part in _FULL_TEXTS):
            return errno.ENOSPC
    return None


def is_full(error: BaseException) -> bool:
    """Whether an error says that a disk is full."""
    return reason_of(error) in _FULL


def is_circle(error: BaseException | None) -> bool:
    """Whether an error says that symbolic links form a loop."""
    return isinstance(error, OSError) and error.errno == errno.ELOOP


@contextmanager
def writing_to(path: Path, what: str, needed: int = 0) -> Iterator[None]:
    """Explain a disk's refusal during the block: the path, what was being done, and what to do.

    Args:
        path: What is being written.
        what: What is being done, for example: saving the model.
        needed: Bytes that will be written; 0 when unknown.

    Raises:
        DiskFullError: The disk is full.
        NotWritableError: It is read-only, or this user may not write there.
    """
    if needed > free_bytes(path):
        raise DiskFullError.at(path, needed, what)
    try:
        yield
    except (TransientError, UserError):  # these already say what they are about
        raise
    except Exception as error:  # each library that writes has its own errors; others are raised unchanged
        number = reason_of(error)
        if number is None:
            raise
        raise _explained(number, _place_of(error, path, number), what, needed) from error


def refusal(folder: Path, what: str) -> DiskFullError | NotWritableError | None:
    """Try to write into a folder, and leave nothing behind. Returns the error, or None.

    Args:
        folder: If it does not exist, the nearest existing folder above it is tried.
        what: What will be written there.
    """
    there = existing(folder)
    try:
        with writing_to(folder, f"looking whether {what} can be written there"):
            if not there.is_dir():
                raise NotADirectoryError(errno.EACCES, f"{there} is not a folder", str(there))
            with tempfile.NamedTemporaryFile(dir=there, prefix=".write-check-") as probe:
                probe.write(b"thriftune" * 1000)
    except (DiskFullError, NotWritableError) as error:
        return error
    return None


def free_bytes(path: Path) -> int:
    """Bytes free on the disk of a path, which need not exist yet."""
    while True:
        there = existing(path)
        with suppress(FileNotFoundError):  # another process removed it, or is replacing it
            return int(psutil.disk_usage(str(there)).free)


def temporary() -> Path:
    """The folder for temporary files."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:  # Python can write to none of the folders it knows
        return Path("/tmp")  # noqa: S108


def existing(path: Path) -> Path:
    """A path, or the nearest folder above it that exists."""
    there = path.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    return there


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from; not errors that were being handled at the time."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _place_of(error: BaseException, path: Path, number: int) -> Path:
    """The path that was refused: no error names the full disk, and temporary files may lie on another one."""
    for link in _causes(error):
        if isinstance(link, OSError) and link.errno == number and isinstance(link.filename, str):
            # For a copy, the second file name is the destination.
            return Path(link.filename2 if isinstance(link.filename2, str) else link.filename)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return min((path, temporary()), key=free_bytes)
    return path


def _explained(number: int, path: Path, what: str, needed: int) -> DiskFullError | NotWritableError:
    if number == errno.EFBIG:
        return DiskFullError.at(path, needed, what, "a file became larger than this disk or this process allows")
    if number in _FULL:
        return DiskFullError.at(path, needed, what)
    why = {
        errno.EROFS: f"is on a read-only file system ({what}).",
        errno.EACCES: f"cannot be read or written by this user: permission denied ({what}).",
        errno.EPERM: f"cannot be changed by this user: operation not permitted ({what}).",
    }
    return NotWritableError.single(
        "disk", path, why[number], "Let this user write there, or name another folder: THRIFTUNE_OUTPUTS, TMPDIR."
    )
