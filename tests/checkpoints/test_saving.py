"""One node saves in the background: whole or not there, older ones gone only after newer ones, training not held up."""

import logging
import threading
import time

import pytest
from checkpointing import GatedStore, content_of, lone_saver, restore, save_steps, until, whole_steps, write_checkpoint

from thriftune.checkpoints import layout
from thriftune.checkpoints.manifest import Manifest
from thriftune.errors import TransientError
from thriftune.stores.store import Store

pytest_plugins = ("store_kinds",)


def test_what_was_saved_is_restored(store, tmp_path, caplog):
    caplog.set_level(logging.INFO, "thriftune.checkpoints")
    contents = save_steps(store, tmp_path / "run", 10, 20)
    restored = restore([store], tmp_path / "new")
    assert restored is not None
    assert (restored.step, restored.passed_over) == (20, [])
    assert content_of(restored.directory) == contents[20]
    assert restored.manifest.content == {"micro_batch": 2}
    assert (restored.manifest.world_size, restored.manifest.nodes) == (2, 1)
    assert "Checkpoint of step 20 is in the store (0.0 GiB, " in caplog.text


def test_only_so_many_are_kept_in_the_store_and_the_newest_on_the_disk(store, tmp_path):
    save_steps(store, tmp_path / "run", 10, 20, 30, 40)
    assert whole_steps(store, tmp_path) == [40, 30]
    assert {layout.step_of(name) for name in store.names()} == {40, 30}
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["checkpoint-40"]


def test_older_ones_go_only_after_the_newer_one_is_complete(local, tmp_path):
    gate = threading.Event()
    save_steps(local, tmp_path / "run", 10, keep=1)
    gated = GatedStore(local.prefix, gate)
    saver = lone_saver(gated, keep=1)
    saver.save(write_checkpoint(tmp_path / "20", 20), 20, {})
    until(lambda: gated.begun)
    assert whole_steps(local, tmp_path) == [10]
    gate.set()
    saver.close()
    assert whole_steps(local, tmp_path) == [20]
    assert {layout.step_of(name) for name in local.names()} == {20}


def test_the_manifest_is_written_after_everything_else_and_older_ones_removed_after_it(local, tmp_path):
    events = []

    class Recorded(Store):
        def put_bytes(self, name, content):
            super().put_bytes(name, content)
            events.append(name)

        def upload(self, file, name, sha256=""):
            super().upload(file, name, sha256)
            events.append(name)

        def remove(self, under):
            if self.names(under):
                events.append(f"remove {under}")
            super().remove(under)

    save_steps(Recorded(local.prefix), tmp_path / "run", 10, 20, keep=1)
    assert events.index("checkpoint-20/manifest.json") == len([e for e in events if not e.startswith("remove")]) - 1
    assert events[-2:] == ["remove checkpoint-10/manifest.json", "remove checkpoint-10"]
    assert events[-4:-2] == ["checkpoint-20/parts/node-0.json", "checkpoint-20/manifest.json"]


def test_save_returns_while_the_upload_waits_and_a_waiting_one_gives_way(local, tmp_path, caplog):
    caplog.set_level(logging.INFO, "thriftune.checkpoints")
    gate = threading.Event()
    gated = GatedStore(local.prefix, gate)
    saver = lone_saver(gated)
    places = {step: write_checkpoint(tmp_path / f"run/{step}", step) for step in (10, 20, 30, 40)}
    contents = {step: content_of(place) for step, place in places.items()}
    saver.save(places[10], 10, {})
    until(lambda: gated.begun)
    for step in (20, 30, 40):
        saver.save(places[step], step, {})
    assert gated.begun == gated.begun[:1], "all four were handed over while the first upload waited"
    assert not saver.wait(0.05)
    assert not places[20].exists()
    assert not places[30].exists()
    gate.set()
    assert saver.wait(20)
    saver.close()
    assert whole_steps(local, tmp_path) == [40, 10]
    assert (saver.last_complete, saver.failures) == (40, [])
    assert [r.message for r in caplog.records if "Skipping" in r.message] == [
        f"Skipping the checkpoint of step {step}: uploads are slower than saves." for step in (20, 30)
    ]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["40"]
    assert content_of(places[40]) == contents[40]


def test_the_best_one_that_was_saved_is_kept_where_a_better_one_was_not(local, tmp_path):
    class Refusing(Store):
        def upload(self, file, name, sha256=""):
            if layout.checkpoint_name(30) in name:
                raise TransientError("It does not answer.")
            super().upload(file, name, sha256)

    saver = lone_saver(Refusing(local.prefix), keep=1)
    for step, best in ((10, [10]), (20, [10, 20]), (30, [30, 10, 20]), (40, [30, 10, 20, 40]), (50, [50, 30])):
        saver.save(write_checkpoint(tmp_path / f"run/{step}", step), step, {}, best)
        assert saver.wait(20)
        if step == 40:
            assert whole_steps(local, tmp_path) == [40, 10]
    saver.close()
    assert whole_steps(local, tmp_path) == [50]


def test_a_step_that_is_saved_again_is_not_whole_until_it_is_again(local, tmp_path):
    # A training that fell back from a damaged checkpoint comes by its step again, under the same prefix.
    save_steps(local, tmp_path / "first", 10, 20)
    before = local.get_bytes("checkpoint-20/manifest.json")
    gate = threading.Event()
    gated = GatedStore(local.prefix, gate)
    saver = lone_saver(gated)
    other = write_checkpoint(tmp_path / "second", 21)
    expected = content_of(other)
    saver.save(other, 20, {})
    until(lambda: gated.begun)
    assert whole_steps(local, tmp_path) == [10]
    gate.set()
    saver.close()
    assert whole_steps(local, tmp_path) == [20, 10]
    assert local.get_bytes("checkpoint-20/manifest.json") != before
    restored = restore([local], tmp_path / "new")
    assert restored is not None
    assert content_of(restored.directory) == expected


def save_one(store, folder, step, best=(), **options):
    """Save a complete checkpoint, during which another one is to stay."""
    saver = lone_saver(store, **options)
    saver.save(write_checkpoint(folder / f"checkpoint-{step}", step), step, {}, best)
    saver.close()
    assert saver.failures == []


def test_a_step_that_stays_is_kept_beside_the_newest_until_another_one_stays(store, tmp_path):
    """That of the lowest held-out loss, which newer ones would take the place of."""
    for step in (10, 20, 30, 40):
        save_one(store, tmp_path, step, best=[10])
    assert whole_steps(store, tmp_path) == [40, 30, 10]
    assert {layout.step_of(name) for name in store.names()} == {40, 30, 10}
    save_one(store, tmp_path, 50, best=[40])
    assert whole_steps(store, tmp_path) == [50, 40]
    save_one(store, tmp_path, 60)
    assert whole_steps(store, tmp_path) == [60, 50]


def test_a_step_that_stays_is_one_of_those_that_are_kept_while_it_is_among_the_newest(local, tmp_path):
    for step in (10, 20, 30):
        save_one(local, tmp_path, step, best=[20])
    assert whole_steps(local, tmp_path) == [30, 20]


def test_what_is_left_of_an_incomplete_step_goes_although_another_stays(local, tmp_path):
    local.put_bytes("checkpoint-5/files/node-0/shard", b"1")
    save_one(local, tmp_path, 10, best=[10])
    save_one(local, tmp_path, 20, best=[10])
    assert {layout.step_of(name) for name in local.names()} == {10, 20}


def test_a_later_step_is_not_removed(local, tmp_path):
    # Another node may be uploading it already.
    local.put_bytes("checkpoint-30/files/node-1/shard", b"1")
    local.put_bytes("checkpoint-5/files/node-1/shard", b"1")
    save_steps(local, tmp_path, 10, 20)
    assert {layout.step_of(name) for name in local.names()} == {10, 20, 30}


def test_a_manifest_says_all_that_is_there(local, tmp_path):
    directory = write_checkpoint(tmp_path / "10", 10)
    expected = {name: len(data) for name, data in content_of(directory).items()}
    saver = lone_saver(local)
    content = {"saved_at": time.time()}
    saver.save(directory, 10, content)
    content["saved_at"] = 0.0  # changed after it was handed over
    saver.close()
    manifest = Manifest.from_bytes(local.get_bytes("checkpoint-10/manifest.json") or b"")
    assert {entry.name: entry.size for entry in manifest.files} == expected
    assert manifest.content["saved_at"] > 0


def test_mistakes_of_the_caller_are_said_at_once(local, tmp_path):
    with pytest.raises(ValueError, match="keep = 0"):
        lone_saver(local, keep=0)
    saver = lone_saver(local)
    with pytest.raises(NotADirectoryError, match="a checkpoint is a directory"):
        saver.save(tmp_path / "none", 1, {})
    with pytest.raises(TypeError):
        saver.save(tmp_path, 1, {"model": object()})
    saver.close()
    saver.close()
    with pytest.raises(RuntimeError, match="closed"):
        saver.save(tmp_path, 1, {})
