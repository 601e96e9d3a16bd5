"""What a store that is away, or refuses, does to saving: a warning, and training goes on; not for ever."""

import logging
import re
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest
from checkpointing import GatedStore, lone_saver, save_steps, until, whole_steps, write_checkpoint

from thriftune.errors import TransientError, UserError
from thriftune.stores.store import Store

pytest_plugins = ("store_kinds",)


def test_a_store_that_is_away_costs_one_checkpoint_and_not_the_training(bucket, s3, tmp_path, caplog):
    saver = lone_saver(Store(s3.prefix, pauses=(0.05,)))
    saver.save(write_checkpoint(tmp_path / "10", 10), 10, {})
    assert saver.wait(20)
    bucket.stop()
    try:
        saver.save(write_checkpoint(tmp_path / "20", 20), 20, {})
        assert saver.wait(60)
    finally:
        bucket.start()
    assert saver.last_complete == 10
    warnings = [r.message for r in caplog.records if r.levelno >= logging.WARNING and "thriftune" in r.name]
    assert len(warnings) == len(saver.failures) == 1
    assert "The checkpoint of step 20 could not be saved" in warnings[0]
    assert s3.prefix in warnings[0]
    assert (tmp_path / "10").exists(), "the newest complete one stays on the disk"
    assert not (tmp_path / "20").exists()
    saver.save(write_checkpoint(tmp_path / "30", 30), 30, {})
    saver.close()
    assert saver.last_complete == 30
    assert whole_steps(s3, tmp_path) == [30, 10]


def test_a_store_that_goes_away_within_an_upload_leaves_nothing_whole(bucket, s3, tmp_path):
    save_steps(s3, tmp_path / "run", 10)
    gate = threading.Event()
    gated = GatedStore(s3.prefix, gate)
    gated.pauses = ()
    saver = lone_saver(gated)
    saver.save(write_checkpoint(tmp_path / "20", 20), 20, {})
    until(lambda: gated.begun)
    bucket.stop()
    gate.set()
    try:
        assert saver.wait(60)
    finally:
        bucket.start()
    assert len(saver.failures) == 1
    assert whole_steps(s3, tmp_path) == [10]
    saver.save(write_checkpoint(tmp_path / "30", 30), 30, {})
    saver.close()
    assert whole_steps(s3, tmp_path) == [30, 10]


def blocked(prefix: str) -> Path:
    """A file where the store's folder should be: refuses root too, whom a read-only folder does not stop."""
    place = Path(prefix)
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch()
    return place


def test_after_three_failures_in_a_row_save_says_so_and_after_a_success_it_counts_anew(local, tmp_path):
    class Unsteady(Store):
        away = False

        def upload(self, file, name, sha256=""):
            if self.away:
                raise TransientError(f"{self.prefix} is away.")
            super().upload(file, name, sha256)

    store = Unsteady(local.prefix)
    saver = lone_saver(store)

    def save(*steps, away):
        store.away = away
        for step in steps:
            saver.save(write_checkpoint(tmp_path / str(step), step), step, {})
            assert saver.wait(20)

    save(1, 2, away=True)
    save(3, away=False)
    save(4, 5, away=True)
    save(6, away=False)
    save(7, 8, 9, away=True)
    with pytest.raises(TransientError, match="The last 3 checkpoints could not be saved: step 9: TransientError"):
        save(10, away=False)
    assert (tmp_path / "10").exists(), "what was not taken stays the caller's"
    assert saver.last_complete == 6
    assert len(saver.failures) == 7
    saver.close()


def test_a_store_that_refuses_is_the_users_after_three_times(local, tmp_path):
    saver = lone_saver(local)
    place = blocked(local.prefix)
    for step in (1, 2):
        saver.save(write_checkpoint(tmp_path / str(step), step), step, {})
        assert saver.wait(20)
    place.unlink()
    saver.save(write_checkpoint(tmp_path / "3", 3), 3, {})
    assert saver.wait(20)
    assert (saver.last_complete, len(saver.failures)) == (3, 2)
    Path(local.prefix).rename(tmp_path / "aside")
    blocked(local.prefix)
    for step in (4, 5, 6):
        saver.save(write_checkpoint(tmp_path / str(step), step), step, {})
        assert saver.wait(20)
    with pytest.raises(UserError, match="NotADirectoryError"):
        saver.save(write_checkpoint(tmp_path / "7", 7), 7, {})
    saver.close()


def test_nothing_is_uploaded_of_files_that_are_still_written_or_could_not_be(local, tmp_path):
    """A failed write counts like a failed upload."""
    gate = threading.Event()
    gate.set()
    store = GatedStore(local.prefix, gate)
    saver = lone_saver(store)
    written = Future()
    saver.save(write_checkpoint(tmp_path / "1", 1), 1, {}, written=written)
    assert not saver.wait(0.2)
    assert store.begun == []
    written.set_result(None)
    assert saver.wait(20)
    assert whole_steps(local, tmp_path) == [1]
    for step in (2, 3, 4):
        written = Future()
        saver.save(write_checkpoint(tmp_path / str(step), step), step, {}, written=written)
        written.set_exception(TransientError("Rank 1 could not write."))
        assert saver.wait(20)
        assert not (tmp_path / str(step)).exists()
    with pytest.raises(TransientError, match=r"The last 3 checkpoints .*: step 4: TransientError: Rank 1 could not"):
        saver.save(write_checkpoint(tmp_path / "5", 5), 5, {})
    saver.close()
    assert whole_steps(local, tmp_path) == [1]


def test_a_bug_in_the_thread_is_logged_with_its_trace_and_the_next_save_works(local, tmp_path, caplog):
    class Buggy(Store):
        def upload(self, file, name, sha256=""):
            if "checkpoint-1/" in name:
                raise ZeroDivisionError("a bug")
            super().upload(file, name, sha256)

    saver = lone_saver(Buggy(local.prefix))
    for step in (1, 2):
        saver.save(write_checkpoint(tmp_path / str(step), step), step, {})
        assert saver.wait(20)
    saver.close()
    assert saver.last_complete == 2
    assert "ZeroDivisionError: a bug" in saver.failures[0]
    assert any(r.exc_info for r in caplog.records)


def test_a_file_that_changes_while_it_is_uploaded_does_not_become_part_of_a_whole_one(local, tmp_path):
    gate = threading.Event()
    gated = GatedStore(local.prefix, gate)
    saver = lone_saver(gated)
    directory = write_checkpoint(tmp_path / "10", 10)
    saver.save(directory, 10, {})
    until(lambda: gated.begun)
    (directory / gated.begun[0].partition("node-0/")[2]).write_bytes(b"something else")
    gate.set()
    saver.close()
    assert re.search(r"has \d+ bytes, but \d+ in the store\.", saver.failures[0])
    assert whole_steps(local, tmp_path) == []
