"""An output directory is whole or not there."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from thriftune import artifacts
from thriftune.artifacts import is_whole, key_of, read_manifest, write_manifest, writing
from thriftune.errors import UserError


def test_a_directory_appears_only_when_the_block_ends(tmp_path):
    final = tmp_path / "deep" / "model"
    with writing(final, "testing") as directory:
        (directory / "weights").write_text("w")
        write_manifest(directory, "model", {"a": 1})
        assert not final.exists()
        assert not is_whole(final)
    assert is_whole(final)
    assert (final / "weights").read_text() == "w"
    assert [p.name for p in final.parent.iterdir()] == ["model"]


def write_and_fail(final, run):
    """Fail at the last moment, with the manifest already written."""
    with writing(final, "testing") as directory:
        write_manifest(directory, "model", {"run": run})
        raise KeyError


def test_an_error_inside_leaves_no_final_directory(tmp_path):
    final = tmp_path / "model"
    with pytest.raises(KeyError):
        write_and_fail(final, 1)
    assert not final.exists()
    assert not is_whole(final)


def test_an_error_inside_keeps_the_older_directory(tmp_path):
    final = tmp_path / "model"
    with writing(final, "testing") as directory:
        write_manifest(directory, "model", {"run": 1})
    with pytest.raises(KeyError):
        write_and_fail(final, 2)
    assert read_manifest(final)["run"] == 1


def test_a_block_without_a_manifest_is_our_mistake_and_leaves_nothing(tmp_path):
    with (
        pytest.raises(RuntimeError, match=r"has no manifest\.json"),
        writing(tmp_path / "model", "testing") as directory,
    ):
        (directory / "weights").write_text("w")
    assert not (tmp_path / "model").exists()


def test_an_older_directory_is_replaced_whole(tmp_path):
    final = tmp_path / "model"
    for name in ("old", "new"):
        with writing(final, "testing") as directory:
            (directory / name).write_text(name)
            write_manifest(directory, "model", {"which": name})
    assert sorted(p.name for p in final.iterdir()) == ["manifest.json", "new"]
    assert read_manifest(final)["which"] == "new"


def test_leftovers_of_a_killed_writer_are_not_taken_over(tmp_path):
    """A process that is killed runs no clean-up: its half-written files must not reach the next result."""
    final = tmp_path / "model"
    killed = writing(final, "testing")
    (killed.__enter__() / "half-written").write_text("x")
    assert not is_whole(final)
    with writing(final, "testing") as directory:
        assert list(directory.iterdir()) == []
        write_manifest(directory, "model", {})
    assert not (final / "half-written").exists()


def test_two_writers_at_once_do_not_write_into_each_others_directory(tmp_path):
    final = tmp_path / "model"
    with writing(final, "testing") as first, writing(final, "testing") as second:
        assert first != second
        for number, directory in enumerate((first, second)):
            (directory / f"of-{number}").touch()
            write_manifest(directory, "model", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
    assert len(list(final.glob("of-*"))) == 1


def test_a_finished_directory_can_be_read_by_other_users(tmp_path):
    with writing(tmp_path / "model", "testing") as directory:
        write_manifest(directory, "model", {})
    assert (tmp_path / "model").stat().st_mode & 0o777 == 0o755


def test_a_directory_without_manifest_is_no_finished_output(tmp_path):
    with pytest.raises(UserError, match=r"directory = .*has no manifest\.json.*Run the step"):
        read_manifest(tmp_path)
    assert not is_whole(tmp_path)


def test_a_manifest_says_kind_content_versions_and_commit(tmp_path):
    write_manifest(tmp_path, "adapter", {"metrics": {"loss": 1.5}})
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["kind"] == "adapter"
    assert manifest["metrics"] == {"loss": 1.5}
    assert {"torch", "transformers", "deepspeed", "peft"} <= set(manifest["versions"])
    assert manifest["git_commit"] == artifacts.git_commit()


def test_the_commit_is_that_of_this_checkout():
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    if head.returncode:
        pytest.skip("not a git checkout")
    assert artifacts.git_commit() == head.stdout.strip()


def test_a_key_differs_when_any_part_does():
    keys = {key_of("a", "b"), key_of("a", "c"), key_of("ab"), key_of("b", "a"), key_of("a", "b", "")}
    assert len(keys) == 5
    assert key_of("a", "b") == key_of("a", "b")
    assert all(len(key) == 16 for key in keys)


def test_several_that_make_the_same_at_once_all_end_well(tmp_path):
    """Two runs that prepared the same data removed the directory under each other, or failed to rename theirs."""

    def make(number):
        with writing(tmp_path / "dataset", "testing") as directory:
            write_manifest(directory, "dataset", {"number": number})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(make, range(40)))
    assert read_manifest(tmp_path / "dataset")["kind"] == "dataset"
    assert [p.name for p in tmp_path.iterdir()] == ["dataset"]


def test_what_a_killed_process_had_begun_is_removed_by_the_next_that_writes_beside_it(tmp_path):
    """A fetch that was killed left a whole model behind, and each one after it another."""
    final = tmp_path / "model"
    code = f"""
import os, signal
from pathlib import Path
from thriftune.artifacts import writing
with writing(Path({str(final)!r}), "a test") as directory:
    (directory / "weights").write_text("w")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob("model.*.partial"))) == 1
    (other := tmp_path / "model.of-another.x").mkdir()
    with writing(tmp_path / "model-of-another-key", "a test") as directory:
        write_manifest(directory, "model", {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model-of-another-key", other.name]


def test_what_another_process_is_writing_is_left_to_it(tmp_path):
    final = tmp_path / "model"
    with writing(final, "a test") as first:
        with writing(final, "a test") as second:
            assert first.is_dir()
            write_manifest(second, "model", {})
        write_manifest(first, "model", {})
    assert is_whole(final)


def test_a_manifest_that_is_not_what_was_written_is_refused(tmp_path):
    """A manifest that was cut ended in an error of the JSON parser, which named no file."""
    write_manifest(tmp_path, "dataset", {"fingerprint": "abc"})
    file = tmp_path / "manifest.json"
    whole = file.read_text()
    for broken in (whole[:-20], whole.replace("abc", "abd"), "[]", "[" * 100_000, ""):
        file.write_text(broken)
        with pytest.raises(UserError, match=r"manifest\.json is not what was written"):
            read_manifest(tmp_path)
    file.write_text(whole)
    assert read_manifest(tmp_path)["fingerprint"] == "abc"


def test_a_manifest_is_what_was_written_whatever_was_taken_out_of_it(tmp_path):
    """Its text was looked through for secrets again after its checksum was taken, in another order of its keys."""
    urls = ["https://host/get?file=averylongnamewithoutanydigits", "http://h/x?" + "&".join([f"a={'b1' * 600}"] * 4)]
    for source in (*urls, f"http://{'u' * 1500}:p@{urls[0]}"):
        artifacts.write_manifest(tmp_path, "dataset", {"source": source, "note": "x" * 300})
        assert artifacts.read_manifest(tmp_path)["note"] == "x" * 300, "it is refused as damaged otherwise"
