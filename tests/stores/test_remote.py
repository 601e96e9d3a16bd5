"""Why a file of a store or a web server could not be had: it is not there, not allowed, or nobody answers."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fsspec
import pytest

from thriftune import urls
from thriftune.config import ModelConfig
from thriftune.data import sources
from thriftune.errors import ConfigError, DataError, ModelSourceError, TransientError
from thriftune.models import architecture
from thriftune.models import fetching as models
from thriftune.models.weight_files import Folder, weights_in
from thriftune.planning import catalogue
from thriftune.stores import failures, remote, transfer

CLOSED, UNKNOWN = "http://127.0.0.1:9", "http://no.such.host.invalid"
INDEX = b'<a href="rows-1.jsonl">1</a> <a href="rows-2.jsonl">2</a>'


class Server(BaseHTTPRequestHandler):
    """Answers /<status>/... with that status, and serves two files and a page that lists them."""

    def do_GET(self):
        status = int(self.path.split("/")[1]) if self.path[1:4].isdigit() else 200
        body = INDEX if self.path.endswith("/") else b'{"text": "a"}\n'
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if "tagged" in self.path:
            self.send_header("ETag", '"1"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - as http.server looks for it

    def log_message(self, *args):
        """Keep the test's output clean."""


@pytest.fixture(scope="module")
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def closed_s3(monkeypatch):
    """S3 at a port that nobody listens to."""
    options = {
        "endpoint_url": CLOSED, "key": "a", "secret": "b", "skip_instance_cache": True,
        "config_kwargs": {"retries": {"total_max_attempts": 1}},
    }  # fmt: skip
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)


# How each thing that a run names by a place is looked at.
LOOKS = {
    "data": lambda place: sources.version(f"{place}/rows.jsonl"),
    "a glob of data": lambda place: sources.version(f"{place}/*.jsonl"),
    "model": lambda place: models.version(f"{place}/model"),
    "the model's configuration": lambda place: architecture.of(ModelConfig(source=f"{place}/model")),
    "the model's weights": lambda place: weights_in(Folder(f"{place}/model"), place),
    "catalogue": lambda place: catalogue.load(f"{place}/nodes.yaml"),
}


@pytest.mark.parametrize("what", LOOKS)
@pytest.mark.parametrize("place", [CLOSED, UNKNOWN])
def test_a_server_that_is_not_there_is_unreachable(place, what):
    """A closed port was "no such file" of data, and "holds no files" of a model: nobody tried again."""
    with pytest.raises(TransientError, match=r"the store cannot be reached or does not answer \(\w+: "):
        LOOKS[what](place)


@pytest.mark.parametrize("what", LOOKS)
def test_a_store_that_is_not_there_is_unreachable(what, closed_s3):
    """Of S3 it was a traceback of botocore."""
    with pytest.raises(TransientError, match=r"the store cannot be reached or does not answer \(\w+: "):
        LOOKS[what]("s3://bucket")


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (404, DataError, "no such file"),
        (410, DataError, "no such file"),
        (401, DataError, "access is denied"),
        (403, DataError, "access is denied"),
        (400, DataError, "cannot be read"),
        (429, TransientError, "does not answer"),
        (500, TransientError, "does not answer"),
        (503, TransientError, "does not answer"),
    ],
)
def test_what_a_server_answers_is_told_apart(server, status, error, words):
    with pytest.raises(error, match=words):
        sources.version(f"{server}/{status}/rows.jsonl")


def test_a_model_that_may_not_be_read_is_not_one_without_files(server):
    with pytest.raises(ModelSourceError, match="access is denied"):
        models.version(f"{server}/403/model")
    with pytest.raises(ModelSourceError, match="holds no files"):
        models.version(f"{server}/404/model")
    with pytest.raises(ConfigError, match="no such file"):
        catalogue.load(f"{server}/404/nodes.yaml")


def test_files_of_a_listing_are_found(server):
    assert [urls.name_of(file) for file in remote.files(f"{server}/rows/rows-*.jsonl")] == [
        "rows-1.jsonl", "rows-2.jsonl",
    ]  # fmt: skip
    assert remote.files(f"{server}/rows-1.jsonl?version=2") == [f"{server}/rows-1.jsonl?version=2"]


def test_a_file_is_known_by_its_tag_or_by_its_content(server, tmp_path):
    assert remote.stamp(f"{server}/tagged.jsonl?sig=a") == remote.stamp(f"{server}/tagged.jsonl?sig=b") == '14 "1"'
    assert remote.stamp(f"{server}/plain.jsonl") == hashlib.sha256(b'{"text": "a"}\n').hexdigest()
    transfer.fetch(f"{server}/plain.jsonl", tmp_path / "deep/rows.jsonl")
    assert (tmp_path / "deep/rows.jsonl").read_text() == '{"text": "a"}\n'


@pytest.mark.parametrize(
    ("place", "path"),
    [
        ("https://h/rows.jsonl?sig=a#b", "https://h/rows.jsonl"),
        ("s3://bucket/rows-?.jsonl", "s3://bucket/rows-?.jsonl"),
        ("data/rows-?.jsonl", "data/rows-?.jsonl"),
    ],
)
def test_a_question_mark_is_a_query_on_the_web_alone(place, path):
    assert urls.path_of(place) == path


@pytest.mark.parametrize(
    ("place", "bucket"), [("s3://bucket/a/b", "s3://bucket"), ("https://h:1/a?sig=x", "https://h:1"), ("/a/b", "/a/b")]
)  # fmt: skip
def test_a_bucket_is_what_a_url_begins_with(place, bucket):
    assert urls.bucket_of(place) == bucket


def test_a_local_disk_that_refuses_a_download_is_no_matter_of_the_store(server):
    with pytest.raises(OSError, match="Permission|Read-only|No such device|Not a directory|not permitted"):  # noqa: SIM117
        with failures.explained("data.source", server, DataError):
            raise PermissionError(13, "Permission denied", "/local/file")
