"""Files between a store and this disk: whole, compared, not moved twice, waited for, and in bounded memory."""

import logging
import multiprocessing
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from stores.watched import CUT, WatchedBucket

from thriftune import artifacts
from thriftune.digests import sha256_of
from thriftune.errors import TransientError, UserError
from thriftune.stores import access, clients, retrying, transfer
from thriftune.stores.meter import Meter
from thriftune.stores.transfer import Outgoing

pytest_plugins = ("store_kinds",)

PART = clients.FETCHED_BYTES
# Empty, less than a part, exactly one, and parts of which the last is short; and a folder.
SIZES = {"empty": 0, "small": 1000, "part": PART, "large": 2 * PART + 12_345, "folder/deep": 10}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, size in SIZES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(os.urandom(size))
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[WatchedBucket]:
    with WatchedBucket() as running:
        yield running


@pytest.fixture
def watched(server: WatchedBucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[WatchedBucket]:
    """A server whose keys only `access.use` knows."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(access, "_used", {"s3": server.options})
    monkeypatch.setattr(retrying, "PAUSES_S", (0.1,))
    yield server
    server.deed = lambda _request: None


def content_of(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_of(p) for p in folder.rglob("*") if p.is_file()}


def once(wanted: str, done: str):
    """Do something to the first request that begins so."""
    left = [wanted]

    def deed(request: str) -> str | None:
        if left and request.startswith(left[0]):
            left.clear()
            return done
        return None

    return deed


def test_a_directory_comes_back_as_it_was_sent(store, files, tmp_path):
    transfer.upload(files, store.prefix, {})
    assert store.sizes() == SIZES
    transfer.download(store.prefix, tmp_path / "back")
    assert content_of(tmp_path / "back") == content_of(files)


def test_a_file_comes_back_as_it_was_sent(watched, files, tmp_path):
    prefix = watched.prefix()
    transfer.send_all([Outgoing(files / "small", f"{prefix}/small")])
    transfer.download(f"{prefix}/small", tmp_path)
    assert content_of(tmp_path) == {"small": sha256_of(files / "small")}
    with pytest.raises(FileNotFoundError):
        transfer.download(f"{prefix}/nothing", tmp_path)


def test_what_is_whole_is_not_moved_again(watched, files, tmp_path):
    prefix = watched.prefix()
    transfer.upload(files, prefix, {})
    transfer.download(prefix, tmp_path)
    (tmp_path / "small").write_bytes(b"y" * SIZES["small"])
    bucket, _, key = prefix.removeprefix("s3://").partition("/")
    watched.client.put_object(Bucket=bucket, Key=f"{key}/part", Body=b"z" * PART)  # as large, by somebody else
    watched.requests.clear()
    transfer.upload(files, prefix, {})
    assert watched.asked("PUT") == {"part"}
    watched.requests.clear()
    transfer.download(prefix, tmp_path)
    assert watched.asked("GET") == {"small"}
    assert content_of(tmp_path) == content_of(files)


def test_a_checksum_that_is_known_goes_along_and_is_compared(watched, files, tmp_path):
    url = f"{watched.prefix()}/small"
    transfer.send_all([Outgoing(files / "small", url, "0" * 64)])
    with pytest.raises(UserError, match=r"does not hold what was saved\. It was moved 3 times"):
        transfer.fetch(url, tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_checksums_of_a_manifest_are_used(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    artifacts.write_manifest(tmp_path, "model", {})
    assert artifacts.digests_of(tmp_path) == {"a": sha256_of(tmp_path / "a")}
    (tmp_path / artifacts.MANIFEST).write_text("{}garbage")
    assert artifacts.digests_of(tmp_path) == {}


def test_an_object_that_is_replaced_meanwhile_is_fetched_anew(watched, files, tmp_path):
    """Parts of two versions in one file would be a file that never was."""
    prefix, other = watched.prefix(), os.urandom(SIZES["large"])
    transfer.send_all([Outgoing(files / "large", f"{prefix}/large")])
    bucket, _, key = f"{prefix}/large".removeprefix("s3://").partition("/")
    left = [1]

    def replace(request: str) -> None:
        if request.startswith("GET") and left:
            left.clear()
            watched.client.put_object(Bucket=bucket, Key=key, Body=other)

    watched.deed = replace
    transfer.fetch(f"{prefix}/large", tmp_path / "large")
    assert (tmp_path / "large").read_bytes() == other


@pytest.mark.parametrize("done", [CUT, "503 Slow Down"])
@pytest.mark.parametrize("method", ["GET", "PUT", "POST"])
def test_what_breaks_off_is_repeated(watched, files, tmp_path, method, done):
    url = f"{watched.prefix()}/large"
    if method != "GET":
        watched.deed = once(f"{method} /", done)
    transfer.send_all([Outgoing(files / "large", url)])
    if method == "GET":
        watched.deed = once("GET /", done)
    transfer.fetch(url, tmp_path / "large")
    assert sha256_of(tmp_path / "large") == sha256_of(files / "large")


def test_a_store_that_always_refuses_is_given_up(watched, files, tmp_path, monkeypatch):
    monkeypatch.setattr(access, "OBSTORE_RETRIES", 1)
    watched.deed = lambda _request: "503 Slow Down"
    with pytest.raises(
        TransientError, match=r"s3://watched, attempt 2 at \w+/small: the store cannot be reached .*SlowDown"
    ):
        transfer.fetch(f"{watched.prefix()}/small", tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def test_a_forked_process_moves_files_too(watched, files, tmp_path):
    """obstore's threads do not survive a fork: the child waited for ever."""
    prefix = watched.prefix()
    transfer.send_all([Outgoing(files / "small", f"{prefix}/small")])
    process = multiprocessing.get_context("fork").Process(
        target=transfer.fetch, args=(f"{prefix}/small", tmp_path / "small")
    )
    process.start()
    process.join(30)
    process.kill()
    assert process.exitcode == 0
    assert sha256_of(tmp_path / "small") == sha256_of(files / "small")


def test_progress_says_how_much_how_fast_and_how_long_still(caplog):
    caplog.set_level(logging.INFO)
    meter = Meter("Fetching s3://b/model", 4 << 20, every_s=0.0)
    meter.add(1 << 20)
    meter.finish()
    assert "Fetching s3://b/model: 1.0 MiB of 4.0 MiB, " in caplog.messages[0]
    assert "MiB/s, about " in caplog.messages[0]
    assert "done, 1.0 MiB in " in caplog.messages[-1]
    caplog.clear()
    quiet = Meter("Fetching s3://b/model", 4 << 20)
    quiet.add(4 << 20)
    quiet.finish()
    assert not caplog.messages


MOVING = """
import resource, sys
from pathlib import Path
from thriftune.stores import access, transfer
access.use({"s3": eval(sys.argv[3])})
import obstore, botocore.session  # what is loaded anyway does not count
transfer.send_all([transfer.Outgoing(Path(sys.argv[1]) / "small", sys.argv[2] + "/small")])
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
before = peak()
transfer.upload(Path(sys.argv[1]), sys.argv[2], {})
transfer.download(sys.argv[2], Path(sys.argv[1] + "-back"))
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_files(server, tmp_path):
    """flytekit took as much as the files, up to half a GiB for each."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(15):
        with (folder / f"model-{number:05}.safetensors").open("wb") as file:
            file.truncate(24 << 20)
    (folder / "small").write_bytes(b"1")
    command = [sys.executable, "-c", MOVING, str(folder), server.prefix(), repr(server.options)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert float(done.stdout) < transfer.MEMORY_GIB
