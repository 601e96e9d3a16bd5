"""Files between a store and this disk: whole, compared, not moved twice, waited for, and in bounded memory."""

import logging
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from stores.watched import CUT, WatchedBucket

from thriftune import artifacts, disk
from thriftune.digests import sha256_of
from thriftune.disk import DiskFullError
from thriftune.errors import TransientError, UserError
from thriftune.stores import access, failures, in_parts, object_stores, retrying, transfer
from thriftune.stores.meter import Meter
from thriftune.stores.transfer import Outgoing

pytest_plugins = ("store_kinds",)

PART = in_parts.FETCHED_BYTES
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
    server.deed, server.code = lambda _request: None, "SlowDown"


def content_of(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): sha256_of(p) for p in folder.rglob("*") if p.is_file()}


class nth:  # noqa: N801 - read as a function
    """Do something to one of the requests that begin so."""

    def __init__(self, number: int, wanted: str, done: str) -> None:
        self.number, self.wanted, self.done, self.calls = number, wanted, done, 0

    def __call__(self, request: str) -> str | None:
        if not request.startswith(self.wanted):
            return None
        self.calls += 1
        return self.done if self.calls == self.number else None


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
@pytest.mark.parametrize(("method", "number"), [("GET", 1), ("GET", 2), ("PUT", 1), ("POST", 1), ("POST", 2)])
def test_what_breaks_off_is_repeated(watched, files, tmp_path, method, number, done):
    """The second POST completes an upload: with its answer lost, one that was whole was "no such file", for good."""
    url = f"{watched.prefix()}/large"
    deed = nth(number, f"{method} /", done)
    if method != "GET":
        watched.deed = deed
    transfer.send_all([Outgoing(files / "large", url)])
    if method == "GET":
        watched.deed = deed
    transfer.fetch(url, tmp_path / "large")
    assert sha256_of(tmp_path / "large") == sha256_of(files / "large")
    assert deed("") is None
    assert deed.calls >= number


def test_a_slow_upload_is_given_time(watched, tmp_path, monkeypatch):
    """The limit of an answer counted the sending of sixteen parts at once: 36 Mbit/s were too few."""
    monkeypatch.setattr(object_stores, "READ_S", 1)
    (tmp_path / "file").write_bytes(os.urandom(1000))
    watched.deed = lambda request: time.sleep(2) if request.startswith("PUT") else None
    watched.requests.clear()
    transfer.send_all([Outgoing(tmp_path / "file", f"{watched.prefix()}/file")])
    assert sum(request.startswith("PUT") for request in watched.requests) == 1


def test_a_model_that_is_here_needs_no_room_for_another(watched, files, tmp_path, monkeypatch):
    """A worker that was restarted in its pod found the disk too full for the model that it had."""
    prefix = watched.prefix()
    transfer.upload(files, prefix, {})
    transfer.download(prefix, tmp_path / "back")
    monkeypatch.setattr(disk, "free_bytes", lambda _path: 10)
    transfer.download(prefix, tmp_path / "back")
    with pytest.raises(DiskFullError):
        transfer.download(prefix, tmp_path / "again")


def test_markers_of_folders_are_no_files(watched, files, tmp_path):
    """Consoles, Hadoop and Spark write them: a table beside one was "not there"."""
    prefix = watched.prefix()
    bucket, _, key = prefix.removeprefix("s3://").partition("/")
    for marker in (f"{key}/", f"{key}/folder/"):
        watched.client.put_object(Bucket=bucket, Key=marker, Body=b"")
    transfer.upload(files, prefix, {})
    transfer.download(prefix, tmp_path)
    assert content_of(tmp_path) == content_of(files)


@pytest.mark.parametrize("code", ["ExpiredToken", "PermanentRedirect"])
def test_keys_that_expired_and_another_region_are_refusals(watched, tmp_path, code):
    watched.deed, watched.code = lambda _request: "400 Bad Request", code
    (tmp_path / "file").write_bytes(b"1")
    for move in (
        lambda url: transfer.fetch(url, tmp_path / "back"),
        lambda url: transfer.send_all([Outgoing(tmp_path / "file", url)]),
    ):
        with pytest.raises(UserError, match=rf"access is denied to s3://watched .*{code}"):  # noqa: SIM117
            with failures.explained("model.source", "s3://watched/x", UserError):
                move(f"{watched.prefix()}/x")


def test_the_checksum_has_a_name_that_every_store_takes():
    """Azure takes identifiers of C# only; proxies drop names with an underscore."""
    assert re.fullmatch("[a-z][a-z0-9]*", in_parts._DIGEST)


def test_a_file_that_fails_ends_the_others_at_once(watched, files):
    watched.deed = lambda request: time.sleep(0.5) if request.startswith("PUT") else None
    began = time.monotonic()
    with pytest.raises(FileNotFoundError):
        transfer.send_all(
            [Outgoing(files / "none", f"{watched.prefix()}/none")]
            + [Outgoing(files / "large", f"{watched.prefix()}/{number}") for number in range(6)]
        )
    assert time.monotonic() - began < 6


ENDING = """
import sys, threading, time
from pathlib import Path
from thriftune.stores import access
from thriftune.stores.store import Store
access.use({"s3": eval(sys.argv[2])})
moving = Store("s3://watched/ending").upload
threading.Thread(target=moving, args=(Path(sys.argv[1]), "file", "0" * 64), daemon=True).start()
time.sleep(0.7)
"""


def test_a_process_may_end_while_a_checkpoint_is_sent(server, tmp_path):
    """It died of SIGABRT: obstore's threads asked for Python, which was ending."""
    with (tmp_path / "file").open("wb") as file:
        file.truncate(1 << 30)
    command = [sys.executable, "-c", ENDING, str(tmp_path / "file"), repr(server.options)]
    for _ in range(3):
        assert subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0


def test_a_store_that_always_refuses_is_given_up(watched, files, tmp_path, monkeypatch):
    monkeypatch.setattr(object_stores, "RETRIES", 1)
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
import re, sys
from pathlib import Path
from thriftune.stores import access, transfer
access.use({"s3": eval(sys.argv[3])})
import obstore, botocore.session  # what is loaded anyway does not count
transfer.send_all([transfer.Outgoing(Path(sys.argv[1]) / "small", sys.argv[2] + "/small")])
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 2**20
before = peak()
transfer.upload(Path(sys.argv[1]), sys.argv[2], {})
transfer.download(sys.argv[2], Path(sys.argv[1] + "-back"))
print(peak() - before)
"""


def test_memory_does_not_grow_with_the_files(server, tmp_path):
    """flytekit took as much as the files, up to half a GiB for each."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number, mib in enumerate((400, *[8] * 14)):  # four whole files at once would be more than is allowed
        with (folder / f"model-{number:05}.safetensors").open("wb") as file:
            file.truncate(mib << 20)
    (folder / "small").write_bytes(b"1")
    command = [sys.executable, "-c", MOVING, str(folder), server.prefix(), repr(server.options)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert float(done.stdout) < transfer.MEMORY_GIB
