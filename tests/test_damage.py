"""What became of a finished directory since: cut, deleted, written over, or changed on purpose."""

import json
import logging
import os

import pytest

from thriftune import artifacts, damage, digests
from thriftune.errors import UserError

KINDS = {
    "a hundred changed bytes": ("weights", "weights does not hold what was saved."),
    "cut short": ("weights", "weights has 4,000 bytes where 4,096 were saved."),
    "longer": ("weights", "weights has 4,097 bytes where 4,096 were saved."),
    "deleted": ("weights", "weights is missing."),
    "deleted in a folder": ("templates/tools", "templates/tools is missing."),
    "a folder in its place": ("weights", "weights is missing."),
    "a manifest that was cut": ("manifest.json", "manifest.json is not what was written."),
    "a manifest with another value": ("manifest.json", "manifest.json is not what was written."),
    "a deleted manifest": ("manifest.json", "has no manifest.json"),
}


@pytest.fixture
def directory(tmp_path):
    made = tmp_path / "model"
    (made / "templates").mkdir(parents=True)
    (made / "weights").write_bytes(os.urandom(4096))
    (made / "templates" / "tools").write_text("{{ tools }}")
    artifacts.write_manifest(made, "model", {"loss": 1.5})
    return made


def break_it(file, kind):
    content = file.read_bytes()
    if "deleted" in kind:
        file.unlink()
    elif kind == "a folder in its place":
        file.unlink()
        file.mkdir()
    elif kind == "a manifest with another value":
        file.write_bytes(content.replace(b"1.5", b"1.6"))
    elif kind == "longer":
        file.write_bytes(content + b"x")
    elif "changed" in kind:
        file.write_bytes(content[:1000] + bytes(100) + content[1100:])
    else:
        file.write_bytes(content[:-96])


def test_what_is_as_it_was_finished_is_not_damaged(directory):
    assert damage.damages(directory, content=True) == []
    assert damage.is_reusable(directory)
    (directory / "README.md").write_text("came later")
    damage.require_undamaged(directory, content=True)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named_and_the_directory_not_used(directory, kind, caplog):
    """A directory in the cache was trusted as soon as it had a manifest, whatever had become of its files."""
    name, said = KINDS[kind]
    break_it(directory / name, kind)
    (found,) = damage.damages(directory, content=True)
    assert found.startswith(said)
    with caplog.at_level(logging.WARNING):
        assert not damage.is_reusable(directory)
    assert f"{directory} is damaged and will be made again: {said}" in caplog.text
    if kind != "a deleted manifest":  # which makes it a directory like any other
        with pytest.raises(UserError) as caught:
            damage.require_undamaged(directory, "model_dir", content=True)
        assert f"model_dir = {directory}: {said}" in str(caught.value)


def test_every_damaged_file_is_named_at_once(directory):
    for name in ("weights", "templates/tools"):
        (directory / name).unlink()
    with pytest.raises(UserError) as caught:
        damage.require_undamaged(directory, content=False)
    assert len(caught.value.problems) == 2


def test_sizes_alone_need_no_reading(directory, reads):
    break_it(directory / "weights", "a hundred changed bytes")
    assert damage.damages(directory, content=False) == []
    assert reads == []


@pytest.fixture
def reads(monkeypatch):
    """The files whose content was read, each time."""
    seen, read = [], digests.sha256_of
    monkeypatch.setattr(digests, "sha256_of", lambda file, *rest: seen.append(file.name) or read(file, *rest))
    monkeypatch.setattr(digests, "_SETTLED_NS", 0)
    return seen


def test_content_is_read_once_in_a_process_as_long_as_nobody_writes(directory, reads):
    for _ in range(3):
        assert damage.is_reusable(directory)
    assert sorted(reads) == ["tools", "weights"]
    times = (directory / "weights").stat()
    break_it(directory / "weights", "a hundred changed bytes")
    os.utime(directory / "weights", ns=(times.st_atime_ns, times.st_mtime_ns))  # as rsync and tar leave them
    assert not damage.is_reusable(directory)


def test_a_directory_without_checksums_is_held_against_its_sizes(directory):
    artifacts.write_manifest(directory, "checkpoint", {}, checksums=False)
    break_it(directory / "weights", "a hundred changed bytes")
    assert damage.is_reusable(directory)
    break_it(directory / "weights", "cut short")
    assert not damage.is_reusable(directory)


@pytest.mark.parametrize("content", ['{"kind": "model", "git_commit": null}', '{"files": ["a"]}', "[]", "{}"])
def test_a_manifest_of_an_older_version_or_of_somebody_else_is_let_through(directory, content):
    (directory / "manifest.json").write_text(content)
    (directory / "weights").unlink()
    damage.require_undamaged(directory, content=True)


def test_what_was_changed_on_purpose_can_be_said_so(directory):
    break_it(directory / "weights", "cut short")
    with pytest.raises(UserError, match="remove `files` and `checksum` from its manifest.json"):
        damage.require_undamaged(directory, content=True)
    manifest = json.loads((directory / "manifest.json").read_text())
    del manifest["files"], manifest["checksum"]
    (directory / "manifest.json").write_text(json.dumps(manifest))
    damage.require_undamaged(directory, content=True)
    assert artifacts.read_content(directory) == {"loss": 1.5}


@pytest.mark.parametrize("name", ["/dev/zero", "../outside", ""])
def test_no_file_outside_of_the_directory_is_read(directory, name):
    """A list of a device would have been read without end."""
    (directory / "manifest.json").write_text(json.dumps({"files": {name: {"size": 0, "sha256": "x"}}}))
    assert damage.damages(directory, content=True) == ["manifest.json has an invalid list of files."]


def test_a_file_that_the_disk_does_not_give_is_damage(directory, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(digests, "sha256_of", fail)
    found = damage.damages(directory, content=True)
    assert "weights cannot be read (Input/output error)." in found
