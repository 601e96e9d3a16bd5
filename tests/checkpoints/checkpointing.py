"""What the tests of checkpoints share: directories to save, stores to save to, ways to damage what is saved."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from thriftune.checkpoints import layout
from thriftune.checkpoints.manifest import Manifest
from thriftune.checkpoints.restoring import complete, verify_and_fetch
from thriftune.checkpoints.saving import BackgroundSaver
from thriftune.stores.store import Store

QUICK = (0.05, 0.1, 0.2)


class GatedStore(Store):
    """A store whose uploads wait until they are let through."""

    def __init__(self, prefix: str, gate: Any) -> None:
        super().__init__(prefix, pauses=QUICK)
        self.gate = gate
        self.begun: list[str] = []

    def upload(self, file: Path, name: str, sha256: str = "") -> None:
        self.begun.append(name)
        assert self.gate.wait(20)
        super().upload(file, name, sha256)


def write_checkpoint(directory: Path, seed: int, ranks: range = range(2), size: int = 20_000) -> Path:
    """What the ranks of one node write: a shard each, in a folder, and small files beside it; never the same twice."""
    noise = random.Random(seed * 1000 + ranks.start)
    shards = directory / "global_step"
    shards.mkdir(parents=True)
    for rank in ranks:
        (shards / f"rank_{rank}_optim_states.pt").write_bytes(noise.randbytes(size + rank))
        (directory / f"rng_state_{rank}.pth").write_bytes(noise.randbytes(100))
    if ranks.start == 0:
        (directory / "trainer_state.json").write_text(f'{{"global_step": {seed}}}')
        (directory / "empty").touch()
    return directory


def content_of(directory: Path) -> dict[str, bytes]:
    return {p.relative_to(directory).as_posix(): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


def lone_saver(store: Store, keep: int = 2, **options: Any) -> BackgroundSaver:
    return BackgroundSaver(store, node=0, nodes=1, world_size=2, keep=keep, poll_s=0.02, **options)


def save_steps(store: Store, folder: Path, *steps: int, keep: int = 2, **options: Any) -> dict[int, dict[str, bytes]]:
    """Save complete checkpoints of one node; what was in each."""
    saver = lone_saver(store, keep, **options)
    contents = {}
    for step in steps:
        directory = write_checkpoint(folder / f"checkpoint-{step}", step)
        contents[step] = content_of(directory)
        saver.save(directory, step, {"micro_batch": 2})
        assert saver.wait(20)
    saver.close()
    assert saver.failures == []
    return contents


@dataclass(frozen=True)
class Restored:
    """A checkpoint on this disk; and why newer ones of those with a manifest were not taken."""

    step: int
    directory: Path
    manifest: Manifest
    passed_over: list[str]


def restore(
    stores: Sequence[Store],
    destination: Path,
    *,
    local: Path | None = None,
    wanted: Callable[[str], bool] = bool,
) -> Restored | None:
    """Bring the newest whole checkpoint to this disk, as `Checkpoints.restore` does with all ranks together."""
    passed_over: list[str] = []
    for store, manifest in complete(stores):
        directory = destination / layout.checkpoint_name(manifest.step)
        problems = verify_and_fetch(store, manifest, directory, wanted, local)
        if not problems:
            return Restored(manifest.step, directory, manifest, passed_over)
        passed_over += problems
    return None


def whole_steps(store: Store, scratch: Path) -> list[int]:
    """Steps that look whole; each is asserted to be."""
    found = complete([store])
    for _, manifest in found:
        assert verify_and_fetch(store, manifest, scratch / f"verify-{manifest.step}-{time.monotonic_ns()}") == []
    return [manifest.step for _, manifest in found]


def flip(store: Store, name: str, offset: int) -> None:
    data = bytearray(store.get_bytes(name) or b"")
    data[offset % len(data)] ^= 0x10
    store.put_bytes(name, bytes(data))


def truncate(store: Store, name: str) -> None:
    store.put_bytes(name, (store.get_bytes(name) or b"")[:-1])


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def stored_names(manifest: Manifest) -> list[str]:
    return [layout.file_name(manifest.step, entry.node, entry.name) for entry in manifest.files]
