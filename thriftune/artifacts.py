"""Output directories that are complete or absent: written next to the final path, renamed once complete."""

import errno
import hashlib
import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from thriftune import digests, scratch
from thriftune.disk import writing_to
from thriftune.errors import UserError
from thriftune.redaction import redacted

MANIFEST = "manifest.json"
_PARTIAL = ".partial"
_LEFT = f"*.{scratch.RANDOM}{_PARTIAL}"
# Keys that `write_manifest` adds to the content it is given.
_ADDED = ("kind", "versions", "git_commit", "files")
# The libraries that decide a run's numbers; all others are in the lock file of the commit.
_VERSIONS_OF = ("torch", "transformers", "peft", "bitsandbytes", "deepspeed", "datasets", "accelerate", "flytekit")


@contextmanager
def writing(directory: Path, what: str, needed: int = 0) -> Iterator[Path]:
    """Write an output directory: it appears under its name only when the block ends without an error.

    Args:
        directory: Final path. An older directory there is replaced at the end.
        what: What is being done, for the message when the disk refuses it, for example: saving the model.
        needed: Bytes that will be written; 0 when unknown.

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
    scratch.remove_left(directory.parent.glob(_LEFT))
    # A unique name: two runs that make the same thing at once must not write into each other's folder.
    with scratch.new_folder(directory.parent, f"{directory.name}.", _PARTIAL) as partial:
        yield partial
        if not (partial / MANIFEST).is_file():
            raise RuntimeError(f"{partial} has no {MANIFEST}: the block must write the manifest last.")
        partial.chmod(0o755)  # new_folder made it for its owner only
        _put_in_place(partial, directory)


def unfinished(outputs: Path) -> list[Path]:
    """The partial folders that runs write, or wrote when they were killed, in the cache and in each run's own folder.

    Args:
        outputs: The folder that all local runs write to.
    """
    return [*outputs.glob(f"*/{_LEFT}"), *outputs.glob(f"*/*/{_LEFT}")]


def _put_in_place(made: Path, directory: Path) -> None:
    """Rename a directory to its final name, while other processes may do the same with theirs."""
    while True:
        try:
            made.rename(directory)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        # Moved aside, not removed in place, because removing takes long: readers find the old or the new one at nearly
        # any moment.
        aside = scratch.new_folder(directory.parent, f"{directory.name}.", _PARTIAL)
        with aside as folder, suppress(FileNotFoundError):  # another process moved it away
            directory.rename(folder / "older")


def write_text(file: Path, text: str) -> None:
    """Write a text about a run without the secrets it may hold, as URLs and messages do.

    Every such file goes through this: reports, pages, manifests, cards. A test looks for code that writes another way.

    Args:
        file: The file to write.
        text: Any text.
    """
    file.write_text(redacted(text), encoding="utf-8", errors="backslashreplace")


def write_manifest(directory: Path, kind: str, content: Mapping[str, Any], *, checksums: bool = True) -> None:
    """Write `manifest.json`: what this directory is, how it was made, and which files it holds.

    Args:
        directory: The directory, with its other files already written.
        kind: What it holds: model, adapter, dataset ...
        content: Configuration, fingerprints, metrics. Secrets in it are removed.
        checksums: Whether to record checksums, which reads every file; else damage can be found by size alone.
    """
    manifest = {"kind": kind, **content, "versions": versions(), "git_commit": git_commit()}
    _write_manifest(directory, {**manifest, "files": _files(directory, checksums=checksums)})


def change_manifest(directory: Path, content: Mapping[str, Any]) -> None:
    """Put other content into the manifest of a finished directory: its files, and what made them, stay as they are.

    Args:
        directory: The directory.
        content: What takes the place of the content of the same names. Secrets in it are removed.

    Raises:
        UserError: There is no manifest, or it is damaged.
    """
    _write_manifest(directory, {**read_manifest(directory), **content})


def _write_manifest(directory: Path, content: Mapping[str, Any]) -> None:
    manifest = json.loads(redacted(json.dumps(content)))
    manifest["checksum"] = _checksum(manifest)
    # Not with `write_text`: anything more that it removed would no longer match the checksum.
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a finished directory.

    Args:
        directory: The directory.

    Raises:
        UserError: It is missing, so the directory is not a finished output of this package; or it is damaged.
    """
    file = directory / MANIFEST
    if not file.is_file():
        raise UserError.single(
            "directory",
            directory,
            f"has no {MANIFEST}: it was deleted, or it is not a finished output of this package.",
            "Run the step that makes it again.",
        )
    try:
        content = file.read_bytes()
    except OSError:
        content = b""
    return parsed_manifest(content, directory)


def parsed_manifest(content: bytes, directory: Path | str) -> dict[str, Any]:
    """The manifest in a file's content.

    Args:
        content: What the file holds.
        directory: Path or URL of its directory, for the message.

    Raises:
        UserError: It is damaged.
    """
    try:
        manifest: dict[str, Any] = json.loads(content)
        is_whole = manifest.pop("checksum", None) in (None, _checksum(manifest))
    except (ValueError, AttributeError, TypeError, RecursionError):
        is_whole = False
    if not is_whole:
        raise UserError.single(
            "directory", directory, f"{MANIFEST} is not what was written.", "Run the step that makes it again."
        )
    return manifest


def digests_of(directory: Path) -> dict[str, str]:
    """The checksums that a directory's manifest records, by file; none for a directory that has no sound one."""
    try:
        recorded = read_manifest(directory).get("files", {})
        return {str(name): str(entry["sha256"]) for name, entry in recorded.items() if entry.get("sha256")}
    except (UserError, AttributeError, KeyError, TypeError):
        return {}


def read_content(directory: Path) -> dict[str, Any]:
    """The content that `write_manifest` was given, to pass on to a directory made from this one."""
    return {key: value for key, value in read_manifest(directory).items() if key not in _ADDED}


def source_version(model_dir: Path) -> str:
    """The version of its source that a fetched model has; empty for a directory that this package did not fetch."""
    return str(read_manifest(model_dir).get("source_version", "")) if is_whole(model_dir) else ""


def is_whole(directory: Path) -> bool:
    """Whether a directory was finished."""
    return (directory / MANIFEST).is_file()


def key_of(*parts: str) -> str:
    """A short name for several texts, equal only when all of them are equal."""
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


def _files(directory: Path, *, checksums: bool) -> dict[str, dict[str, Any]]:
    """Size and checksum of every file of a directory except the manifest."""
    files = sorted(file for file in directory.rglob("*") if file.is_file() and file != directory / MANIFEST)
    names = [file.relative_to(directory).as_posix() for file in files]
    found = digests.checksums(directory, names) if checksums else [""] * len(names)
    sizes = [file.stat().st_size for file in files]
    if failed := next((error for error in found if isinstance(error, OSError)), None):
        raise failed
    return {name: {"size": size, "sha256": digest} for name, size, digest in zip(names, sizes, found, strict=True)}


def _checksum(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
