"""The preflight of a run that goes on from another one's checkpoints: what no GPU should be asked for to find out."""

import json
import shutil

import pytest
from preflighting import Checking, codes, plan_for

from thriftune.checkpoints.location import CheckpointLocation
from thriftune.checkpoints.manifest import Manifest
from thriftune.data import prepare, sources
from thriftune.models import fetching as models
from thriftune.training.fit import Inputs, fit

RUN = {
    "training": {"max_steps": 3, "gradient_checkpointing": False},
    "lora": {"rank": 4, "dropout": 0.0},
    "evaluation": {"max_new_tokens": 2},
}


@pytest.fixture(scope="module")
def checked(tiny_model_dir, chat_rows_file):
    return Checking(tiny_model_dir, chat_rows_file)


@pytest.fixture(scope="module")
def other_run(checked, tmp_path_factory):
    """The checkpoints of a run that was made from its model and data as a workflow makes it."""
    folder = tmp_path_factory.mktemp("other-run")
    config = checked.run("lora", **RUN)
    model, dataset = folder / "model", folder / "dataset"
    models.fetch(str(checked.model), models.version(str(checked.model)), model)
    version = sources.versions(config.data, None)
    prepare.prepare(config.data, seed=0, tokenizer_dir=model, destination=dataset, data_version=version)
    place = CheckpointLocation(str(folder / "checkpoints"), folder / "scratch", 10.0)
    fit(Inputs(config, plan_for("lora", checked.model), model, dataset, checkpoints=place), folder / "adapter")
    return folder / "checkpoints"


def changed(other_run, **sections):
    merged = {name: {**RUN.get(name, {}), **values} for name, values in sections.items()}
    return {**RUN, **merged, "checkpoints": {"resume_from": str(other_run)}}


def test_the_same_run_can_go_on(checked, other_run):
    result = checked("lora", **changed(other_run))
    assert codes(result) == set()
    assert "checkpoint-goes-on-otherwise" not in codes(result, "warning")


def test_another_training_is_refused_by_field(checked, other_run):
    """It was found out after model and data were on the GPU's node, in words of torch's, or never."""
    sections = {"training": {"learning_rate": 1e-3, "max_steps": 2}, "lora": {"rank": 8}, "data": {"max_length": 32}}
    result = checked("lora", **changed(other_run, **sections))
    found = [found for found in result.errors if found.code == "checkpoint-differs"]
    assert {f.field for f in found} == {"training.learning_rate", "training.max_steps", "lora.rank", "data"}
    (rank,) = (f for f in found if f.field == "lora.rank")
    assert rank.message == f"the checkpoint of step 3 in {other_run} was trained with 4."


def test_other_steps_of_a_constant_learning_rate_are_said(checked, other_run, tmp_path):
    (manifest,) = other_run.glob("checkpoint-3/manifest.json")
    saved = Manifest.from_bytes(manifest.read_bytes())
    saved.content["identity"]["training.scheduler"] = "constant"
    copy = tmp_path / "constant"
    copy_of(other_run, copy)
    (copy / "checkpoint-3" / "manifest.json").write_bytes(saved.to_bytes())
    result = checked("lora", **changed(copy, training={"scheduler": "constant", "max_steps": 30}))
    assert codes(result) == set()
    assert "checkpoint-goes-on-otherwise" in codes(result, "warning")


def copy_of(run, folder):
    shutil.copytree(run, folder)
    return folder


def test_a_place_without_a_whole_checkpoint_is_refused(checked, other_run, tmp_path):
    result = checked("lora", **changed(tmp_path / "nowhere"))
    assert codes(result) == {"checkpoint-not-found"}
    damaged = copy_of(other_run, tmp_path / "damaged")
    (file,) = damaged.glob("checkpoint-3/files/*/trainer_state.json")
    file.write_text(json.dumps({}))
    (found,) = checked("lora", **changed(damaged)).errors
    assert found.code == "checkpoint-not-found"
    assert "trainer_state.json of step 3 has 2 bytes where" in found.message


def test_a_run_that_names_no_checkpoints_is_not_spoken_of(checked):
    assert not {code for code in codes(checked("lora", **RUN), "note") if "checkpoint" in code}
