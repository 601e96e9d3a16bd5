"""Held-out loss while a model trains: it changes nothing of the training, and decides what is kept and when it ends."""

import math
import shutil

import pytest
from planning import planned
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from thriftune.checkpoints.layout import checkpoint_name
from thriftune.checkpoints.location import CheckpointLocation
from thriftune.config import DataConfig
from thriftune.data import prepare
from thriftune.errors import ConfigError
from thriftune.models import separation
from thriftune.models.tokenizer import load_tokenizer
from thriftune.training.attempt import Attempt
from thriftune.training.fit import Inputs, fit
from thriftune.training.held_out import RowLosses, held_out_loss, held_out_rows
from thriftune.training.resumable import ResumableTrainer
from thriftune.training.validation import Validator

BEST = 8  # of the validations of a training that unlearns, the one with the lowest loss
UNLEARNING = {"learning_rate": 0.01, "scheduler": "constant", "max_steps": 20, "keep": "best"}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tiny_model_dir, chat_rows_file):
    directory = tmp_path_factory.mktemp("validation") / "dataset"
    data = DataConfig(source=str(chat_rows_file), format="chat", max_length=96, validation_share=0.2)
    prepare.prepare(data, seed=0, tokenizer_dir=tiny_model_dir, destination=directory)
    return directory


@pytest.fixture
def train(run_config, tiny_model_dir, dataset, tmp_path):
    """Train in this process; a method's usual strategy here, or the one that is given."""

    def run(where="run", method="full", every=4, data=None, checkpoints=None, evaluation=None, **training):
        wanted = {"global_batch": 8, "micro_batch": 8, "log_every": 1, "precision": "fp32", "save_dtype": "auto"}
        config = run_config(
            method,
            strategy="single",
            data=data or {},
            training={**wanted, "gradient_checkpointing": False, **training},
            evaluation={"every_steps": every, "max_new_tokens": 4, **(evaluation or {})},
            checkpoints={"every_minutes": 1000, "keep_checkpoints": 1, **(checkpoints or {})},
            **({} if method == "full" else {"lora": {"rank": 4, "dropout": 0.3}}),
        )
        place = CheckpointLocation(str(tmp_path / where), tmp_path / f"{where}-scratch", 10.0)
        inputs = Inputs(config, planned(config, model=tiny_model_dir), tiny_model_dir, dataset, checkpoints=place)
        return fit(inputs, tmp_path / f"{where}-out")

    return run


@pytest.fixture
def unlearning(monkeypatch):
    """A training whose gradients point the other way from a step on, so that what it learnt is lost again."""
    compute = ResumableTrainer.compute_loss

    def turned(self, *arguments, **options):
        loss = compute(self, *arguments, **options)
        return loss if self.state.global_step < BEST else -0.5 * loss

    monkeypatch.setattr(ResumableTrainer, "compute_loss", turned)


def loss_of(directory, dataset):
    """As a process of its own would measure a saved model."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="float32").eval()
    return held_out_loss(model, load_tokenizer(directory), held_out_rows(dataset, 500), 4)[0]


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_validations_change_nothing_of_the_training(train, method):
    """Answers are drawn and rows measured between two steps; the dropout of the next must not know."""
    often = train("often", method=method, every=1, max_steps=6)
    seldom = train("seldom", method=method, every=100, max_steps=6)
    assert [v.step for v in often.validations] == list(range(7))
    assert [v.step for v in seldom.validations] == [0, 6]
    assert often.losses == seldom.losses
    assert often.validations[-1].loss == seldom.validations[-1].loss
    assert [v.tokens for v in often.validations] == sorted(v.tokens for v in often.validations)
    assert often.validations[-1].tokens > often.validations[0].tokens == 0


def test_how_often_where_the_run_does_not_say(train, caplog):
    caplog.set_level("INFO")
    result = train(every=None, max_steps=20)
    assert [v.step for v in result.validations] == list(range(0, 21, 2))
    lines = [record.message for record in caplog.records if "held-out loss" in record.message]
    assert "step 0/20  held-out loss" in lines[0]
    assert "(before training)" in lines[0]
    assert result.before.loss == result.validations[0].loss
    assert result.before.prompts == result.after.prompts
    assert len(result.after.answers) == len(result.after.prompts) > 0


def test_there_are_ten_validations_where_steps_are_no_multiple_of_ten(train):
    """19 steps had 19 of them."""
    result = train(every=None, max_steps=19)
    assert [v.step for v in result.validations] == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 19]


def test_the_best_weights_become_the_result(train, unlearning, dataset, tmp_path):
    result = train(**UNLEARNING)
    losses = {v.step: v.loss for v in result.validations}
    assert min(losses, key=losses.get) == BEST == result.kept_step < result.steps == 20
    assert result.after.loss == pytest.approx(losses[BEST], abs=1e-5)
    assert result.saved.trained_loss == pytest.approx(losses[BEST], abs=1e-4)
    assert loss_of(tmp_path / "run-out", dataset) == pytest.approx(result.saved.saved_loss, abs=1e-4)
    last = train("last", **{**UNLEARNING, "keep": "last"})
    assert (last.kept_step, last.losses) == (20, result.losses)
    assert last.after.loss == losses[20] > result.after.loss + 0.1


@pytest.fixture
def measured(monkeypatch):
    """Validations that find these losses, by step."""
    real = RowLosses.mean
    found = {}

    def log(self, losses):
        state = self._trainer.state
        loss = found.get(state.global_step, real.fget(losses))
        self._trainer.log({"eval_loss": loss})

    monkeypatch.setattr(Validator, "_log", log)
    return found


@pytest.mark.parametrize("first", [0.5, math.nan])
def test_the_best_trained_weights_are_kept_where_training_made_the_model_worse(train, measured, first, caplog):
    measured |= {0: first, 4: 1.5, 8: 1.2, 12: 1.8, 16: 1.9, 20: 2.5}
    result = train(max_steps=20, keep="best", every=4)
    assert (result.kept_step, result.checkpoint_steps) == (8, [4, 8, 20])
    assert "no checkpoint" not in caplog.text


def test_a_loss_that_is_not_a_number_is_never_the_lowest(train, measured):
    measured |= {0: math.nan, 4: 2.0, 8: math.nan, 12: 1.2, 16: 1.1, 20: math.nan}
    result = train(max_steps=20, keep="best", every=4, patience=2)
    assert (result.steps, result.kept_step) == (20, 16)


def test_what_rounding_costs_is_measured_in_the_type_of_the_weights_not_of_the_training(
    train, dataset, tiny_model_dir, tmp_path
):
    """Autocast around the model rounded what was measured, so that rounding seemed to cost nothing."""
    result = train(precision="bf16", learning_rate=1e-3, max_steps=4)
    assert result.saved.base_loss == pytest.approx(loss_of(tiny_model_dir, dataset), abs=2e-6)
    assert result.saved.saved_loss == pytest.approx(loss_of(tmp_path / "run-out", dataset), abs=2e-6)
    assert result.before.loss != pytest.approx(result.saved.base_loss, abs=2e-6)  # it trained in autocast


def test_of_the_checkpoints_the_last_and_the_best_stay(train, unlearning, tmp_path):
    result = train(checkpoints={"every_steps": 1}, **UNLEARNING)
    assert set(result.checkpoint_steps) == set(range(1, 21))
    steps = {step for step in range(1, 21) if (tmp_path / "run" / checkpoint_name(step)).is_dir()}
    assert steps == {BEST, 20}


def test_the_best_adapter_becomes_the_result(train, unlearning, tmp_path):
    result = train(method="qlora", **UNLEARNING)
    losses = {v.step: v.loss for v in result.validations}
    assert min(losses, key=losses.get) == BEST == result.kept_step
    assert result.after.loss == pytest.approx(losses[BEST], abs=1e-4)
    # The same run, ended at that step, saves the same adapter.
    ended = train("ended", method="qlora", **{**UNLEARNING, "max_steps": BEST})
    assert ended.losses == result.losses[:BEST]
    trained, other = (load_file(next((tmp_path / f"{run}-out").glob("adapter_model*"))) for run in ("run", "ended"))
    assert trained.keys() == other.keys()
    assert all((trained[name] == other[name]).all() for name in trained)


class CutOffError(Exception):
    pass


def test_the_best_survives_an_attempt_that_is_cut_off(train, unlearning, monkeypatch):
    whole = train("whole", checkpoints={"every_steps": 6}, **UNLEARNING)
    compute = ResumableTrainer.compute_loss

    def cut_off(self, *arguments, **options):
        if self.state.global_step == 14:
            raise CutOffError
        return compute(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ResumableTrainer, "compute_loss", cut_off)
        with pytest.raises(CutOffError):
            train(checkpoints={"every_steps": 6}, **UNLEARNING)
    result = train(checkpoints={"every_steps": 6}, **UNLEARNING)
    assert result.resumed_at > BEST == result.kept_step == whole.kept_step
    for one, other in zip(result.validations, whole.validations, strict=True):
        assert (one.step, one.loss) == (other.step, pytest.approx(other.loss, abs=1e-6))
    assert result.before == whole.before
    assert result.after.loss == pytest.approx(whole.after.loss, abs=1e-6)


def test_what_was_measured_before_is_never_shown_beside_something_else(train, tmp_path):
    first = train("first", max_steps=4)
    resumed = {"max_steps": 4, "checkpoints": {"resume_from": str(tmp_path / "first")}}
    asked = train("asked", **resumed, evaluation={"prompts": ["Another?"]})
    assert (asked.before.loss, asked.before.prompts, asked.before.answers) == (first.before.loss, [], [])
    assert asked.after.prompts == ["Another?"]
    with pytest.raises(ConfigError, match=r"evaluation\.max_rows"):
        train("fewer", **resumed, evaluation={"max_rows": 2})


def test_a_best_checkpoint_that_is_gone_gives_way_to_the_next_best(train, unlearning, tmp_path, monkeypatch, caplog):
    take = Attempt.take_best

    def without_the_lowest(self, loaded):
        self._checkpoints.wait()
        shutil.rmtree(tmp_path / "run" / checkpoint_name(BEST))
        return take(self, loaded)

    monkeypatch.setattr(Attempt, "take_best", without_the_lowest)
    result = train(checkpoints={"every_steps": 4, "keep_checkpoints": 20}, **UNLEARNING)
    losses = {v.step: v.loss for v in result.validations if v.step not in (0, BEST)}
    assert result.kept_step == min(losses, key=losses.get)
    assert f"no checkpoint of step {BEST}" in caplog.text


def test_patience_ends_a_training_that_gains_nothing(train, unlearning):
    result = train(**UNLEARNING, patience=2)
    assert [v.step for v in result.validations] == [0, 4, BEST, 12, 16]
    assert (result.steps, result.kept_step) == (16, BEST)
    again = train(**UNLEARNING, patience=2)  # as an attempt that was cut off while it saved: nothing more is trained
    assert (again.steps, again.losses, again.kept_step) == (result.steps, result.losses, result.kept_step)
    assert again.resumed_at == 16


def test_what_is_logged_reaches_everyone_who_listens(train, monkeypatch):
    """Weights & Biases is given what the Trainer logs; the loss of a step that was validated got lost."""
    heard = []

    class Listener(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            heard.append((state.global_step, set(logs)))

    build = ResumableTrainer.__init__

    def with_listener(self, *arguments, callbacks=(), **options):
        build(self, *arguments, callbacks=[*callbacks, Listener()], **options)

    monkeypatch.setattr(ResumableTrainer, "__init__", with_listener)
    train(every=2, max_steps=4)
    assert [step for step, logs in heard if "eval_loss" in logs] == [0, 2, 4]
    assert [step for step, logs in heard if "loss" in logs] == [1, 2, 3, 4]


def test_a_model_that_cannot_be_packed_is_refused_before_its_first_step(train, monkeypatch):
    monkeypatch.setattr(separation, "leakage", lambda model: 0.5)
    with pytest.raises(ConfigError, match=r"data\.packing"):
        train(data={"packing": True}, max_steps=4)
