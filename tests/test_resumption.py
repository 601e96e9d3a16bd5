"""Which checkpoint a training goes on from, in one process; jobs of several are in tests/faults."""

import json

import pytest

from thriftune.checkpoints.store import Store
from thriftune.config import CheckpointConfig
from thriftune.errors import ConfigError
from thriftune.resumption import CheckpointPlace, Checkpoints

IDENTITY = {"method": "qlora", "seed": 0}


@pytest.fixture
def checkpoints(tmp_path):
    def make(here="first", previous="", identity=IDENTITY, **config):
        place = CheckpointPlace(
            str(tmp_path / here), str(tmp_path / previous) if previous else "", tmp_path / "scratch", 10.0
        )
        return Checkpoints(place, CheckpointConfig(**config), identity)

    return make


@pytest.fixture
def written(tmp_path):
    """Write a whole checkpoint of a step, as the Trainer would."""

    def write(checkpoints, step):
        folder = checkpoints.folder / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        checkpoints.save(folder, step, {"micro_batch": 2})
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
    second = checkpoints("second", previous="first")
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
    assert checkpoints("second", previous="first").restore().step == 5


def test_another_run_is_gone_on_from_only_if_it_is_the_same(checkpoints, written, tmp_path):
    other = checkpoints("other")
    other.start_saving()
    written(other, 5)
    prefix = str(tmp_path / "other")
    assert checkpoints("mine", resume_from=prefix).restore().step == 5
    with pytest.raises(ConfigError, match=r"checkpoints\.resume_from.*another seed: 0 and not 1"):
        checkpoints("mine", identity={**IDENTITY, "seed": 1}, resume_from=prefix).restore()


def test_a_run_that_holds_no_checkpoint_cannot_be_gone_on_from(checkpoints, tmp_path):
    with pytest.raises(ConfigError, match="holds no whole checkpoint"):
        checkpoints(resume_from=str(tmp_path / "nowhere")).restore()


def test_nothing_is_left_on_this_disk_when_a_training_ends(checkpoints, written, tmp_path):
    first = checkpoints()
    first.start_saving()
    written(first, 5)
    first.finish()
    assert not (tmp_path / "scratch").exists()
    assert Store(str(tmp_path / "first")).names("checkpoint-5")
