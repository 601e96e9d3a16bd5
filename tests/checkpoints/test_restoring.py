"""The newest whole checkpoint is restored; a damaged one is passed over, and that is said."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkpointing import content_of, flip, restore, save_steps, stored_names, truncate, write_checkpoint

from thriftune.checkpoints import layout, restoring
from thriftune.checkpoints.manifest import Manifest
from thriftune.checkpoints.restoring import complete, verify_and_fetch
from thriftune.disk import DiskFullError
from thriftune.errors import TransientError
from thriftune.stores.store import Store

pytest_plugins = ("store_kinds",)

DAMAGES = {
    "flipped": lambda store, name: flip(store, name, 7777),
    "truncated": truncate,
    "emptied": lambda store, name: store.put_bytes(name, b""),
    "deleted": lambda store, name: store.remove(name),
    "exchanged": lambda store, name: store.put_bytes(name, store.get_bytes(name.replace("-20/", "-10/")) or b"none"),
}


def manifest_of(store, step):
    return Manifest.from_bytes(store.get_bytes(layout.manifest_name(step)) or b"")


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_of_any_file_is_found_and_the_one_before_is_taken(local, tmp_path, damage, caplog):
    contents = save_steps(local, tmp_path / "run", 10, 20)
    names = [*stored_names(manifest_of(local, 20)), layout.manifest_name(20)]
    assert len(names) == 7
    for number, name in enumerate(names):
        whole = local.get_bytes(name) or b""
        if not whole and damage != "deleted":
            continue  # nothing can be changed in an empty file
        DAMAGES[damage](local, name)
        caplog.clear()
        restored = restore([local], tmp_path / f"new-{number}")
        assert restored is not None
        assert restored.step == 10, f"{damage}: {name}"
        assert content_of(restored.directory) == contents[10]
        if "files" in name:
            assert Path(name).name in restored.passed_over[0]
        else:
            assert [r for r in caplog.records if r.levelno == logging.WARNING and "checkpoint-20" in r.message]
        local.put_bytes(name, whole)
    restored = restore([local], tmp_path / "new")
    assert restored is not None
    assert (restored.step, restored.passed_over) == (20, [])


def test_damage_in_an_s3_store_is_found_too(s3, tmp_path):
    contents = save_steps(s3, tmp_path / "run", 10, 20)
    flip(s3, stored_names(manifest_of(s3, 20))[1], 50)
    restored = restore([s3], tmp_path / "new")
    assert restored is not None
    assert restored.step == 10
    assert content_of(restored.directory) == contents[10]


def test_when_nothing_is_whole_there_is_nothing(local, tmp_path, caplog):
    assert restore([local], tmp_path / "new") is None
    assert caplog.text == ""
    save_steps(local, tmp_path / "run", 10, 20)
    for step in (10, 20):
        flip(local, layout.manifest_name(step), 99)
    assert restore([local], tmp_path / "new") is None
    assert complete([local]) == []
    for step in (10, 20):
        assert f"checkpoint-{step} is not used. The manifest is damaged" in caplog.text


def test_a_manifest_in_the_folder_of_another_step_is_not_taken(local, tmp_path, caplog):
    save_steps(local, tmp_path / "run", 10)
    local.put_bytes(layout.manifest_name(30), local.get_bytes(layout.manifest_name(10)) or b"")
    restored = restore([local], tmp_path / "new")
    assert restored is not None
    assert restored.step == 10
    assert "Its manifest is of step 10" in caplog.text


def test_only_what_is_wanted_is_fetched_and_only_that_need_be_right(local, tmp_path):
    save_steps(local, tmp_path / "run", 10)
    local.remove(layout.file_name(10, 0, "rng_state_1.pth"))
    restored = restore([local], tmp_path / "new", wanted=lambda name: "_0" in name)
    assert restored is not None
    assert set(content_of(restored.directory)) == {"global_step/rank_0_optim_states.pt", "rng_state_0.pth"}
    assert restore([local], tmp_path / "all") is None


@pytest.mark.parametrize("folder", ["", "checkpoint-20"])
def test_what_lies_whole_on_this_disk_is_not_downloaded(local, tmp_path, folder, monkeypatch):
    contents = save_steps(local, tmp_path / "run", 20)
    here = write_checkpoint(tmp_path / "here" / folder, 20)
    assert content_of(here) == contents[20]
    (here / "rng_state_1.pth").write_bytes(b"?" * 100)
    (here / "trainer_state.json").unlink()
    fetched = []
    download = Store.download

    def watched(self, name, file):
        fetched.append(Path(name).name)
        download(self, name, file)

    monkeypatch.setattr(Store, "download", watched)
    restored = restore([local], tmp_path / "new", local=tmp_path / "here")
    assert restored is not None
    assert content_of(restored.directory) == contents[20]
    assert sorted(fetched) == ["rng_state_1.pth", "trainer_state.json"]
    shard = "global_step/rank_1_optim_states.pt"
    assert (here / shard).samefile(restored.directory / shard)
    assert (here / "rng_state_1.pth").read_bytes() == b"?" * 100
    fetched.clear()
    again = restore([local], tmp_path / "new")
    assert again is not None
    assert fetched == [], "what was restored already is looked at, and left"


def test_the_newest_step_of_all_attempts_is_taken_and_of_one_step_the_newest_attempts(local, tmp_path, caplog):
    stores = [Store(f"{local.prefix}-{number}") for number in range(3)]
    save_steps(stores[0], tmp_path / "0", 5)
    contents = save_steps(stores[1], tmp_path / "1", 20)
    save_steps(stores[2], tmp_path / "2", 20, 40)
    assert [(s.prefix[-1], m.step) for s, m in complete(stores)] == [("2", 40), ("1", 20), ("2", 20), ("0", 5)]
    stores[2].remove(layout.manifest_name(40))
    restored = restore(stores, tmp_path / "new")
    assert restored is not None
    assert (restored.step, content_of(restored.directory)) == (20, contents[20])
    assert "checkpoint-40 has no manifest.json: its upload was never finished." in caplog.text


def test_a_store_that_is_away_is_not_an_empty_one(bucket, s3, tmp_path):
    save_steps(s3, tmp_path / "run", 10)
    bucket.stop()
    try:
        with pytest.raises(TransientError):
            restore([s3.without_retries()], tmp_path / "new")
    finally:
        bucket.start()
    restored = restore([s3], tmp_path / "new")
    assert restored is not None


def test_a_disk_too_small_is_said_before_anything_is_downloaded(local, tmp_path):
    save_steps(local, tmp_path / "run", 10)
    manifest = manifest_of(local, 10)
    script = (
        "import sys; from pathlib import Path; from thriftune.disk import DiskFullError\n"
        "from checkpointing import restore; from thriftune.stores.store import Store\n"
        "try: restore([Store(sys.argv[1])], Path(sys.argv[2]) / 'new')\n"
        "except DiskFullError as error: print(error, list(Path(sys.argv[2]).rglob('*')))\n"
    )
    mount = tmp_path / "tiny"
    mount.mkdir()
    tiny = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=16k none "$0" && exec "$@"', str(mount)]
    if subprocess.run([*tiny, "true"], capture_output=True, check=False).returncode:
        pytest.skip("may not mount a tmpfs here")
    path = os.pathsep.join([str(Path(restoring.__file__).parents[2]), str(Path(__file__).parent)])
    environment = {**os.environ, "PYTHONPATH": path}
    command = [*tiny, sys.executable, "-c", script, local.prefix, str(mount)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=50, check=False)
    assert "no space left on the disk (16384 bytes free, and 0.00 GiB are needed)" in result.stdout, result.stderr
    assert result.stdout.strip().endswith("[]")
    assert manifest.size > 16384


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_not_taken_for_damage(local, tmp_path):
    save_steps(local, tmp_path / "run", 10)
    manifest = manifest_of(local, 10)
    name = "global_step/rank_1_optim_states.pt"
    (tmp_path / "new/global_step").mkdir(parents=True)
    (tmp_path / "new" / f"{name}.partial").symlink_to("/dev/full")
    with pytest.raises(DiskFullError):
        verify_and_fetch(local, manifest, tmp_path / "new")
