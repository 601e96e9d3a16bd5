"""Which checkpoint a training goes on from, in one process; jobs of several are in tests/faults."""

import json
from dataclasses import replace

import pytest

from thriftune.checkpoints.location import CheckpointLocation
from thriftune.checkpoints.manifest import Manifest
from thriftune.checkpoints.resumption import BEST, Checkpoints
from thriftune.config import CheckpointConfig
from thriftune.errors import ConfigError
from thriftune.stores.store import Store

IDENTITY = {"method": "qlora", "seed": 0}


@pytest.fixture
def checkpoints(tmp_path):
    def make(here="mine", identity=IDENTITY, writer=None, **config):
        place = CheckpointLocation(str(tmp_path / here), tmp_path / "scratch", 10.0, writer)
        return Checkpoints(place, CheckpointConfig(**config), identity)

    return make


@pytest.fixture
def written(tmp_path):
    """Write a whole checkpoint of a step, as the Trainer would."""

    def write(checkpoints, step, **content):
        folder = checkpoints.folder / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        checkpoints.save(folder, step, {"micro_batch": 2, **content})
        assert checkpoints.wait(30)

    return write


def test_the_first_attempt_begins_at_the_beginning(checkpoints):
    assert checkpoints().restore() is None
    assert checkpoints().adjustments() == {}


def test_another_attempt_goes_on_where_the_one_before_it_was(checkpoints, written):
    first = checkpoints()
    first.start_saving()
    written(first, 5)
    written(first, 10)
    first.adjust({"halvings": 1})
    second = checkpoints()
    resumed = second.restore()
    assert (resumed.step, resumed.is_converted, resumed.content["micro_batch"]) == (10, False, 2)
    assert json.loads((resumed.directory / "trainer_state.json").read_text()) == {"global_step": 10}
    assert second.adjustments() == {"halvings": 1}


def test_checkpoints_from_a_step_on_can_be_dropped(checkpoints, written):
    first = checkpoints()
    first.start_saving()
    written(first, 5)
    written(first, 10)
    first.drop_from(9)
    assert checkpoints().restore().step == 5


def state_of(resumed):
    return json.loads((resumed.directory / "trainer_state.json").read_text())


def test_the_checkpoint_of_one_step_can_be_fetched_again(checkpoints, written):
    """Of the lowest held-out loss: newer ones take the place of all others."""
    first = checkpoints(keep_checkpoints=1)
    first.start_saving()
    for step in (5, 10, 15):
        written(first, step, **{BEST: [5]})
    best = first.fetch(5)
    assert (best.step, best.is_converted, best.content["micro_batch"]) == (5, False, 2)
    assert state_of(best) == {"global_step": 5}
    assert first.fetch(10) is None, "it made way for step 15"
    assert first.fetch(7) is None
    assert state_of(first.fetch(15)) == {"global_step": 15}


def test_the_checkpoint_of_one_step_that_an_earlier_attempt_saved_is_found(checkpoints, written):
    first = checkpoints(keep_checkpoints=1)
    first.start_saving()
    written(first, 5, **{BEST: [5]})
    second = checkpoints(keep_checkpoints=1)
    assert second.restore().step == 5
    second.start_saving()
    for step in (10, 15):
        written(second, step, **{BEST: [5]})
    assert state_of(second.fetch(5)) == {"global_step": 5}
    written(second, 20, **{BEST: [20]})
    assert second.fetch(5) is None


def test_a_damaged_checkpoint_of_one_step_is_not_fetched(checkpoints, written, tmp_path, caplog):
    first = checkpoints()
    first.start_saving()
    written(first, 5)
    written(first, 10)
    damage(tmp_path / "mine")
    first.finish()
    assert checkpoints().fetch(10) is None
    assert "trainer_state.json of step 10 is not what was saved" in caplog.text


def test_a_checkpoint_of_one_step_that_other_ranks_wrote_is_converted(checkpoints, written, tmp_path):
    first = checkpoints()
    first.start_saving()
    written(first, 5)
    file = tmp_path / "mine" / "checkpoint-5" / "manifest.json"
    file.write_bytes(replace(Manifest.from_bytes(file.read_bytes()), world_size=4).to_bytes())
    place = CheckpointLocation(str(tmp_path / "mine"), tmp_path / "scratch", 10.0)

    def convert(directory):
        converted = directory.with_name("made-anew")
        converted.mkdir()
        (converted / "of").write_text(directory.name)
        return converted

    best = Checkpoints(place, CheckpointConfig(), IDENTITY, convert).fetch(5)
    assert (best.step, best.is_converted) == (5, True)
    assert (best.directory / "of").read_text() == "checkpoint-5"


def test_another_run_is_gone_on_from_only_if_it_is_the_same(checkpoints, written, tmp_path):
    other = checkpoints("other")
    other.start_saving()
    written(other, 5)
    prefix = str(tmp_path / "other")
    assert checkpoints("mine", resume_from=prefix).restore().step == 5
    with pytest.raises(ConfigError) as caught:
        checkpoints("mine", identity={**IDENTITY, "seed": 1, "lora.rank": 8}, resume_from=prefix).restore()
    (problem,) = caught.value.problems
    assert (problem.field, problem.value) == ("seed", "1")
    assert problem.message == f"the checkpoint of step 5 in {prefix} was trained with 0."
    assert problem.remedy == "Use 0, or start again without checkpoints.resume_from."


def test_what_lies_in_the_own_place_is_compared_too(checkpoints, written, tmp_path):
    """A run that shared its folder with another went on from that one's checkpoint, whatever it was of."""
    first = checkpoints()
    first.start_saving()
    written(first, 5)
    with pytest.raises(ConfigError, match=r"seed = 1: .* Use 0, or run it where no checkpoints are\."):
        checkpoints(identity={**IDENTITY, "seed": 1}).restore()


def test_what_an_older_version_did_not_note_is_said_and_not_compared(checkpoints, written, tmp_path, caplog):
    other = checkpoints("other", identity={})
    other.start_saving()
    written(other, 5)
    resumed = checkpoints("mine", resume_from=str(tmp_path / "other")).restore()
    (remark,) = resumed.remarks
    assert "older version, without method, seed" in remark
    assert remark in caplog.text


def test_a_run_that_holds_no_checkpoint_cannot_be_gone_on_from(checkpoints, tmp_path):
    with pytest.raises(ConfigError, match="holds no whole checkpoint"):
        checkpoints(resume_from=str(tmp_path / "nowhere")).restore()
    with pytest.raises(ConfigError, match="Name the prefix without checkpoint-5"):
        checkpoints(resume_from=str(tmp_path / "other" / "checkpoint-5")).restore()


def damage(prefix):
    """Damage the newest of two checkpoints, and take the manifest of the other."""
    (state,) = prefix.glob("checkpoint-10/files/*/trainer_state.json")
    state.write_text(state.read_text().replace("10", "11"))
    (prefix / "checkpoint-5" / "manifest.json").unlink()


def test_who_names_checkpoints_that_are_all_damaged_is_told_so(checkpoints, written, tmp_path):
    """The run began at the first step, after two warnings."""
    other = checkpoints("other")
    other.start_saving()
    written(other, 5)
    written(other, 10)
    other.finish()
    damage(tmp_path / "other")
    with pytest.raises(ConfigError) as caught:
        checkpoints("mine", resume_from=str(tmp_path / "other")).restore()
    (problem,) = caught.value.problems
    assert problem.field == "checkpoints.resume_from"
    assert "trainer_state.json of step 10 is not what was saved" in problem.message
    assert "checkpoint-5 has no manifest.json" in problem.message
    assert checkpoints("other").restore() is None, "an attempt at the same training begins anew"


def test_a_run_with_checkpoints_of_its_own_needs_those_of_the_other_no_more(checkpoints, written, tmp_path):
    """They may be removed by then: its next attempt was refused."""
    mine = checkpoints("mine")
    mine.start_saving()
    written(mine, 15)
    again = checkpoints("mine", resume_from=str(tmp_path / "removed"))
    assert again.restore().step == 15


def test_nothing_is_left_on_this_disk_when_a_training_ends(checkpoints, written, tmp_path):
    first = checkpoints()
    first.start_saving()
    written(first, 5)
    first.finish()
    assert not (tmp_path / "scratch").exists()
    assert Store(str(tmp_path / "mine")).names("checkpoint-5")
