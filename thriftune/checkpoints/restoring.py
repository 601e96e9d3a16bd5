"""Finding the newest complete checkpoint, and bringing it to this disk only if every byte is right."""

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from thriftune.checkpoints import layout
from thriftune.checkpoints.manifest import FileEntry, Manifest
from thriftune.checkpoints.store import Store
from thriftune.digests import sha256_of
from thriftune.disk import DiskFullError, free_bytes

logger = logging.getLogger(__name__)


def complete(stores: Sequence[Store]) -> list[tuple[Store, Manifest]]:
    """Checkpoints that have a manifest, newest step first; of the same step, that of the newest attempt first.

    Those that are newer than all of these and have none, or a damaged one, are logged. Files are not looked at:
    `verify_and_fetch` does that.

    Nodes that ask at different times may be answered differently: with several, one asks and tells the others.

    Args:
        stores: Prefixes, that of the newest attempt first.

    Raises:
        TransientError: A store does not answer. Nothing is left out for that reason: training would begin anew.
    """
    found, problems = _look(stores)
    newest = found[0][1].step if found else -1
    _warn([problem for step, problem in problems if step > newest])
    return found


def incomplete(stores: Sequence[Store]) -> list[str]:
    """Why checkpoints have no manifest, or a damaged one, newest first.

    Args:
        stores: Prefixes.

    Raises:
        TransientError: A store does not answer.
    """
    return [problem for _, problem in _look(stores)[1]]


def wrong_sizes(store: Store, manifest: Manifest) -> list[str]:
    """What the store's listing alone tells of the files of a checkpoint: which are missing, or not whole.

    Args:
        store: Where it is.
        manifest: What it consists of.

    Raises:
        TransientError: The store does not answer.
    """
    return _wrong_sizes(store, manifest.step, manifest.files)


def verify_and_fetch(
    store: Store,
    manifest: Manifest,
    destination: Path,
    wanted: Callable[[str], bool] = lambda _: True,
    local: Path | None = None,
) -> list[str]:
    """Bring the wanted files of one checkpoint to this disk, each checked for size and checksum.

    The nodes of a job agree by each calling this for the same candidate and going on to the next one together if the
    gathered problems of all are not empty.

    Args:
        store: Where the checkpoint is.
        manifest: What it consists of.
        destination: Directory for the files; those that are already there and right are left.
        wanted: Says which names this node needs.
        local: Where files of it may already lie on this disk, under their names or in `checkpoint-<step>`. They are
            hard-linked: whoever writes into `destination` later changes them too.

    Returns:
        What is wrong with it; empty when all is fine. It ends at the first damaged content.

    Raises:
        DiskFullError: The disk has no room for it.
        TransientError: The store does not answer.
    """
    entries = manifest.chosen(wanted)
    if problems := _wrong_sizes(store, manifest.step, entries):
        return problems
    places = [] if local is None else [local / layout.checkpoint_name(manifest.step), local]
    absent = [entry for entry in entries if not _is_here(entry, destination, places)]
    if (needed := sum(entry.size for entry in absent)) > free_bytes(destination):
        raise DiskFullError.at(destination, needed, "fetching a checkpoint")
    for entry in absent:
        if problem := _fetch(store, manifest.step, entry, destination):
            return [problem]
    return []


def _look(stores: Sequence[Store]) -> tuple[list[tuple[Store, Manifest]], list[tuple[int, str]]]:
    """Checkpoints with a readable manifest, and what is wrong with each of the others, newest first."""
    found, problems = [], []
    for store in stores:
        for step in sorted({s for name in store.names() if (s := layout.step_of(name)) is not None}, reverse=True):
            data = store.get_bytes(layout.manifest_name(step))
            where = f"{store.prefix}/{layout.checkpoint_name(step)}"
            if data is None:
                problems.append((step, f"{where} has no manifest.json: it was never uploaded to its end."))
                continue
            try:
                manifest = Manifest.from_bytes(data)
                if manifest.step != step:
                    raise ValueError(f"Its manifest is of step {manifest.step}.")
                found.append((store, manifest))
            except ValueError as error:
                problems.append((step, f"{where} is not taken. {error}"))
    found.sort(key=lambda item: item[1].step, reverse=True)  # stable: newer attempts stay in front
    problems.sort(key=lambda item: item[0], reverse=True)
    return found, problems


def _warn(problems: Sequence[str]) -> None:
    for problem in problems:
        logger.warning("A checkpoint cannot be used: %s", problem)


def _wrong_sizes(store: Store, step: int, entries: Sequence[FileEntry]) -> list[str]:
    """What the store's listing alone tells, before anything is downloaded."""
    held = store.sizes(f"{layout.checkpoint_name(step)}/files")
    problems = []
    for entry in entries:
        size = held.get(layout.file_name(step, entry.node, entry.name))
        if size != entry.size:
            what = "is missing" if size is None else f"has {size} bytes where {entry.size} were saved"
            problems.append(f"{entry.name} of step {step} {what} ({store.prefix}).")
    return problems


def _is_right(file: Path, entry: FileEntry) -> bool:
    return file.is_file() and file.stat().st_size == entry.size and sha256_of(file) == entry.sha256


def _is_here(entry: FileEntry, destination: Path, places: Sequence[Path]) -> bool:
    """Whether a file is at its destination, after taking it from elsewhere on this disk if it is there."""
    target = destination / entry.name
    if _is_right(target, entry):
        return True
    source = next((place / entry.name for place in places if _is_right(place / entry.name, entry)), None)
    if source is None:
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        try:
            shutil.copyfile(source, target)
        except OSError:  # downloading says what is wrong
            target.unlink(missing_ok=True)
            return False
    return True


def _fetch(store: Store, step: int, entry: FileEntry, destination: Path) -> str:
    """Download one file; what is wrong with it, or an empty text."""
    file = destination / entry.name
    file.unlink(missing_ok=True)
    try:
        store.download(layout.file_name(step, entry.node, entry.name), file)
    except FileNotFoundError:
        return f"{entry.name} of step {step} is missing ({store.prefix})."
    if _is_right(file, entry):
        return ""
    file.unlink()
    return f"{entry.name} of step {step} is not what was saved: size or checksum differ ({store.prefix})."
