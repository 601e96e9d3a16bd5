"""Output directories that are whole or not there: written beside their place, and renamed once a manifest is in."""

import errno
import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from thriftune.disk import writing_to
from thriftune.errors import UserError
from thriftune.redaction import redacted

MANIFEST = "manifest.json"
_PARTIAL = ".partial"
# What every manifest says besides what it is given.
_ADDED = ("kind", "versions", "git_commit")
# What decides the numbers of a run; anything else is in the lock file of the commit.
_VERSIONS_OF = ("torch", "transformers", "peft", "bitsandbytes", "deepspeed", "datasets", "accelerate", "flytekit")


@contextmanager
def writing(directory: Path, what: str, needed: int = 0) -> Iterator[Path]:
    """Write an output directory: it appears under its name only when the block ends without an error.

    Args:
        directory: Final place. An older directory there is replaced at the end.
        what: What is being done, for the message when the disk refuses it, as: saving the model.
        needed: Bytes that are to be written; 0 when unknown.

    Yields:
        An empty directory to write into.

    Raises:
        DiskFullError: The disk is full.
        NotWritableError: This user may not write there.
        RuntimeError: The block ended without writing a manifest.
    """
    with writing_to(directory, what, needed):
        yield from _written_whole(directory)


def _written_whole(directory: Path) -> Iterator[Path]:
    directory.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own: two runs that make the same thing at once must not write into each other's.
    partial = Path(tempfile.mkdtemp(prefix=f"{directory.name}.", suffix=_PARTIAL, dir=directory.parent))
    try:
        yield partial
        if not (partial / MANIFEST).is_file():
            raise RuntimeError(f"{partial} has no {MANIFEST}: who writes a directory also writes its manifest, last.")
        partial.chmod(0o755)  # mkdtemp's directories are for their owner only
        _put_in_place(partial, directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(made: Path, directory: Path) -> None:
    """Rename a directory to its final name, where others may be doing the same with what they made."""
    while True:
        try:
            made.rename(directory)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        # Whoever reads the older one finds it, or the new one, at nearly any moment; and removing takes long.
        aside = Path(tempfile.mkdtemp(prefix=f"{directory.name}.", suffix=_PARTIAL, dir=directory.parent))
        with suppress(FileNotFoundError):  # another one took it away
            directory.rename(aside / "older")
        shutil.rmtree(aside)


def write_text(file: Path, text: str) -> None:
    """Write a text that says something of a run, without the secrets that it may hold: they lie in places and messages.

    Every such file is written by this: reports, pages, manifests, cards. A test looks for others that write.

    Args:
        file: Where to.
        text: Of any kind.
    """
    file.write_text(redacted(text), encoding="utf-8", errors="backslashreplace")


def write_manifest(directory: Path, kind: str, content: Mapping[str, Any]) -> None:
    """Write `manifest.json`: what this directory is and how it came to be.

    Args:
        directory: Where the other files already are.
        kind: What it holds: model, adapter, dataset ...
        content: Configuration, fingerprints, metrics. Secrets in it are taken out.
    """
    manifest = {"kind": kind, **content, "versions": versions(), "git_commit": git_commit()}
    write_text(directory / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a finished directory.

    Raises:
        UserError: There is none, so the directory is not a finished output of this package.
    """
    file = directory / MANIFEST
    if not file.is_file():
        raise UserError.single(
            "directory",
            directory,
            f"has no {MANIFEST}: it was deleted, or it is not a finished output of this package.",
            "Run the step that makes it again.",
        )
    manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return manifest


def read_content(directory: Path) -> dict[str, Any]:
    """What `write_manifest` was given for a finished directory, to hand on to one that is made of it."""
    return {key: value for key, value in read_manifest(directory).items() if key not in _ADDED}


def source_version(model_dir: Path) -> str:
    """Which version of its source a fetched model is; empty for a directory that this package did not fetch."""
    return str(read_manifest(model_dir).get("source_version", "")) if is_whole(model_dir) else ""


def is_whole(directory: Path) -> bool:
    """Whether a directory was finished."""
    return (directory / MANIFEST).is_file()


def key_of(*parts: str) -> str:
    """A short name for a combination of texts, equal only when all of them are."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """Versions of the libraries that decide a run's numbers."""
    installed = {}
    for name in _VERSIONS_OF:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed


def git_commit() -> str | None:
    """The commit of this checkout, or None outside one (in a pod, where the code came as an archive)."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    result = subprocess.run(
        ["git", "-C", str(root), "rev-parse", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return result.stdout.strip() or None
