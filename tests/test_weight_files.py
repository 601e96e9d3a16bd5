"""Which weight files are read, and what is wrong with them, by their headers alone."""

import json

import pytest
from zero_weights import LLAMA_SHAPES, safetensors_of

from thriftune.errors import ModelSourceError
from thriftune.weight_files import INDEX, SINGLE, Folder, weights_in

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
    assert f"my-model: {SECOND} is cut short: it has" in refusal(sharded)


def test_every_damaged_file_is_named(sharded):
    (sharded / FIRST).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    (sharded / SECOND).write_bytes(b"abc")
    text = refusal(sharded)
    assert f"{FIRST} is the pointer of Git LFS" in text
    assert f"{SECOND} is no whole safetensors file" in text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no whole safetensors file"),
        (b"PK\x03\x04" + bytes(60), "no whole safetensors file"),
        ((2).to_bytes(8, "little") + b"[]", "has a header that is none of safetensors"),
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
    assert "names pytorch_model.bin, which is no safetensors file" in refusal(sharded)


def test_an_index_that_is_none_is_refused(sharded):
    (sharded / INDEX).write_text("[]")
    assert "has no weight_map" in refusal(sharded)


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
