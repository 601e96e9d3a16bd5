"""A disk that is full, read-only or forbidden is said with its place and what was being written, in every phase."""

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from thriftune import disk
from thriftune.config import DataConfig
from thriftune.data import prepare
from thriftune.disk import DiskFullError, NotWritableError, reason_of, refusal, writing_to
from thriftune.errors import UserError

ROOT = Path(__file__).parent.parent
FULL = ["unshare", "-Urm", "sh", "-c", 'mount -t tmpfs -o size=1m none "$0" && cp -r "$1" "$0" && shift && exec "$@"']
READ_ONLY = [
    "unshare", "-Urm", "sh", "-c",
    'mount -t tmpfs none "$0" && cp -r "$1" "$0" && mount -o remount,ro "$0" && shift && exec "$@"',
]  # fmt: skip
# In a user namespace that maps nobody, root may do what the owner may.
FORBIDDEN = ["unshare", "-U", "sh", "-c", 'shift && exec "$@"']
LIMIT = 50_000  # bytes of a file, less than any weights
NEED_MORE = {"unpacking the prepared dataset", "copying the tokenizer"}  # which write smaller ones


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, tiny_model_dir, chat_rows_file):
    """A model, an adapter of it, rows, and a dataset made of them."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from thriftune.config import LoraConfig
    from thriftune.methods.adapters import peft_config

    folder = tmp_path_factory.mktemp("inputs")
    shutil.copytree(tiny_model_dir, folder / "model")
    shutil.copy(chat_rows_file, folder / "rows.jsonl")
    data = DataConfig(source=str(chat_rows_file), format="chat", max_length=96)
    prepare.prepare(data, seed=0, tokenizer_dir=tiny_model_dir, destination=folder / "dataset")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype="float32")
    get_peft_model(base, peft_config(LoraConfig(rank=2, alpha=2))).save_pretrained(folder / "adapter")
    return folder


def found_on(prefix: list[str], place: Path, inputs: Path, how: str, **options) -> dict[str, list[str]]:
    """What each phase raised on a disk: its kind, and what it says."""
    place.mkdir(exist_ok=True)
    if (
        prefix
        and subprocess.run([*prefix, place, inputs / "dataset", "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("may not make such a disk here")
    script = [sys.executable, str(ROOT / "tests/disk_phases.py"), str(place), how, str(inputs)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [*prefix, str(place), str(inputs / "dataset"), *script] if prefix else script
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200, check=False, **options)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    assert len(found) > 8
    return found


@pytest.mark.slow
def test_a_full_disk_is_said_in_every_phase(tmp_path, inputs):
    """Merging said `I/O error`, without a path."""
    for phase, (kind, said) in found_on(FULL, tmp_path / "full", inputs, "fill").items():
        assert kind == "DiskFullError", (phase, kind, said)
        assert str(tmp_path / "full") in said.partition(": ")[0]
        assert "no space left on the disk (0 bytes free" in said
        assert f"while {phase.removesuffix(' as Parquet')}" in said
        assert "THRIFTUNE_OUTPUTS" in said


@pytest.mark.slow
def test_a_read_only_disk_is_said_in_every_phase(tmp_path, inputs):
    for phase, (kind, said) in found_on(READ_ONLY, tmp_path / "ro", inputs, "").items():
        if phase == "saving with torch":  # whose own text says no more than that it cannot be written
            continue
        assert kind == "NotWritableError", (phase, kind, said)
        assert str(tmp_path / "ro") in said
        assert f"is on a read-only file system ({phase.removesuffix(' as Parquet')})" in said


@pytest.mark.slow
def test_a_forbidden_folder_is_said_in_every_phase(tmp_path, inputs):
    place = tmp_path / "forbidden"
    place.mkdir()
    shutil.copytree(inputs / "dataset", place / "dataset")
    place.chmod(0o555)
    try:
        found = found_on(FORBIDDEN, place, inputs, "")
    finally:
        place.chmod(0o755)
    for phase, (kind, said) in found.items():
        if phase == "saving with torch":
            continue
        assert kind == "NotWritableError", (phase, kind, said)
        assert str(place) in said
        assert f"permission denied ({phase.removesuffix(' as Parquet')})" in said


@pytest.mark.slow
def test_a_limit_of_files_is_said_in_every_phase(tmp_path, inputs):
    """As a quota or an old file system has it; needs no rights, so that it is tried everywhere."""
    place = tmp_path / "limited"
    shutil.copytree(inputs / "dataset", place / "dataset")

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))

    for phase, (kind, said) in found_on([], place, inputs, "", preexec_fn=limit).items():
        if phase in NEED_MORE or not kind:
            continue
        assert kind == "DiskFullError", (phase, kind, said)
        assert str(place) in said or f"{tempfile.gettempdir()}: " in said, "there headers of weights are looked at"
        assert "a file became larger than" in said or "no space left" in said


def test_the_disk_that_is_full_is_named_where_nobody_says_which(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda path: 5 if str(path).endswith("tmp") else 7)
    monkeypatch.setattr(disk.tempfile, "tempdir", str(tmp_path / "tmp"))
    said = pytest.raises(DiskFullError, match=r"tmp: no space left on the disk \(5 bytes free\) while testing")
    with said, writing_to(tmp_path / "outputs", "testing"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_is_needed_is_said_before_anything_is_written(tmp_path):
    said = pytest.raises(DiskFullError, match=r"bytes free, and 1048576\.00 GiB are needed\) while saving")
    with said, writing_to(tmp_path / "model", "saving", needed=2**50):
        raise AssertionError


def test_what_is_no_matter_of_the_disk_goes_on_as_it_is(tmp_path):
    missing = FileNotFoundError(errno.ENOENT, "no such file", "x")
    for error in (missing, ValueError("a"), UserError.single("a", 1, "b", "c")):
        with pytest.raises(type(error)) as caught, writing_to(tmp_path, "testing"):
            raise error
        assert caught.value is error


def test_an_error_that_was_tried_in_vain_before_is_not_the_disk_s():
    def second_try() -> None:
        try:
            raise PermissionError(errno.EPERM, "no links here")
        except OSError:
            open("/nowhere/at/all")  # noqa: SIM115

    with pytest.raises(FileNotFoundError) as caught:
        second_try()
    assert isinstance(caught.value.__context__, PermissionError)
    assert reason_of(caught.value) is None


def test_a_place_is_tried_and_left_as_it_was(tmp_path):
    assert refusal(tmp_path / "a/b", "results") is None
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    refused = refusal(tmp_path / "file/outputs", "results")
    assert isinstance(refused, NotWritableError)
    assert str(tmp_path / "file") in str(refused)


def test_room_is_told_of_a_folder_that_another_process_takes_away_meanwhile(tmp_path, monkeypatch):
    """Two runs that make the same thing put theirs in the place of the other's: one of them failed."""
    folder = tmp_path / "cache"
    folder.mkdir()
    usage = disk.psutil.disk_usage

    def taken_away(place):
        if folder.exists():
            folder.rmdir()
        return usage(place)

    monkeypatch.setattr(disk.psutil, "disk_usage", taken_away)
    assert disk.free_bytes(folder) > 0
