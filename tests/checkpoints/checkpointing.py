"""What the tests of checkpoints share: directories to save, stores to save to, ways to damage what is saved."""

import logging
import random
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from thriftune.checkpoints import layout
from thriftune.checkpoints.manifest import Manifest
from thriftune.checkpoints.restoring import complete, verify_and_fetch
from thriftune.checkpoints.saving import BackgroundSaver
from thriftune.checkpoints.store import Store

QUICK = (0.05, 0.1, 0.2)
KEY = "test"


class Bucket:
    """An S3 server on loopback that can be stopped and started again on the same port, with all it holds."""

    name = "checkpoints"

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.start()
        self.client = boto3.client(
            "s3", endpoint_url=self.endpoint, aws_access_key_id=KEY, aws_secret_access_key=KEY, region_name="us-east-1"
        )
        self.client.create_bucket(Bucket=self.name)

    def start(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        self._server.stop()
        self._server._server.server_close()  # else the port still takes connections, and never answers

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


class GatedStore(Store):
    """A store whose uploads wait until they are let through."""

    def __init__(self, prefix: str, gate: Any) -> None:
        super().__init__(prefix, pauses=QUICK)
        self.gate = gate
        self.begun: list[str] = []

    def upload(self, file: Path, name: str) -> None:
        self.begun.append(name)
        assert self.gate.wait(20)
        super().upload(file, name)


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


def set_environment(bucket: Bucket) -> pytest.MonkeyPatch:
    patch = pytest.MonkeyPatch()
    for name, value in bucket.environment.items():
        patch.setenv(name, value)
    return patch
