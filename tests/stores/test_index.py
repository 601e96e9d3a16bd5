"""What the index of results says: what is whole is served, what is not is made anew, and all agree on it."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from thriftune import artifacts
from thriftune.errors import UserError
from thriftune.stores import index
from thriftune.stores.store import Store

pytest_plugins = ("store_kinds",)

KEY = "training-1"


@pytest.fixture
def root(local):
    return f"{local.prefix}/index"


@pytest.fixture
def result(tmp_path):
    return putting(f"{tmp_path}/results", tmp_path)


def putting(prefix, tmp_path):
    """Put a finished directory into the store, and give its URL."""

    def put(name: str = "model") -> str:
        made = tmp_path / "made" / name
        made.mkdir(parents=True)
        (made / "weights").write_bytes(b"x" * 100)
        (made / "config.json").write_bytes(b"{}")
        artifacts.write_manifest(made, "model", {})
        place = Store(f"{prefix}/{name}")
        for file in made.iterdir():
            place.put_bytes(file.name, file.read_bytes())
        return place.prefix

    return put


def ask(root: str) -> index.Entry:
    return index.look_up(root, KEY, "the model")


def test_a_key_keeps_its_generation_while_nothing_is_made_and_while_the_result_is_whole(store, tmp_path):
    root, result = f"{store.prefix}/index", putting(f"{store.prefix}/results", tmp_path)
    first = ask(root)
    assert first.made is None
    assert ask(root) == first
    index.remember(first.record, [result("model"), result("tokenizer")], {"prompts": ["Why?"]})
    again = ask(root)
    assert (again.generation, again.record) == (first.generation, first.record)
    assert [url.rpartition("/")[2] for url in again.made.results] == ["model", "tokenizer"]
    assert again.made.facts == {"prompts": ["Why?"]}
    assert index.look_up(root, "training-2", "another").generation != first.generation
    Store(again.made.results[0]).remove("weights")
    assert ask(root).generation != first.generation


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda place: place.remove("weights"), "weights is missing."),
        (lambda place: place.put_bytes("weights", b"x" * 99), "weights has 99 bytes where 100 were saved."),
        (lambda place: place.remove("manifest.json"), "manifest.json is missing."),
        (lambda place: place.put_bytes("manifest.json", b"{"), "manifest.json is not what was written."),
    ],
)
def test_a_result_that_is_not_whole_is_made_anew_once_and_that_is_said(root, result, harm, said, caplog):
    first = ask(root)
    lost = result("model")
    index.remember(first.record, [result("tokenizer"), lost], {})
    harm(Store(lost))
    with caplog.at_level(logging.WARNING):
        second = ask(root)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"the model is no longer whole in the store, or may not be read, and is made anew: {lost}: {said}"
    assert second.generation != first.generation
    assert second.made is None
    caplog.clear()
    assert ask(root) == second, "whoever comes while it is made waits for the same one"
    index.remember(second.record, [result("new")], {})
    assert ask(root).made is not None
    assert caplog.records == []


def test_all_files_of_a_result_gone_and_its_record_damaged_are_losses_like_any_other(root, result):
    first = ask(root)
    gone = result("gone")
    index.remember(first.record, [gone], {})
    Store(gone.rpartition("/")[0]).remove("gone")
    second = ask(root)
    assert second.generation != first.generation
    folder, _, name = second.record.rpartition("/")
    Store(folder).put_bytes(name, b"{")
    assert ask(root).generation not in (first.generation, second.generation)


def test_a_record_that_is_gone_is_a_loss_while_the_claim_is_there(root, result, caplog):
    """Rules remove old files in no order. What Flyte's cache still had was served without a look."""
    first = ask(root)
    index.remember(first.record, [result("model")], {})
    Store(root).remove(f"{KEY}/{first.generation}.json")
    second = ask(root)
    assert (second.generation != first.generation, second.made) == (True, None)
    assert "its record is gone or damaged." in caplog.text
    assert ask(root) == second
    index.remember(second.record, [result("again")], {})
    assert ask(root).made is not None


def test_a_step_that_ends_late_takes_nothing_back_and_a_claim_that_was_put_back_is_mended(root, result):
    first = ask(root)
    lost = result("model")
    index.remember(first.record, [lost], {})
    Store(lost).remove("weights")
    second = ask(root)
    index.remember(second.record, [result("again")], {})
    late = Store(root).get_bytes(f"{KEY}.json")
    index.remember(first.record, [lost], {})
    assert Store(root).get_bytes(f"{KEY}.json") == late
    Store(root).put_bytes(f"{KEY}.json", f'{{"generation": "{first.generation}", "made": true}}'.encode())
    assert ask(root).record == second.record
    assert Store(root).get_bytes(f"{KEY}.json") == late


def test_an_index_that_was_removed_begins_anew(root):
    """What Flyte's cache still has is then of no known place: it is not served."""
    first = ask(root)
    Store(root).remove(f"{KEY}.json")
    assert ask(root).generation != first.generation
    Store(root).put_bytes(f"{KEY}.json", b"{")
    assert ask(root) == ask(root)


def test_runs_that_ask_at_once_agree(local, tmp_path):
    """On the first generation, and on the one after a loss: equal runs train once, through Flyte's reservation."""
    for key in range(10):
        with ThreadPoolExecutor(8) as threads:
            found = set(threads.map(lambda _, key=key: index.look_up(local.prefix, str(key), "it"), range(8)))
        assert len({entry.generation for entry in found}) == 1
        (first,) = {entry.record for entry in found}
        index.remember(first, [str(tmp_path / "nowhere")], {})
        with ThreadPoolExecutor(8) as threads:
            after = set(threads.map(lambda _, key=key: index.look_up(local.prefix, str(key), "it").record, range(8)))
        assert len(after) == 1
        assert after != {first}


def test_a_run_that_was_slow_takes_nothing_back(root, result):
    """It put the older generation back; what was made since is found by following on from there."""
    first = ask(root)
    lost = result("model")
    index.remember(first.record, [lost], {})
    Store(lost).remove("weights")
    second = ask(root)
    index.remember(second.record, [result("again")], {})
    Store(root).put_bytes(f"{KEY}.json", f'{{"generation": "{first.generation}"}}'.encode())
    assert ask(root).record == second.record
    assert ask(root).made is not None


def test_an_index_that_may_not_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError):
        ask(str(tmp_path / "file"))


def test_of_several_that_create_a_file_one_succeeds(store):
    assert store.create("a/key", b"one")
    assert not store.create("a/key", b"two")
    assert store.get_bytes("a/key") == b"one"
    assert store.names() == ["a/key"]


def test_of_several_threads_that_create_a_file_one_succeeds(local: Store, tmp_path: Path):
    for number in range(20):
        with ThreadPoolExecutor(8) as threads:
            made = list(threads.map(lambda who, n=number: local.create(f"key{n}", bytes([who])), range(8)))
        assert made.count(True) == 1
        assert local.get_bytes(f"key{number}") == bytes([made.index(True)])


class Unconditional(BaseHTTPRequestHandler):
    """An S3 server with one bucket that does not know conditional writes."""

    protocol_version = "HTTP/1.1"
    objects: ClassVar[dict[str, bytes]] = {}

    def do_PUT(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("If-None-Match"):
            return self.answer(501, b"<Error><Code>NotImplemented</Code><Message>no conditions</Message></Error>")
        self.objects[self.path] = content
        return self.answer(200)

    def do_HEAD(self):
        self.answer(200 if self.path in self.objects else 404)

    def do_GET(self):
        if "list-type" in self.path:
            return self.answer(200, b"<ListBucketResult><KeyCount>0</KeyCount></ListBucketResult>")
        return self.answer(200, self.objects[self.path])

    def answer(self, status, content=b""):
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        """Keep the test's output clean."""


def test_a_store_that_knows_no_conditions_is_asked_first(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Unconditional)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.server_port}", "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    try:
        store = Store("s3://bucket/index", pauses=())
        assert store.create("key", b"one")
        assert not store.create("key", b"two")
        assert store.get_bytes("key") == b"one"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_a_record_alone_tells_what_was_made_while_that_is_whole(root, result):
    """A pod that is tried again knows the record of each of its trials, and asks for no generation."""
    entry = ask(root)
    assert index.made_by(entry.record) is None
    index.remember(entry.record, [result()], {"outcome": "{}"})
    made = index.made_by(entry.record)
    assert made == ask(root).made
    assert made.facts == {"outcome": "{}"}
    Store(made.results[0]).remove("weights")
    assert index.made_by(entry.record) is None
    Store(root).put_bytes(entry.record.removeprefix(f"{Store(root).prefix}/"), b"{")
    assert index.made_by(entry.record) is None
