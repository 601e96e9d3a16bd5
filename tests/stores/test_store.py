"""A store waits short failures out, and says what it cannot mend."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
from bucket import Bucket

from thriftune.checkpoints.errors import IncompleteError
from thriftune.disk import DiskFullError
from thriftune.errors import TransientError, UserError
from thriftune.stores import store as store_module
from thriftune.stores.store import Store

pytest_plugins = ("store_kinds",)

IN_A_TINY_TMPFS = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=2m none "$0" && exec "$@"']


def test_what_is_put_is_got(store, tmp_path):
    assert store.names() == []
    assert store.get_bytes("a/b.json") is None
    store.put_bytes("a/b.json", b"one")
    store.put_bytes("a/b.json", b"two")
    assert store.get_bytes("a/b.json") == b"two"
    (tmp_path / "up").write_bytes(b"x" * 70_000)
    store.upload(tmp_path / "up", "a/deep/er/up")
    store.download("a/deep/er/up", tmp_path / "new" / "down")
    assert (tmp_path / "new" / "down").read_bytes() == b"x" * 70_000
    assert store.sizes() == {"a/b.json": 3, "a/deep/er/up": 70_000}
    assert store.names("a/deep") == ["a/deep/er/up"]
    with pytest.raises(FileNotFoundError):
        store.download("a/none", tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        store.upload(tmp_path / "none", "a/none")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "store") == ["new", "up"]


def test_a_folder_is_removed_without_its_neighbours(store):
    for name in ("checkpoint-1/a", "checkpoint-1/b/c", "checkpoint-10/a", "x"):
        store.put_bytes(name, b"1")
    store.remove("checkpoint-1")
    store.remove("checkpoint-1")
    assert store.names() == ["checkpoint-10/a", "x"]
    store.remove("x")
    assert store.names("checkpoint-1") == []
    assert store.names() == ["checkpoint-10/a"]
    for everything in ("", "/"):
        with pytest.raises(ValueError, match="a whole prefix is never removed"):
            store.remove(everything)


def test_what_another_writes_is_seen_at_once(store):
    other = Store(store.prefix)
    for number in range(3):
        assert len(store.names()) == number
        other.put_bytes(f"checkpoint-{number}/manifest.json", b"{}")
        assert store.get_bytes(f"checkpoint-{number}/manifest.json") == b"{}"
    other.put_bytes("checkpoint-0/manifest.json", b"new")
    assert store.get_bytes("checkpoint-0/manifest.json") == b"new"


def test_a_used_store_works_in_threads_and_in_forked_and_spawned_processes(s3):
    s3.put_bytes("a", b"parent")
    thread = threading.Thread(target=s3.put_bytes, args=("thread", b"1"))
    thread.start()
    thread.join()
    for method in ("fork", "spawn"):
        process = multiprocessing.get_context(method).Process(target=s3.put_bytes, args=(method, b"1"))
        process.start()
        process.join(30)
        assert process.exitcode == 0
    assert s3.names() == ["a", "fork", "spawn", "thread"]


def test_a_listing_of_a_local_folder_bears_files_that_come_and_go(local):
    # fsspec leaves out a whole folder when a file in it vanishes under its eyes; training would begin anew.
    local.put_bytes("stays", b"1")
    stop = threading.Event()

    def come_and_go():
        while not stop.is_set():
            local.put_bytes("comes", b"2")
            local.remove("comes")

    thread = threading.Thread(target=come_and_go)
    thread.start()
    listings = [local.names() for _ in range(500)]
    stop.set()
    thread.join()
    assert all(set(names) - {"comes"} == {"stays"} for names in listings)


def test_a_store_that_is_away_for_a_moment_is_waited_for(bucket, s3):
    s3.put_bytes("a", b"1")
    bucket.stop()
    back = threading.Timer(0.3, bucket.start)
    back.start()
    try:
        patient = Store(s3.prefix, pauses=(0.3, 0.3, 0.3, 0.3))
        assert patient.get_bytes("a") == b"1"
    finally:
        back.join()


def test_a_store_that_stays_away_is_named_with_its_cause_after_as_many_attempts_as_said(bucket, s3):
    bucket.stop()
    try:
        for pauses, attempts in (((), 1), ((0.1,), 2)):
            with pytest.raises(TransientError, match=f"attempt {attempts} at a: .*Connect") as caught:
                Store(s3.prefix, pauses=pauses).get_bytes("a")
            assert s3.prefix in str(caught.value)
            assert not isinstance(caught.value, DiskFullError)
            assert caught.value.__cause__ is not None
    finally:
        bucket.start()


def test_the_worst_case_is_the_one_that_is_written_down():
    assert store_module.WORST_CASE_S == 615
    assert "615 s" in Path(store_module.__file__).read_text()


def test_a_refusal_is_the_users_and_is_not_repeated(bucket: Bucket, s3):
    where = f"arn:aws:s3:::{bucket.name}/*"
    statement = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": where}
    policy = {"Version": "2012-10-17", "Statement": [statement]}
    bucket.client.put_bucket_policy(Bucket=bucket.name, Policy=json.dumps(policy))
    try:
        with pytest.raises(UserError, match=r"access is denied to s3://checkpoints .*AWS_ACCESS_KEY_ID.*403") as caught:
            Store(s3.prefix, pauses=(60.0,)).put_bytes("a", b"1")
    finally:
        bucket.client.delete_bucket_policy(Bucket=bucket.name)
    assert s3.prefix in str(caught.value)


@pytest.mark.parametrize(
    ("prefix", "words"),
    [
        ("s3://there-is-no-such-bucket/x", "there is no bucket s3://there-is-no-such-bucket"),
        ("nosuch://bucket/x", "Protocol not known"),
        ("{file}/x", "NotADirectoryError"),
    ],
)
def test_a_prefix_that_cannot_be_used_is_the_users(bucket, tmp_path, prefix, words):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=words):
        Store(prefix.format(file=tmp_path / "file"), pauses=(60.0,)).put_bytes("a", b"1")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_fills_up_while_downloading_is_named_and_not_tried_again(store, tmp_path):
    store.put_bytes("shard", b"x" * 100_000)
    (tmp_path / "down.partial").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match=r"down: no space left .* bytes free.*THRIFTUNE_DISK_GIB"):
        Store(store.prefix, pauses=(60.0,)).download("shard", tmp_path / "down")
    assert not (tmp_path / "down").exists()
    assert not (tmp_path / "down.partial").is_symlink()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_a_local_store_is_named(local, tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    Path(local.prefix).mkdir(parents=True)
    Path(local.prefix, "shard").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match="no space left"):
        Store(local.prefix, pauses=(60.0,)).upload(tmp_path / "file", "shard")


def test_a_tmpfs_that_is_really_full(local, tmp_path):
    mount = tmp_path / "tiny"
    mount.mkdir()
    if subprocess.run([*IN_A_TINY_TMPFS, str(mount), "true"], capture_output=True, check=False).returncode:
        pytest.skip("may not mount a tmpfs here")
    local.put_bytes("shard", b"x" * 3_000_000)
    script = """
        import sys
        from pathlib import Path
        from thriftune.disk import DiskFullError
        from thriftune.stores.store import Store
        source, tiny = Store(sys.argv[1], pauses=(60.0,)), Path(sys.argv[2])
        for act in (lambda: source.download("shard", tiny / "down"),
                    lambda: Store(str(tiny / "store"), pauses=(60.0,)).put_bytes("shard", bytes(3_000_000)),
                    lambda: Store(str(tiny / "store"), pauses=(60.0,)).upload(Path(sys.argv[1], "shard"), "shard")):
            try:
                act()
            except DiskFullError as error:
                print(error)
            for file in [p for p in tiny.rglob("*") if p.is_file()]:
                print("left", file.name)
                file.unlink()
    """
    command = [*IN_A_TINY_TMPFS, str(mount), sys.executable, "-c", textwrap.dedent(script), local.prefix, str(mount)]
    environment = {**os.environ, "PYTHONPATH": str(Path(store_module.__file__).parents[2])}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=50, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("no space left on the disk (") == 3, result.stdout
    assert "left down" not in result.stdout


@pytest.mark.parametrize("error", [DiskFullError.at(Path("/tmp/x"), 2**31), IncompleteError("node 1 is gone")])
def test_errors_pickle_with_their_message(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), str(error))
    assert isinstance(copy, TransientError)


@pytest.mark.parametrize("prefix", ["http://127.0.0.1:9/run", "http://no.such.host.invalid/run"])
def test_a_server_that_is_not_there_is_unreachable(prefix):
    """fsspec lists nothing there: the run held "no whole checkpoint"."""
    with pytest.raises(TransientError, match="attempt 1 at its listing: the store cannot be reached"):
        Store(prefix, pauses=()).names()


def test_links_in_a_circle_are_no_reason_to_try_again(tmp_path):
    """A place that leads to itself was asked five times, and then another attempt was to ask."""
    (tmp_path / "self").symlink_to("self")
    with pytest.raises(UserError, match="links do not form a circle"):
        Store(str(tmp_path / "self")).names()
