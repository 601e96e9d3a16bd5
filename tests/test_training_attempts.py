"""What happens to a training on its way: one process, the tiny model, the real Trainer."""

import json
import math
import time
from pathlib import Path

import pytest
import torch
from planning import planned
from safetensors.torch import load_file

from thriftune.checkpoints import restoring
from thriftune.checkpoints.location import CheckpointLocation
from thriftune.checkpoints.saving import BackgroundSaver
from thriftune.config import DataConfig
from thriftune.data import prepare
from thriftune.errors import ConfigError, DivergedError, TransientError, UserError
from thriftune.stores.store import Store
from thriftune.training import fit as fitting
from thriftune.training.fit import Inputs, fit
from thriftune.training.report import events_of
from thriftune.training.resumable import ResumableTrainer

STEPS = 10


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tiny_model_dir, chat_rows_file):
    directory = tmp_path_factory.mktemp("attempts") / "dataset"
    data = DataConfig(source=str(chat_rows_file), format="chat", max_length=64)
    prepare.prepare(data, seed=0, tokenizer_dir=tiny_model_dir, destination=directory)
    return directory


@pytest.fixture
def training(run_config, tiny_model_dir, dataset, tmp_path):
    """Train adapters for some steps, with a checkpoint every third."""

    def train(where="run", steps=STEPS, rank=4, every=None, **overrides):
        wanted = {"global_batch": 4, "micro_batch": 4, "max_steps": steps, "log_every": 1, "precision": "fp32"}
        config = run_config(
            "qlora",
            training={**wanted, "gradient_checkpointing": False, **overrides},
            lora={"rank": rank, "dropout": 0.0},
            checkpoints={"every_steps": 3},
            evaluation={"max_new_tokens": 2, "every_steps": every},
        )
        place = CheckpointLocation(str(tmp_path / where), tmp_path / f"{where}-scratch", 10.0)
        inputs = Inputs(config, planned(config), tiny_model_dir, dataset, checkpoints=place)
        result = fit(inputs, tmp_path / f"{where}-out")
        manifest = json.loads((tmp_path / f"{where}-out" / "manifest.json").read_text())
        assert manifest["training"]["steps"] == result.steps
        assert (result.steps == steps) == ("patience" not in overrides)
        return result

    return train


@pytest.fixture
def disturbed(monkeypatch):
    """Disturb the loss of the passes that a function picks: by the step that they belong to, and their rows."""
    compute = ResumableTrainer.compute_loss

    def disturb(change):
        def changed(self, model, inputs, *arguments, **options):
            rows = inputs["input_ids"].clone()
            loss = compute(self, model, inputs, *arguments, **options)
            return change(self.state.global_step + 1, rows, loss)

        monkeypatch.setattr(ResumableTrainer, "compute_loss", changed)

    return disturb


def test_the_first_step_trains(training, tmp_path):
    """Warmup is at least a step, and its first rate was 0: a run of one step was saved as it began."""
    training(steps=1)
    (file,) = (tmp_path / "run-out").glob("adapter_model.safetensors")
    outputs = [tensor for name, tensor in load_file(file).items() if "lora_B" in name]
    assert outputs
    assert all(tensor.any() for tensor in outputs)


def test_memory_that_runs_out_makes_the_micro_batch_smaller_and_the_training_the_same(training, disturbed):
    calm = training("calm")

    def too_large(step, rows, loss):
        if step == 5 and len(rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return loss

    disturbed(too_large)
    result = training("tight")
    assert (result.halvings.count, result.halvings.before, result.halvings.after) == (1, 4, 2)
    assert result.resumed_at == 3
    assert result.losses == pytest.approx(calm.losses, abs=1e-4)


def test_memory_that_never_suffices_ends_the_run(training, disturbed):
    def never(step, rows, loss):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    disturbed(never)
    with pytest.raises(UserError, match=r"training\.micro_batch"):
        training()


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint_before(training, disturbed, tmp_path):
    disturbed(lambda step, rows, loss: loss * math.nan if step == 8 else loss)
    with pytest.raises(DivergedError, match="The loss is nan at step 8"):
        training()
    (_, newest), *_ = restoring.complete([Store(str(tmp_path / "run"))])
    assert newest.step == 6
    assert not list(Path(tmp_path).glob("run-out/manifest.json"))


def test_a_bad_batch_is_left_out(training, disturbed):
    """The rows themselves are bad, so that going back without leaving them out would end the same way."""
    bad = {}

    def poisoned(step, rows, loss):
        if step == 8:
            bad.setdefault("rows", rows)
        return loss * math.nan if torch.equal(rows, bad.get("rows", rows[:0])) else loss

    disturbed(poisoned)
    result = training(on_divergence="rollback")
    assert result.skipped_steps == [8]
    assert result.resumed_at == 6
    assert all(map(math.isfinite, result.losses))
    events = [(event.kind, event.step) for event in events_of(result)]
    saved = [("checkpoint", step) for step in result.checkpoint_steps]
    assert events == [("resumed", 6), ("rolled back", 8), *saved]
    assert STEPS in result.checkpoint_steps


def test_a_batch_after_which_the_loss_stays_high_is_left_out_and_what_came_of_it_is_not_saved(training, disturbed):
    """It is certain ten steps later: the checkpoints of these steps took the place of the last good one."""
    bad, trained_on = {}, {"bad": False}

    def poisoned(step, rows, loss):
        if step == 30:
            bad.setdefault("rows", rows)
        if step < 30:
            trained_on["bad"] = False
        if torch.equal(rows, bad.get("rows", rows[:0])):
            trained_on["bad"] = True
        return loss + 9.0 * trained_on["bad"]

    disturbed(poisoned)
    result = training(on_divergence="rollback", steps=42)
    assert result.skipped_steps == [30]
    assert result.resumed_at == 27
    assert max(result.losses) < 9.0


def test_a_batch_whose_own_loss_is_fine_is_found_by_going_back(training, disturbed):
    """It ruins the weights: the loss is not a number from the next step on, whatever the batch."""
    bad, trained_on = {}, {"bad": False}

    def poisoned(step, rows, loss):
        ruined = trained_on["bad"]
        if step == 5:
            bad.setdefault("rows", rows)
        if step < 5:
            ruined = trained_on["bad"] = False
        if torch.equal(rows, bad.get("rows", rows[:0])):
            trained_on["bad"] = True
        return loss * math.nan if ruined and len(rows) > 1 else loss

    disturbed(poisoned)
    result = training(on_divergence="rollback")
    assert result.skipped_steps == [6, 5]
    assert all(map(math.isfinite, result.losses))


def test_the_rows_of_a_step_that_is_left_out_have_no_effect(training, disturbed):
    """The batch of the step before was trained on twice in its place; after a resume, the bad one itself."""
    disturbed(lambda step, rows, loss: loss * math.nan if step == 1 and len(rows) > 1 else loss)
    result = training(on_divergence="rollback", warmup_share=0.0)
    assert result.skipped_steps == [1]
    assert result.losses[0] == 0.0
    assert all(map(math.isfinite, result.losses))


def test_a_run_cut_off_after_its_last_step_has_nothing_to_train_again(training, monkeypatch, tmp_path, caplog):
    """Nothing was saved at the last step: what was cut off while its result was written lost up to an interval.

    And transformers does one step more after a checkpoint of the last one, where that is not the last of an epoch.
    """
    calm = training("calm")
    save = fitting._save

    def cut_off(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "_save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        training("cut")
    monkeypatch.setattr(fitting, "_save", save)
    _until_whole(tmp_path / "cut" / f"checkpoint-{STEPS}")
    result = training("cut")
    assert (result.resumed_at, result.steps) == (STEPS, STEPS)
    assert (result.loss_steps, result.losses) == (calm.loss_steps, calm.losses)
    assert (result.before, result.validations, result.after) == (calm.before, calm.validations, calm.after)
    assert 0.05 * calm.seconds < result.seconds < 20 * calm.seconds
    assert 0.05 * calm.tokens_per_second < result.tokens_per_second < 20 * calm.tokens_per_second
    assert "prediction was off" not in caplog.text
    weights = [(tmp_path / f"{name}-out" / "adapter_model.safetensors").read_bytes() for name in ("calm", "cut")]
    assert weights[0] == weights[1]


def test_more_steps_of_a_constant_learning_rate_are_those_of_a_run_that_was_to_have_them(training, tmp_path):
    """And they are logged as the run says: the log_every of the checkpoint held."""
    constant = {"scheduler": "constant", "warmup_share": 0.0}
    expected = training("at-once", steps=7, **constant)
    assert training("longer", steps=4, **constant).remarks == []
    result = training("longer", steps=7, log_every=3, **constant)
    assert (result.resumed_at, result.loss_steps) == (4, [1, 2, 3, 4, 6])
    assert result.losses[:4] == expected.losses[:4]
    assert result.losses[4] == pytest.approx(sum(expected.losses[4:6]) / 2)
    weights = [(tmp_path / f"{name}-out" / "adapter_model.safetensors").read_bytes() for name in ("at-once", "longer")]
    assert weights[0] == weights[1]
    (remark,) = json.loads((tmp_path / "longer-out" / "manifest.json").read_text())["training"]["remarks"]
    assert "the run's 7 steps are used; the checkpoint of step 4" in remark
    assert remark in events_of(result)[0].text


def test_another_rank_is_refused_before_anything_is_loaded(training, monkeypatch):
    """It ended in an error of torch's about the size of tensors, after model and checkpoint were loaded."""
    training("run", steps=2)
    monkeypatch.setattr(fitting, "_load", _not_to_be_done)
    with pytest.raises(ConfigError, match=r"lora\.rank = 8: the checkpoint of step 2 .* was trained with 4"):
        training("run", steps=2, rank=8)


def _until_whole(checkpoint):
    deadline = time.monotonic() + 30
    while not (checkpoint / "manifest.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_whose_checkpoints_cannot_be_saved_any_more_is_finished_at_its_last_step(training, monkeypatch, caplog):
    """After three failures the next one ends the attempt: at the last step that would lose what is done."""
    monkeypatch.setattr(BackgroundSaver, "save", _refused)
    with pytest.raises(TransientError, match="could not be saved"):
        training("long", steps=4)
    assert training("short", steps=2).steps == 2
    assert "the result is saved without one" in caplog.text


def _not_to_be_done(*arguments):
    raise AssertionError("nothing is to be loaded")


def _refused(*arguments, **options):
    raise TransientError("The last 3 checkpoints could not be saved.")


@pytest.fixture
def spoiled(disturbed):
    """From step 4 on the training goes the other way, up the loss."""
    disturbed(lambda step, rows, loss: -loss if step >= 4 else loss)


def weights_in(folder):
    (file,) = folder.rglob("adapter_model.safetensors")
    return load_file(file)


UPHILL = {"learning_rate": 5e-3, "scheduler": "constant", "warmup_share": 0.0, "on_divergence": "stop"}


def test_the_weights_of_the_lowest_validation_are_the_result(training, spoiled, tmp_path):
    """Checkpoints of later steps take the place of all others but that one."""
    last = training("last", every=1, **UPHILL)
    result = training("best", every=1, keep="best", **UPHILL)
    losses = {validation.step: validation.loss for validation in result.validations}
    assert list(losses) == list(range(STEPS + 1))
    assert (last.kept_step, result.kept_step) == (STEPS, 3)
    assert last.after.loss == losses[STEPS] > losses[3] == min(losses.values())
    assert result.after.loss == losses[3]
    assert result.steps == STEPS
    expected = training("three", steps=3, every=1, **UPHILL)
    assert expected.after == result.after
    ours, theirs = weights_in(tmp_path / "best-out"), weights_in(tmp_path / "three-out")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_the_lowest_validation_of_an_earlier_attempt_is_kept_too(training, spoiled, monkeypatch, tmp_path):
    save = fitting._save

    def cut_off(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting, "_save", cut_off)
    with pytest.raises(KeyboardInterrupt):
        training("cut", every=1, keep="best", **UPHILL)
    monkeypatch.setattr(fitting, "_save", save)
    _until_whole(tmp_path / "cut" / f"checkpoint-{STEPS}")
    result = training("cut", every=1, keep="best", **UPHILL)
    assert (result.resumed_at, result.kept_step) == (STEPS, 3)
    assert result.after.loss == min(validation.loss for validation in result.validations)


def test_training_ends_when_the_held_out_loss_is_not_lowered_any_more(training, spoiled):
    result = training("run", every=1, patience=2, **UPHILL)
    losses = [validation.loss for validation in result.validations]
    assert result.steps == losses.index(min(losses)) + 2 < STEPS
    assert (result.kept_step, result.checkpoint_steps[-1]) == (result.steps, result.steps)


def test_a_training_that_had_run_out_of_patience_ends_again_where_it_is_gone_on_with(training, spoiled):
    first = training("run", every=1, patience=2, **UPHILL)
    again = training("run", every=1, patience=2, **UPHILL)
    assert again.resumed_at == again.steps == first.steps
    assert again.validations == first.validations
