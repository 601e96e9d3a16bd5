"""Folders of living processes stay; those that a killed process left are removed."""

import subprocess
import sys

from thriftune import artifacts, scratch

_MAKE = """
import sys, time
from pathlib import Path
from thriftune import artifacts, scratch
here = Path(sys.argv[1])
with scratch.new_folder(here, "thriftune-", ".scratch") as made, artifacts.writing(here / "run" / "model", "a test"):
    (made / "shard.bin").write_bytes(bytes(1000))
    print(made, flush=True)
    time.sleep(600)
"""


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(tmp_path):
    """After 26 kills 22 folders were left, each with the shards of a checkpoint, and nothing ever found them again."""
    with subprocess.Popen([sys.executable, "-c", _MAKE, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        made = other.stdout.readline().strip()
        left = [*tmp_path.glob(f"thriftune-{scratch.RANDOM}.scratch"), *artifacts.unfinished(tmp_path)]
        scratch.remove_left(left)
        there = [folder.is_dir() for folder in left]
        other.kill()
    assert there == [True, True], "the temporary folder, and the model that is being written"
    assert str(left[0]) == made
    scratch.remove_left(left)
    assert not any(folder.exists() for folder in left)


def test_what_a_person_calls_by_the_same_beginning_or_end_is_not_removed(tmp_path, monkeypatch):
    """A checkout in the temporary directory, thriftune-main, was removed by the first run that was started in it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("THRIFTUNE_OUTPUTS", str(tmp_path / "outputs"))
    theirs = [tmp_path / "thriftune-checkout", tmp_path / "outputs" / "models" / "download.partial"]
    left = tmp_path / "thriftune-0a_b1c2d.scratch"
    for folder in (*theirs, left):
        folder.mkdir(parents=True)
    script = "import sys; sys.argv = ['pyflyte']; from tasks import local_run; local_run.begin()"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert [folder.is_dir() for folder in (*theirs, left)] == [True, True, False]


def test_a_folder_goes_at_the_end_and_when_its_process_says_so(tmp_path):
    with scratch.new_folder(tmp_path, "a-") as first:
        assert first.is_dir()
        with scratch.new_folder(tmp_path, "b-", ".partial") as second:
            (second / "file").write_text("x")
            scratch.remove_left([first, second])
            assert first.is_dir(), "its own process is alive"
            scratch.remove_own()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_renamed_is_not_removed(tmp_path):
    with scratch.new_folder(tmp_path, "model.", ".partial") as made:
        made.rename(tmp_path / "model")
    assert [folder.name for folder in tmp_path.iterdir()] == ["model"]
