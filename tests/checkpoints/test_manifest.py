"""A manifest comes back as it was written, and never when a single bit of it changed."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thriftune.checkpoints.manifest import FileEntry, Manifest, as_json

_PARTS = st.text(st.characters(blacklist_characters="/\\\0"), min_size=1).filter(lambda t: t not in (".", ".."))
NAMES = st.lists(_PARTS, min_size=1, max_size=3).map("/".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ENTRIES = st.builds(FileEntry, NAMES, st.integers(0, 2**50), st.text("0123456789abcdef", min_size=64, max_size=64),
                    st.integers(0, 7))  # fmt: skip
MANIFESTS = st.builds(
    Manifest,
    step=st.integers(0, 10**9),
    world_size=st.integers(1, 64),
    nodes=st.integers(1, 8),
    files=st.lists(ENTRIES, max_size=4).map(tuple),
    content=st.dictionaries(st.text(), JSON, max_size=3),
)


@given(MANIFESTS)
@settings(max_examples=60, deadline=None)
def test_it_comes_back_as_it_was(manifest):
    assert Manifest.from_bytes(manifest.to_bytes()) == manifest


@given(MANIFESTS, st.data())
@settings(max_examples=300, deadline=None)
def test_a_changed_byte_is_found(manifest, data):
    written = bytearray(manifest.to_bytes())
    at = data.draw(st.integers(0, len(written) - 1))
    written[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match="manifest"):
        Manifest.from_bytes(bytes(written))


def test_every_bit_counts():
    written = Manifest(40, 2, 1, (FileEntry("a/b", 3, "0" * 64, 0),), {"saved_at": 1.5, "x": [1, "é"]}).to_bytes()
    for at in range(len(written)):
        for bit in range(8):
            flipped = bytearray(written)
            flipped[at] ^= 1 << bit
            with pytest.raises(ValueError):
                Manifest.from_bytes(bytes(flipped))


@pytest.mark.parametrize("cut", [0, 1, 50, -1, -2])
def test_a_cut_one_is_found(cut):
    written = Manifest(40, 2, 1, ()).to_bytes()
    with pytest.raises(ValueError, match="damaged"):
        Manifest.from_bytes(written[:cut])


def test_content_that_json_writes_otherwise_comes_back_readable():
    # Keys that are numbers sort differently once they are texts: the checksum was then over another order.
    manifest = Manifest(1, 1, 1, (), {"losses": {10: 0.5, 9: (1, 2)}})
    assert Manifest.from_bytes(manifest.to_bytes()).content == {"losses": {"10": 0.5, "9": [1, 2]}}
    with pytest.raises(TypeError):
        as_json({"model": object()})


def test_one_that_an_older_version_wrote_is_whole_also_with_a_secret_in_it(monkeypatch):
    content = {"source": "http://h/rows?sig=s3cr3t"}
    with monkeypatch.context() as older:
        older.setattr("thriftune.checkpoints.manifest.redacted", lambda text: text)
        written = Manifest(1, 1, 1, (), content).to_bytes()
    read = Manifest.from_bytes(written)
    assert read.content == content
    assert Manifest.from_bytes(read.to_bytes()).content == {"source": "http://h/rows?sig=REDACTED"}


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "", "a\\b"])
def test_a_name_outside_the_checkpoint_is_refused(name):
    written = Manifest(1, 1, 1, (FileEntry(name, 1, "0" * 64, 0),)).to_bytes()
    with pytest.raises(ValueError, match="not inside"):
        Manifest.from_bytes(written)


def test_another_version_is_refused():
    text = Manifest(1, 1, 1, ()).to_bytes().decode()
    assert json.loads(text)["manifest"]["format"] == 1
    with pytest.raises(ValueError, match="another version"):
        Manifest.from_bytes(text.replace('"format": 1', '"format": 2').encode())


def test_of_a_name_that_two_nodes_wrote_the_lowest_nodes_is_chosen():
    entries = (FileEntry("latest", 1, "b" * 64, 1), FileEntry("latest", 2, "a" * 64, 0), FileEntry("other", 1, "", 1))
    manifest = Manifest(1, 2, 2, entries)
    assert manifest.chosen(lambda _: True) == [entries[1], entries[2]]
    assert manifest.chosen(lambda name: name == "other") == [entries[2]]
    assert manifest.size == 4
