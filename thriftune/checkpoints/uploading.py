"""Complete a checkpoint in the store: every node uploads its part, then node 0 writes the manifest."""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thriftune.checkpoints import layout
from thriftune.checkpoints.errors import IncompleteError
from thriftune.checkpoints.manifest import FileEntry, Manifest
from thriftune.digests import sha256_of
from thriftune.errors import ThriftuneError
from thriftune.stores.store import Store


@dataclass(frozen=True)
class Place:
    """The place of one node's saver among the savers of all nodes.

    Attributes:
        node: This node, 0 to `nodes - 1`; node 0 writes the manifest.
        nodes: Nodes of the job.
        world_size: Ranks of the job.
        poll_s: Seconds between two looks in the store at what other nodes did.
        give_up_s: Seconds to wait for the other nodes after this one is done.
    """

    node: int
    nodes: int
    world_size: int
    poll_s: float
    give_up_s: float


def upload_part(store: Store, place: Place, directory: Path, step: int, content: dict[str, Any]) -> None:
    """Upload the files below a directory, then record in the store what was uploaded.

    Args:
        store: The training's prefix.
        place: This node.
        directory: What this node's ranks wrote; it must not change during the upload.
        step: Optimizer steps done.
        content: Any JSON for the manifest, which gets that of node 0.
    """
    # A training that went back to an older checkpoint reaches this step again: the earlier checkpoint is replaced.
    store.remove(layout.manifest_name(step))
    withdraw(store, place.node, step)
    entries = []
    for file in sorted(path for path in directory.rglob("*") if path.is_file()):
        name = file.relative_to(directory).as_posix()
        entry = FileEntry(name, file.stat().st_size, sha256_of(file), place.node)
        store.upload(file, layout.file_name(step, place.node, name), entry.sha256)
        entries.append(entry)
    part = Manifest(step, place.world_size, place.nodes, tuple(entries), content)
    store.put_bytes(layout.part_name(step, place.node), part.to_bytes())


def withdraw(store: Store, node: int, step: int | None = None) -> None:
    """Remove a node's records of one step or of all steps from the store: earlier workers wrote them.

    Every node must do this before a restarted job saves anything. Else node 0 would mistake the part that another node
    uploaded before the restart for the one that it uploads now.

    Args:
        store: The training's prefix.
        node: The node.
        step: Optimizer steps of the checkpoint; None for all checkpoints.
    """
    for name in store.names("" if step is None else layout.parts_name(step)):
        of = layout.step_of(name)
        if of is not None and name in (layout.part_name(of, node), layout.problem_name(of, node)):
            store.remove(name)


def report_problem(store: Store, node: int, step: int, problem: str) -> None:
    """Tell the other nodes through the store, if it answers, that this node's part will not come.

    Args:
        store: The training's prefix.
        node: This node.
        step: Optimizer steps of the checkpoint.
        problem: Why it will not come.
    """
    with suppress(ThriftuneError, OSError):  # then they give up after `give_up_s`
        store.without_retries().put_bytes(layout.problem_name(step, node), problem.encode())


def write_manifest(store: Store, place: Place, step: int) -> Manifest:
    """On node 0: wait for all parts, compare them with what the store holds, and write the manifest.

    Args:
        store: The training's prefix.
        place: This node.
        step: Optimizer steps done.

    Raises:
        IncompleteError: A part is missing, or does not fit.
    """
    parts = _await_parts(store, place, step)
    for node, part in enumerate(parts):
        if (part.step, part.world_size, part.nodes) != (step, place.world_size, place.nodes):
            raise IncompleteError(f"the part of node {node} is from {part.world_size} ranks on {part.nodes} nodes.")
    files = tuple(entry for part in parts for entry in part.files)
    held = store.sizes(f"{layout.checkpoint_name(step)}/files")
    for entry in files:
        size = held.get(layout.file_name(step, entry.node, entry.name))
        if size != entry.size:
            raise IncompleteError(f"{entry.name} of node {entry.node} has {entry.size} bytes, but {size} in the store.")
    manifest = Manifest(step, place.world_size, place.nodes, files, parts[0].content)
    store.put_bytes(layout.manifest_name(step), manifest.to_bytes())
    return manifest


def await_manifest(store: Store, place: Place, step: int) -> Manifest:
    """On the other nodes: wait until node 0 has written the manifest.

    Waiting tells this node which local directory it may delete, and keeps the nodes at the same checkpoint when they
    have to skip some.

    Args:
        store: The training's prefix.
        place: This node.
        step: Optimizer steps done.

    Raises:
        IncompleteError: Node 0 did not write it.
    """
    deadline = time.monotonic() + place.give_up_s
    while True:
        data = store.get_bytes(layout.manifest_name(step))
        if data is not None:
            return _readable(data, "the manifest")
        problem = store.get_bytes(layout.problem_name(step, 0))
        if problem is not None:
            raise IncompleteError(f"node 0 wrote no manifest: {problem.decode(errors='replace')}")
        _pause(place, deadline, "node 0 wrote no manifest")


def _await_parts(store: Store, place: Place, step: int) -> list[Manifest]:
    deadline = time.monotonic() + place.give_up_s
    while True:
        names = set(store.names(layout.parts_name(step)))
        missing = [node for node in range(place.nodes) if layout.part_name(step, node) not in names]
        if not missing:
            return [_part(store, step, node) for node in range(place.nodes)]
        for node in missing:
            problem = store.get_bytes(layout.problem_name(step, node))
            if problem is not None:
                raise IncompleteError(f"node {node} uploaded no part: {problem.decode(errors='replace')}")
        _pause(place, deadline, f"no part came from node {', '.join(map(str, missing))}")


def _part(store: Store, step: int, node: int) -> Manifest:
    data = store.get_bytes(layout.part_name(step, node))
    if data is None:
        raise IncompleteError(f"node {node} withdrew its part.")
    return _readable(data, f"the part of node {node}")


def _readable(data: bytes, what: str) -> Manifest:
    try:
        return Manifest.from_bytes(data)
    except ValueError as error:
        raise IncompleteError(f"{what} cannot be read: {error}") from error


def _pause(place: Place, deadline: float, problem: str) -> None:
    if time.monotonic() >= deadline:
        raise IncompleteError(f"{problem} in {place.give_up_s:g} s.")
    time.sleep(place.poll_s)
