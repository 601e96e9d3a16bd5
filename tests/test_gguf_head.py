"""The head of a GGUF file in a store: all that a plan and a preflight need of it, and hardly a byte more."""

import struct
from http.server import BaseHTTPRequestHandler

import pytest
from tiny_gguf import write_gguf
from web import serving, web

from thriftune.config import ModelConfig
from thriftune.errors import ModelSourceError
from thriftune.models import config_json, gguf_file, gguf_head
from thriftune.models import fetching as models
from thriftune.preflight import base_model

MIB = 2**20


@pytest.fixture
def file(tmp_path, tiny_tokenizer_dir):
    (tmp_path / "served").mkdir()
    return write_gguf(tmp_path / "served" / "tiny.gguf", tiny_tokenizer_dir)


def test_of_a_gigabyte_only_the_head_is_read(file, tmp_path):
    """The preflight downloaded all of it, and the page of links that fsspec looks for in a file was all of it too."""
    whole = file.read_bytes()
    with file.open("r+b") as stream:
        stream.truncate(2**30)
    with web(file.parent) as (address, server):
        model = ModelConfig(source=f"{address}/tiny.gguf")
        assert models.version(model.source)
        assert config_json.read(model, None) == gguf_file.config_of(file)
        found = base_model.check(model, None, tmp_path / "scratch")
        assert [problem for problem in found.findings if problem.severity == "error"] == []
        assert found.license == "mit"
        assert server.sent < 32 * MIB  # what is in the buffers of the connections
        head = gguf_head.fetch(model.source, tmp_path)
    assert head.stat().st_size == 2**30
    assert head.stat().st_blocks * 512 <= 2 * MIB
    assert head.read_bytes()[:1000] == whole[:1000]


def test_the_head_grows_until_the_list_of_tensors_ends(file, tmp_path, monkeypatch):
    monkeypatch.setattr(gguf_head, "_BLOCK_BYTES", 16)
    with web(file.parent) as (address, _):
        head = gguf_head.fetch(f"{address}/tiny.gguf", tmp_path)
    reader = gguf_file._opened(file)
    assert head.stat().st_size == file.stat().st_size
    held = head.read_bytes().rstrip(b"\0")
    assert len(held) <= reader.data_offset + 16
    assert file.read_bytes().startswith(held)
    assert gguf_file.config_of(head) == gguf_file.config_of(file)
    (tmp_path / "a").mkdir()
    gguf_file.save_tokenizer(head, tmp_path / "a")
    assert (tmp_path / "a" / "tokenizer.json").is_file()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.9])
def test_a_file_that_was_cut_is_refused_in_the_words_of_one_on_this_disk(file, share):
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    said = []
    with web(file.parent) as (address, _):
        for source in (str(file), f"{address}/tiny.gguf"):
            with pytest.raises(ModelSourceError, match="cannot be read as GGUF") as caught:
                config_json.read(ModelConfig(source=source), None)
            said.append(str(caught.value).replace(source, ""))
    assert said[0] == said[1]


HEADER = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9)


@pytest.mark.parametrize(
    "content",
    [
        HEADER + struct.pack("<IQ", 0, 2**62),
        HEADER + struct.pack("<IQ", 8, 2**62),
        HEADER + struct.pack("<IQ", 9, 1) * 5000,
        HEADER + struct.pack("<IQ", 77, 1),
        b"GGUF" + struct.pack("<IQQ", 3, 2**62, 0) + struct.pack("<QI", 0, 2**31),
        b"<html>no such page</html>",
    ],
    ids=["long list", "long list of texts", "nested", "unknown type", "many tensors", "a web page"],
)
def test_the_head_of_a_hostile_file_has_an_end(file, tmp_path, content):
    file.write_bytes(content)
    with web(file.parent) as (address, _), pytest.raises(ModelSourceError, match="cannot be read as GGUF"):
        config_json.read(ModelConfig(source=f"{address}/tiny.gguf"), None)


def test_numbers_of_the_other_byte_order_are_read(file, tmp_path):
    file.write_bytes(
        b"GGUF" + struct.pack(">IQQ", 3, 0, 1) + struct.pack(">Q", 1) + b"a" + struct.pack(">IQ", 8, 3) + b"end"
    )
    head = gguf_head._Head(file.open("rb"))
    gguf_head._walk(head)
    assert head.at == file.stat().st_size


def test_a_server_that_does_not_say_the_size_gives_all_of_it(file, tmp_path):
    content = file.read_bytes()

    class Sizeless(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815 - as http.server looks for it

        def log_message(self, *args):
            """Keep the test's output clean."""

    with serving(Sizeless) as (address, _):
        assert gguf_head.fetch(f"{address}/tiny.gguf", tmp_path).read_bytes() == content
