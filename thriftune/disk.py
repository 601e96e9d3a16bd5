"""What a local disk refuses, as it is full or may not be written to: said with the place, and what was being done."""

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
# safetensors and tokenizers, written in Rust, have no number of an error but in its text.
_IN_TEXT = re.compile(r"\(os error (\d+)\)")
# torch's own file writer, and others, have none at all.
_FULL_TEXTS = (
    "failed writing file", "file write failed", "unexpected pos ", "No space left on device", "Disk quota exceeded",
    "Not enough disk space",  # datasets, before it begins
)  # fmt: skip
_REMEDY = (
    "Free some there, or name a larger disk: THRIFTUNE_OUTPUTS for what a local run makes, TMPDIR for temporary files, "
    "on a cluster THRIFTUNE_DISK_GIB or THRIFTUNE_SCRATCH."
)


class DiskFullError(TransientError):
    """A local disk has no room left.

    Transient although waiting frees nothing here: the next attempt starts on another node, or in a new pod with an
    empty disk, and a training resumes from the newest complete checkpoint. So it is not tried again in place.
    """

    @classmethod
    def at(cls, path: Path, needed: int = 0, what: str = "", why: str = "no space left on the disk") -> Self:
        """The error for a path on the full disk.

        Args:
            path: What could not be written; need not exist.
            needed: Bytes that were to be written there; 0 when unknown.
            what: What was being done, as: saving the model.
            why: What the disk says.
        """
        need = f", and {needed / _GIB:.2f} GiB are needed" if needed else ""
        while_doing = f" while {what}" if what else ""
        free = f"{free_bytes(path)} bytes free{need}"
        return cls(f"{path}: {why} ({free}){while_doing}. {_REMEDY}")


class NotWritableError(UserError):
    """A place on a local disk may not be written to."""

    headline = "A place cannot be written to"
    code = "output-not-writable"


def reason_of(error: BaseException) -> int | None:
    """The number (errno) by which a disk refused something, from an error or what led to it; None: it is another error.

    Args:
        error: Of Python, or of a library that writes by itself.
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
    """Whether an error says that links lead in a circle."""
    return isinstance(error, OSError) and error.errno == errno.ELOOP


@contextmanager
def writing_to(path: Path, what: str, needed: int = 0) -> Iterator[None]:
    """Say of whatever a disk refuses meanwhile where that is, what was being done, and what to do.

    Args:
        path: What is written.
        what: What is being done, as: saving the model.
        needed: Bytes that are to be written; 0 when unknown.

    Raises:
        DiskFullError: The disk is full.
        NotWritableError: It is read-only, or this user may not write there.
    """
    if needed > free_bytes(path):
        raise DiskFullError.at(path, needed, what)
    try:
        yield
    except (TransientError, UserError):  # which say what they are of
        raise
    except Exception as error:  # each library that writes has errors of its own; others go on as they are
        number = reason_of(error)
        if number is None:
            raise
        raise _explained(number, _place_of(error, path, number), what, needed) from error


def refusal(folder: Path, what: str) -> DiskFullError | NotWritableError | None:
    """Try to write into a folder, and leave nothing there.

    Args:
        folder: Need not exist; what it would be made in is tried then.
        what: What is to be written there.
    """
    there = existing(folder)
    try:
        with writing_to(folder, f"looking whether {what} can be written there"):
            if not there.is_dir():
                raise NotADirectoryError(errno.EACCES, f"{there} is no folder", str(there))
            with tempfile.NamedTemporaryFile(dir=there, prefix=".write-check-") as probe:
                probe.write(b"thriftune" * 1000)
    except (DiskFullError, NotWritableError) as error:
        return error
    return None


def free_bytes(path: Path) -> int:
    """Bytes free on the disk of a path, which need not exist yet."""
    while True:
        there = existing(path)
        with suppress(FileNotFoundError):  # another process took it away, or puts another one in its place
            return int(psutil.disk_usage(str(there)).free)


def temporary() -> Path:
    """Where temporary files go."""
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:  # none of the places that Python knows can be written to
        return Path("/tmp")  # noqa: S108


def existing(path: Path) -> Path:
    """A path, or the folder nearest above it that is there."""
    there = path.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    return there


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what it was raised from; not what was tried before in vain."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _place_of(error: BaseException, path: Path, number: int) -> Path:
    """The path that was refused: of a full disk nobody says which, and temporary files may lie on another."""
    for link in _causes(error):
        if isinstance(link, OSError) and link.errno == number and isinstance(link.filename, str):
            # Of a copy the second one is where it goes.
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
        errno.EACCES: f"may not be read or written by this user: permission denied ({what}).",
        errno.EPERM: f"may not be changed by this user: operation not permitted ({what}).",
    }
    return NotWritableError.single(
        "disk", path, why[number], "Let this user write there, or name another place: THRIFTUNE_OUTPUTS, TMPDIR."
    )
