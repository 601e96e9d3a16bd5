"""Which weight files are read, and what is wrong with them, by their headers alone."""

import json

import pytest
from zero_weights import LLAMA_SHAPES, safetensors_of

from thriftune.errors import ModelSourceError
from thriftune.models.weight_files import INDEX, SINGLE, Folder, shapes_in_entries, weights_in

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


@pytest.fixture
def sharded(tmp_path):
    """A model in two shards, with their index."""
    half = len(LLAMA_SHAPES) // 2
    names = list(LLAMA_SHAPES)
    for file, part in ((FIRST, names[:half]), (SECOND, names[half:])):
        (tmp_path / file).write_bytes(safetensors_of({name: LLAMA_SHAPES[name] for name in part}))
    weight_map = {name: FIRST if number < half else SECOND for number, name in enumerate(names)}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return tmp_path


def weights_of(directory):
    return weights_in(Folder(directory), "my-model")


def refusal(directory):
    with pytest.raises(ModelSourceError) as caught:
        weights_of(directory)
    return str(caught.value)


def test_the_shapes_of_all_shards_are_read(sharded):
    assert weights_of(sharded).shapes == dict(LLAMA_SHAPES)
    assert weights_of(sharded).unread == ()


def test_a_store_is_asked_for_the_headers_only(sharded):
    import fsspec

    store = fsspec.filesystem("memory")
    shapes = {f"a.long.name.to.make.the.header.longer.{number}.weight": (1,) for number in range(2000)}
    store.pipe(f"/weights/{SINGLE}", safetensors_of(shapes))  # a header of more than the first request brings
    assert weights_in(Folder("memory://weights"), "my-model").shapes == shapes


def test_a_shard_cut_short_is_named(sharded):
    """The run went on with random weights, or died in the middle of loading."""
    file = sharded / SECOND
    file.write_bytes(file.read_bytes()[:-8])
    assert f"my-model: {SECOND} is truncated: it has" in refusal(sharded)


def test_every_damaged_file_is_named(sharded):
    (sharded / FIRST).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (sharded / SECOND).write_bytes(b"abc")
    text = refusal(sharded)
    assert f"{FIRST} is the pointer of Git LFS" in text
    assert f"{SECOND} is not a complete safetensors file" in text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not a complete safetensors file"),
        (b"PK\x03\x04" + bytes(60), "not a complete safetensors file"),
        ((2).to_bytes(8, "little") + b"[]", "has a header that is not valid safetensors"),
        (safetensors_of(LLAMA_SHAPES) + b"x", "holds more than it should"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(tmp_path, content, reason):
    (tmp_path / SINGLE).write_bytes(content)
    assert reason in refusal(tmp_path)


def test_shards_without_their_index_are_refused(sharded):
    (sharded / INDEX).unlink()
    text = refusal(sharded)
    assert f"has neither {SINGLE} nor {INDEX}" in text
    assert FIRST in text


def test_a_shard_that_the_index_names_and_that_is_not_there_is_named(sharded):
    (sharded / SECOND).unlink()
    assert f"lacks {SECOND}, which {INDEX} names" in refusal(sharded)


def test_an_index_of_pickles_is_refused(sharded):
    (sharded / "pytorch_model.bin").write_bytes(b"x")
    (sharded / INDEX).write_text(json.dumps({"weight_map": {"a": "pytorch_model.bin"}}))
    assert "names pytorch_model.bin, which is not a safetensors file" in refusal(sharded)


def test_an_index_that_is_none_is_refused(sharded):
    (sharded / INDEX).write_text("[]")
    assert "has no readable weight_map" in refusal(sharded)


def test_one_file_goes_before_shards_as_in_transformers(sharded):
    """The shards of a model that was saved twice in one directory are left alone; which they are is said."""
    (sharded / SINGLE).write_bytes(safetensors_of({"only": (1,)}))
    assert weights_of(sharded).shapes == {"only": (1,)}
    assert weights_of(sharded).unread == (FIRST, SECOND)


def test_a_file_that_the_configuration_names_goes_before_all(sharded):
    (sharded / "config.json").write_text(json.dumps({"transformers_weights": FIRST}))
    assert weights_of(sharded).unread == (SECOND,)


def test_a_directory_that_is_not_there_is_no_reason_to_try_again(tmp_path):
    assert "its weights cannot be read" in refusal(tmp_path / "nowhere")


def test_one_file_is_read_beside_the_index_of_shards_that_are_gone(sharded):
    """transformers reads the one file, and it was refused for an index that nobody reads."""
    (sharded / FIRST).unlink()
    (sharded / SINGLE).write_bytes(safetensors_of(dict(LLAMA_SHAPES)))
    assert weights_of(sharded).shapes == dict(LLAMA_SHAPES)


def header_of(text, weights=64):
    """A file with any header."""
    header = text if isinstance(text, bytes) else json.dumps(text).encode()
    return len(header).to_bytes(8, "little") + header + bytes(weights)


def entry(begin, end, **others):
    """A tensor of a header, in fp32."""
    return {"dtype": "F32", "shape": [(end - begin) // 4], "data_offsets": [begin, end], **others}


WHOLE = entry(0, 64)
# Headers of 64 bytes of weights, all of which Python's JSON reads.
BROKEN_HEADERS = {
    "overlapping": {"a": entry(0, 40), "b": entry(32, 64)},
    "with a hole": {"a": entry(0, 16), "b": entry(32, 64)},
    "that begin late": {"a": entry(16, 64)},
    "that end before they begin": {"a": WHOLE, "b": entry(64, 48, shape=[4])},
    "beyond the file": {"a": entry(0, 128)},
    "of another shape": {"a": {**WHOLE, "shape": [17]}},
    "of another type": {"a": {**WHOLE, "dtype": "F16"}},
    "of an unknown type": {"a": {**WHOLE, "dtype": "F33"}},
    "of negative shape": {"a": {**WHOLE, "shape": [-4, -4]}},
    "at negative offsets": {"a": {**WHOLE, "data_offsets": [-64, 0]}},
    "of more elements than can be counted": {"a": {**WHOLE, "shape": [2**62, 2**62]}},
    "of a broken number of elements": {"a": {**WHOLE, "shape": [16.0]}},
    "with three offsets": {"a": {**WHOLE, "data_offsets": [0, 64, 64]}},
    "and metadata that is a list": {"__metadata__": [], "a": WHOLE},
    "and metadata that is no text": {"__metadata__": {"format": 1}, "a": WHOLE},
    "twice under one name": b'{"a": ' + json.dumps(entry(0, 32)).encode() + b', "a": '
    + json.dumps(entry(32, 64)).encode() + b"}",
    "nested without end": b'{"a": ' + b'{"x": ' * 100_000 + b"1" + b"}" * 100_001,
    "lists without end": b"[" * 100_000 + b"]" * 100_000,
    "that are a list": [],
    "that are no JSON": b"hello",
    "in UTF-16": json.dumps({"a": WHOLE}).encode("utf-16"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BROKEN_HEADERS)
def test_a_header_that_safetensors_refuses_is_refused_before_a_model_is_fetched(tmp_path, kind):
    """The preflight passed overlapping and missing weights, and types that nobody reads; nesting was a traceback."""
    (tmp_path / SINGLE).write_bytes(header_of(BROKEN_HEADERS[kind]))
    text = refusal(tmp_path)
    assert text.count("my-model") == 1
    assert f"my-model: {SINGLE} " in text


def test_a_header_that_is_whole_is_read_whatever_the_order_and_the_kind(tmp_path):
    tensors = {"b": entry(32, 64), "a": {**entry(0, 32), "dtype": "F8_E4M3", "shape": [4, 8]}, "none": entry(64, 64)}
    (tmp_path / SINGLE).write_bytes(header_of({"__metadata__": {"format": "pt"}, **tensors}))
    assert weights_of(tmp_path).shapes == {"a": (4, 8), "b": (8,), "none": (0,)}


def test_a_header_longer_than_safetensors_reads_is_not_even_fetched(tmp_path):
    with (tmp_path / SINGLE).open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(200_000_000)  # a hole: nothing is on the disk
    assert "has a header of 100,000,001 bytes" in refusal(tmp_path)
    (tmp_path / SINGLE).write_bytes((2**63).to_bytes(8, "little") + b"{}")
    assert "not a complete safetensors file" in refusal(tmp_path)


@pytest.mark.parametrize("kind", [kind for kind, header in BROKEN_HEADERS.items() if isinstance(header, dict)])
def test_a_header_that_the_hub_s_library_has_read_is_looked_at_in_the_same_way(kind):
    if kind == "beyond the file":  # how long the file is, is not known there
        assert shapes_in_entries(BROKEN_HEADERS[kind]) == {"a": (32,)}
        return
    with pytest.raises(ValueError, match=r"header that is not valid|bytes"):
        shapes_in_entries(BROKEN_HEADERS[kind])


@pytest.mark.parametrize("name", [INDEX, "config.json"])
def test_json_that_is_nested_without_end_is_no_traceback(sharded, name):
    (sharded / name).write_text("[" * 100_000)
    if name == INDEX:
        assert "has no readable weight_map" in refusal(sharded)
    else:
        assert weights_of(sharded).shapes  # model_config says what is wrong with it


def test_links_in_a_circle_are_no_reason_to_try_again(tmp_path):
    (tmp_path / SINGLE).symlink_to(SINGLE)
    (tmp_path / "config.json").symlink_to("config.json")
    assert "cannot be read" in refusal(tmp_path)
