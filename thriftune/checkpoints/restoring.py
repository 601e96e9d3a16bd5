"""Find the newest complete checkpoint, and download it only if every byte is right."""

import logging
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from thriftune.checkpoints import layout
from thriftune.checkpoints.manifest import FileEntry, Manifest
from thriftune.digests import sha256_of
from thriftune.disk import DiskFullError, free_bytes
from thriftune.distributed import Rank
from thriftune.stores.store import Store

logger = logging.getLogger(__name__)

# Files that belong to one rank: shards of DeepSpeed and of torch.distributed.checkpoint, and the state of its random
# numbers.
_OF_RANK = re.compile(r"(?:zero_pp_rank_|rng_state_|^__)(\d+)")


def complete(stores: Sequence[Store]) -> list[tuple[Store, Manifest]]:
    """Checkpoints that have a manifest, newest step first; for the same step, the newest attempt first.

    Newer checkpoints whose manifest is missing or damaged are logged. Files are not checked: `verify_and_fetch` does
    that.

    Nodes that ask at different times may get different answers: of several nodes, one asks and tells the others.

    Args:
        stores: The prefixes, the newest attempt's first.

    Raises:
        TransientError: A store does not answer. It is not skipped, since training would then start from the beginning.
    """
    found, problems = _look(stores)
    newest = found[0][1].step if found else -1
    _warn([problem for step, problem in problems if step > newest])
    return found


def incomplete(stores: Sequence[Store]) -> list[str]:
    """Sentences about checkpoints whose manifest is missing or damaged, newest first.

    Args:
        stores: Prefixes.

    Raises:
        TransientError: A store does not answer.
    """
    return [problem for _, problem in _look(stores)[1]]


def wrong_sizes(store: Store, manifest: Manifest) -> list[str]:
    """The files of a checkpoint that are missing or have the wrong size, according to the store's listing.

    Args:
        store: Where the checkpoint is.
        manifest: Its manifest.

    Raises:
        TransientError: The store does not answer.
    """
    return _wrong_sizes(store, manifest.step, manifest.files)


def needed_by(rank: Rank, world_size: int) -> Callable[[str], bool]:
    """Which files the node of a rank needs: converting to another number of ranks needs all, else only its own.

    Args:
        rank: A rank of the node.
        world_size: Number of ranks that wrote the checkpoint.

    Returns:
        Whether it needs the file of a name.
    """
    if world_size != rank.world_size:
        return lambda _: True
    own = range(rank.node * rank.local_world_size, (rank.node + 1) * rank.local_world_size)

    def is_own(name: str) -> bool:
        match = _OF_RANK.search(name.rpartition("/")[2])
        return match is None or int(match[1]) in own

    return is_own


def verify_and_fetch(
    store: Store,
    manifest: Manifest,
    destination: Path,
    wanted: Callable[[str], bool] = lambda _: True,
    local: Path | None = None,
) -> list[str]:
    """Download the wanted files of one checkpoint, and check the size and checksum of each.

    All nodes of a job call this for the same checkpoint. If any of them finds a problem, all try the next checkpoint.

    Args:
        store: Where the checkpoint is.
        manifest: Its manifest.
        destination: Directory for the files; files that are already there and right are kept.
        wanted: Whether this node needs a name.
        local: Folder on this disk where files of it may already be, under their names or in `checkpoint-<step>`. They
            are hard-linked: later writing to a file in `destination` changes both.

    Returns:
        Problems of the checkpoint; empty if there are none. The check stops at the first file with damaged content.

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
    """Checkpoints with a readable manifest, and a problem for each of the others; newest first."""
    found, problems = [], []
    for store in stores:
        for step in sorted({s for name in store.names() if (s := layout.step_of(name)) is not None}, reverse=True):
            data = store.get_bytes(layout.manifest_name(step))
            where = f"{store.prefix}/{layout.checkpoint_name(step)}"
            if data is None:
                problems.append((step, f"{where} has no manifest.json: its upload was never finished."))
                continue
            try:
                manifest = Manifest.from_bytes(data)
                if manifest.step != step:
                    raise ValueError(f"Its manifest is of step {manifest.step}.")
                found.append((store, manifest))
            except ValueError as error:
                problems.append((step, f"{where} is not used. {error}"))
    found.sort(key=lambda item: item[1].step, reverse=True)  # stable: newer attempts stay in front
    problems.sort(key=lambda item: item[0], reverse=True)
    return found, problems


def _warn(problems: Sequence[str]) -> None:
    for problem in problems:
        logger.warning("A checkpoint cannot be used: %s", problem)


def _wrong_sizes(store: Store, step: int, entries: Sequence[FileEntry]) -> list[str]:
    """Files that are missing or have the wrong size, found before anything is downloaded."""
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
    """Whether a file is at its destination; if another folder on this disk has it, it is linked or copied first."""
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
    except OSError:  # another disk, or a file system without links
        try:
            shutil.copyfile(source, target)
        except OSError:  # the download will report what is wrong
            target.unlink(missing_ok=True)
            return False
    return True


def _fetch(store: Store, step: int, entry: FileEntry, destination: Path) -> str:
    """Download one file, and return what is wrong with it; empty if nothing is."""
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
