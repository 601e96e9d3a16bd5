"""What a training measures of itself, and the record that it leaves: in one process, with the tiny model."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import run_dict
from planning import planned

from tasks import ledger as ledger_of_tasks
from tasks import settings
from thriftune.checkpoints.location import CheckpointLocation
from thriftune.config import DataConfig, RunConfig
from thriftune.data import prepare
from thriftune.overhead import CONTEXT, MARGIN
from thriftune.planning import ledger
from thriftune.planning.ledger import Quantities
from thriftune.training import callbacks
from thriftune.training import fit as fitting
from thriftune.training.callbacks import ValidationCallback
from thriftune.training.fit import Inputs, fit
from thriftune.training.guards.oom import Halvings
from thriftune.training.recording import record_of
from thriftune.training.resumable import ResumableTrainer

STEPS = 6
# Seconds that these take on the clock of the tests, which stands still meanwhile.
LOADING, FIRST_STEP, STEP, VALIDATION = 3.0, 10.0, 0.25, 100.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model_dir, chat_rows_file):
    """Results of two attempts: three steps from the start, and three more."""
    folder = tmp_path_factory.mktemp("recording")
    data = DataConfig(source=str(chat_rows_file), format="chat", max_length=64)
    prepare.prepare(data, seed=0, tokenizer_dir=tiny_model_dir, destination=folder / "dataset")
    with pytest.MonkeyPatch.context() as patch:
        _use_own_clock(patch)
        yield [_train(folder, tiny_model_dir, steps) for steps in (STEPS // 2, STEPS)]


def _use_own_clock(patch):
    """Steps, validations and loading take as long as said above, whatever else this machine does."""
    now, begun = [0.0], set()
    train, validate, load = ResumableTrainer.training_step, ValidationCallback.on_step_end, fitting.load_tokenizer
    begin = ValidationCallback.on_train_begin

    def timed(call, seconds):
        def taking(*arguments, **options):
            now[0] += seconds
            return call(*arguments, **options)

        return taking

    def step(self, *arguments, **options):
        now[0] += STEP if self in begun else FIRST_STEP
        begun.add(self)
        return train(self, *arguments, **options)

    patch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: now[0]))
    patch.setattr(ResumableTrainer, "training_step", step)
    patch.setattr(ValidationCallback, "on_step_end", timed(validate, VALIDATION))
    patch.setattr(ValidationCallback, "on_train_begin", timed(begin, VALIDATION))
    patch.setattr(fitting, "load_tokenizer", timed(load, LOADING))


def _train(folder, model_dir, steps):
    training = {
        "global_batch": 4, "micro_batch": 4, "max_steps": steps, "log_every": 1, "precision": "fp32",
        "scheduler": "constant", "warmup_share": 0.0,
    }  # fmt: skip
    config = RunConfig.model_validate(
        run_dict("lora", training=training, checkpoints={"every_steps": 3}, evaluation={"max_new_tokens": 2})
    )
    place = CheckpointLocation(str(folder / "checkpoints"), folder / "scratch", 10.0)
    plan = planned(config)
    result = fit(Inputs(config, plan, model_dir, folder / "dataset", checkpoints=place), folder / f"out-{steps}")
    return config, plan, result


def test_each_attempt_times_its_own_steps_without_the_first_and_what_is_between_them(trained):
    for _, _, result in trained:
        pace = result.pace
        assert (pace.steps, pace.seconds_per_step, pace.loading_seconds) == (STEPS // 2 - 1, STEP, LOADING)
    assert [result.resumed_at for _, _, result in trained] == [0, STEPS // 2]


def test_tokens_are_those_of_the_steps_that_were_timed(trained):
    for _, _, result in trained:
        *_, before, _, last = result.loss_tokens  # two of the three steps of the attempt are timed
        assert last > before
        seconds = result.pace.seconds_per_step * result.pace.steps
        assert result.pace.tokens_per_second == pytest.approx((last - before) / seconds)


def test_the_task_leaves_one_record_that_a_later_plan_learns_from(trained, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("THRIFTUNE_OUTPUTS", str(tmp_path))
    config, plan, result = trained[0]
    ledger_of_tasks.remember(config, plan, tiny_model_dir, result, 2.5)
    (file,) = tmp_path.rglob("*.json")
    assert file.parent == tmp_path / "ledger"
    (record,) = ledger.read(ledger_of_tasks.place())
    setup = record.setup
    assert (record.run, setup.device, setup.instance) == ("tiny", "CPU", "this machine")
    assert (setup.strategy, setup.method, setup.family, setup.precision) == ("single", "lora", "llama", "fp32")
    assert setup.versions["torch"] == torch.__version__
    assert record.measured == Quantities(
        allocated_gib=result.memory.device,
        seconds_per_step=result.pace.seconds_per_step,
        tokens_per_second=result.pace.tokens_per_second,
        startup_seconds=2.5 + result.pace.loading_seconds,
    )
    assert record.planned.allocated_gib == result.memory.predicted_device > 0
    ratio = record.measured.allocated_gib / record.planned.allocated_gib
    found = ledger.correct([record], setup, "allocated_gib")
    assert (found.factor > 1) == (ratio > 1)
    assert found.leans_on == "measured: 1 run on this machine"


def test_what_measured_no_step_or_another_plan_is_not_compared(trained):
    config, plan, result = trained[0]
    assert record_of(config, plan, "llama", replace(result, resumed_at=result.steps), 1.0) is None
    halved = record_of(config, plan, "llama", replace(result, halvings=Halvings(1, 4, 2)), 1.0)
    assert halved.planned == Quantities()
    assert halved.measured.seconds_per_step


def test_on_a_gpu_what_the_allocator_and_the_context_take_is_compared_too(trained, run_config):
    plan = planned(run_config("qlora", hardware={"device": "T4"}))
    config, _, result = trained[0]
    memory = replace(result.memory, predicted_device=plan.memory.allocated_gib, reserved=9.0, context=0.2)
    record = record_of(config, plan, "llama", replace(result, memory=memory), 1.0)
    items = plan.memory.device
    assert record.planned.context_gib == items[CONTEXT]
    assert record.planned.reserved_gib == pytest.approx(plan.memory.allocated_gib + items[MARGIN])
    assert record.planned.reserved_gib + record.planned.context_gib == pytest.approx(plan.memory.device_gib)
    assert (record.measured.reserved_gib, record.measured.context_gib) == (9.0, 0.2)


def test_the_ledger_is_where_the_platform_says(monkeypatch, tmp_path):
    monkeypatch.setenv("THRIFTUNE_OUTPUTS", str(tmp_path))
    assert ledger_of_tasks.place() == str(tmp_path / "ledger")
    monkeypatch.setattr(settings, "is_local", lambda: False)
    monkeypatch.setattr(settings, "project_root", lambda: "s3://bucket/metadata/thriftune/ml-production")
    assert ledger_of_tasks.place() == "s3://bucket/metadata/thriftune/ml-production/ledger"
    monkeypatch.setattr(settings, "PLATFORM", settings.PLATFORM.model_copy(update={"ledger": "s3://kept/ledger/"}))
    assert ledger_of_tasks.place() == "s3://kept/ledger"
