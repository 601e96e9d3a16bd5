"""What is registered is what was reviewed: a file for every entity, and an entity for every file."""

import difflib

import pytest

from specification import golden

_FILES = sorted(file.name for file in golden.GOLDEN.glob("*.yaml"))


@pytest.fixture(scope="module")
def documents(package):
    return golden.documents(package)


def test_every_entity_has_a_file_and_every_file_an_entity(documents, package):
    for entities in (package.tasks, package.workflows, package.launch_plans, package.parts):
        assert len(entities) > 1
    differing = sorted(documents.keys() ^ set(_FILES))
    assert differing == [], f"after a look at them, run: {golden.COMMAND}"


def test_every_entity_is_as_it_was_reviewed(documents):
    assert len(_FILES) > 30
    diffs = []
    for name in _FILES:
        reviewed, now = (golden.GOLDEN / name).read_text(encoding="utf-8"), documents.get(name, "")
        lines = (text.splitlines(keepends=True) for text in (reviewed, now))
        compared = difflib.unified_diff(*lines, fromfile=f"golden/{name}", tofile="what pyflyte package makes now")
        diffs += [f"{name}: {''.join(compared)}"] if reviewed != now else []
    assert not diffs, "\n".join([*diffs, f"If this is what you want, run: {golden.COMMAND}"])


def test_the_command_writes_and_removes_files(package, tmp_path, monkeypatch):
    monkeypatch.setattr(golden, "GOLDEN", tmp_path)
    (tmp_path / "gone.task.yaml").write_text("kind: task\n")
    assert "gone.task.yaml" in golden.write(package)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(golden.documents(package))
    assert golden.write(package) == []
