"""A damaged checkpoint is not used: the training resumes from the one before, and says so."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from faults.comparing import flip, note, require_same_training, stored
from faults.conftest import INTERVAL
from faults.running import Outcome, Run

whole = pytest.mark.faults
NEWEST = f"checkpoint-{2 * INTERVAL}"


def truncate(file: Path) -> None:
    """Leave out the last byte."""
    file.write_bytes(file.read_bytes()[:-1])


DAMAGES: dict[str, Callable[[Path], None]] = {"truncated": truncate, "deleted": Path.unlink, "one bit flipped": flip}
FILES = {
    "zero3": (
        "zero_pp_rank_1_*optim_states.pt",
        "zero_pp_rank_0_*model_states.pt",
        "trainer_state.json",
        "manifest.json",
    ),
    "zero2": ("zero_pp_rank_0_*optim_states.pt", "mp_rank_00_model_states.pt", "rng_state_1.pth", "manifest.json"),
    "qlora": ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "manifest.json"),
}
# What `make test` runs.
_SHORT = {("qlora", "optimizer.pt", "one bit flipped"), ("qlora", "manifest.json", "truncated")}
CASES = [
    pytest.param(method, file, damage, marks=[] if (method, file, damage) in _SHORT else whole)
    for method, files in FILES.items()
    for file in files
    for damage in DAMAGES
]


@pytest.fixture(scope="module")
def interrupted(new_run) -> Callable[[str], tuple[Run, Outcome]]:
    """A run whose first attempt was killed after its second checkpoint; a copy for each test."""
    made: dict[str, tuple[Run, Outcome]] = {}

    def of(method: str) -> tuple[Run, Outcome]:
        if method not in made:
            run = new_run(method)
            attempt = run.start()
            attempt.until_step(2 * INTERVAL + 1)
            attempt.until((Path(run.prefix) / NEWEST / "manifest.json").exists)
            made[method] = (run, attempt.kill().wait())
        first, outcome = made[method]
        copy = new_run(method)
        shutil.copytree(first.folder / "store", copy.folder / "store")
        copy.attempts = list(first.attempts)
        return copy, outcome

    return of


def checkpoint(run: Run, name: str) -> Path:
    """A checkpoint of the first attempt."""
    return Path(run.prefix) / name


@pytest.mark.parametrize(("method", "file", "damage"), CASES)
def test_the_checkpoint_before_is_taken_in_place_of_a_damaged_one(
    method, file, damage, interrupted, undisturbed, record
):
    expected = undisturbed(method)
    run, killed = interrupted(method)
    DAMAGES[damage](stored(checkpoint(run, NEWEST), file))
    resumed = run.finish(pause=0.0)
    assert resumed.begins == [INTERVAL]
    assert "is not used" in resumed.log or "cannot be used" in resumed.log
    require_same_training(expected, run, [killed, resumed])
    # The damage costs an interval, and what killed the attempt another.
    note(record, f"newest checkpoint's {file} {damage}", method, [killed, resumed], limit=2 * INTERVAL)


@whole
@pytest.mark.parametrize("method", ["qlora", "zero3"])
def test_a_run_whose_checkpoints_are_all_damaged_begins_anew(method, interrupted, undisturbed, record):
    expected = undisturbed(method)
    run, killed = interrupted(method)
    flip(stored(checkpoint(run, NEWEST), "trainer_state.json"))
    stored(checkpoint(run, f"checkpoint-{INTERVAL}"), "manifest.json").unlink()
    resumed = run.finish(pause=0.0)
    assert resumed.begins == [0]
    require_same_training(expected, run, [killed, resumed])
    note(record, "all checkpoints damaged", method, [killed, resumed], limit=3 * INTERVAL)
