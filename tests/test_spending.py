"""A budget ends a training after a checkpoint, with all attempts counted, and a larger one lets it go on."""

import json
import time
from dataclasses import replace

import pytest
import yaml
from planning import planned
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerControl, TrainerState, trainer

from thriftune.checkpoints import identity, known_by
from thriftune.checkpoints.location import CheckpointLocation, Writer
from thriftune.checkpoints.saving import BackgroundSaver
from thriftune.checkpoints.spent import SpentTime
from thriftune.config import DataConfig, RunConfig
from thriftune.data import prepare
from thriftune.errors import BudgetError, TransientError
from thriftune.planning import catalogue, planner
from thriftune.planning.time.run import Size
from thriftune.stores.store import Store
from thriftune.training import fit as fitting
from thriftune.training.budget_stop import BudgetCallback
from thriftune.training.fit import Inputs, fit
from thriftune.training.spending import Spending

_HOUR = 3600


@pytest.fixture
def config(run_config):
    def make(budget=None, **training):
        wanted = {"global_batch": 4, "micro_batch": 4, "max_steps": 8, "precision": "fp32", "log_every": 1, **training}
        return run_config(
            "qlora",
            plan={"budget": budget},
            training={**wanted, "gradient_checkpointing": False},
            lora={"rank": 4, "dropout": 0.0},
            evaluation={"max_new_tokens": 2},
        )

    return make


class Clock:
    """A clock that is set."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def spending(config, tmp_path):
    """What a run at 6 an hour has cost, by a clock that is set."""

    def make(budget=30.0, price=6.0, **given):
        plan = replace(planned(config()), price_per_hour=price)
        spent = SpentTime(Store(str(tmp_path)), Writer("run"))
        return Spending(config(budget), plan, spent, **given)

    return make


def test_all_attempts_count_with_the_time_to_fetch_the_model(spending):
    """What an attempt took whose steps were lost is paid, too."""
    clock = Clock()
    first = spending(clock=clock, seconds_before=_HOUR / 2)
    first.begin()
    clock.now += _HOUR
    first.note()
    clock.now += 10  # is lost: so soon nothing is noted again
    first.note()
    second = spending(clock=clock)
    second.begin()
    clock.now += 2 * _HOUR
    assert second.seconds == pytest.approx(3.5 * _HOUR)
    assert second.cost == pytest.approx(21.0)
    assert not second.would_exceed(1.4 * _HOUR)
    assert second.would_exceed(1.6 * _HOUR)


def test_an_attempt_that_may_cost_nothing_more_ends_before_it_loads_anything(spending):
    clock = Clock()
    first = spending(clock=clock)
    clock.now += 5 * _HOUR
    first.note()
    with pytest.raises(BudgetError) as caught:
        spending(clock=clock).begin()
    (problem,) = caught.value.problems
    assert (problem.code, problem.field, problem.value) == ("budget-spent", "plan.budget", "30")
    assert "30.00 USD in 5.00 hours of all attempts, at 6.00 an hour" in problem.message
    assert "raise plan.budget and start the same run file again" in problem.remedy
    spending(clock=clock, budget=31.0).begin()


def test_a_machine_without_a_price_keeps_to_every_budget_and_says_so(spending, caplog, tmp_path):
    caplog.set_level("INFO")
    clock = Clock()
    here = spending(price=0.0, clock=clock)
    here.begin()
    clock.now += 1000 * _HOUR
    here.note()
    assert not here.is_limited
    assert not here.would_exceed(1e9)
    assert "plan.budget does not limit this run" in caplog.text
    assert SpentTime(Store(str(tmp_path)), None).seconds() == 0


def test_the_time_of_fetching_and_loading_counts_though_no_step_is_done(spending, tmp_path):
    """Attempts that were killed before their first step had cost nothing, however many there were."""
    clock = Clock()
    first = spending(clock=clock, seconds_before=_HOUR)
    first.begin()
    assert SpentTime(Store(str(tmp_path)), None).seconds() == pytest.approx(_HOUR)
    clock.now += _HOUR / 2
    checkpoints = stall = guard = None
    BudgetCallback(first, checkpoints, guard, stall).on_train_begin(None, TrainerState(), TrainerControl())
    assert SpentTime(Store(str(tmp_path)), None).seconds() == pytest.approx(1.5 * _HOUR)


def test_a_store_that_does_not_answer_costs_a_warning(spending, caplog, monkeypatch):
    def refuse(self, *noted):
        raise TransientError("No answer.")

    monkeypatch.setattr(SpentTime, "note", refuse)
    some = spending(clock=Clock())
    some.note(at_once=True)
    some.note(at_once=True)
    assert caplog.text.count("is not noted") == 1


def test_what_cannot_be_read_counts_as_nothing(tmp_path):
    for number, content in enumerate(["", "[]", "{}", '{"seconds": "x"}', '{"seconds": -5}', '{"seconds": 7}']):
        (tmp_path / "spent").mkdir(exist_ok=True)
        (tmp_path / "spent" / f"{number}.json").write_text(content)
    assert SpentTime(Store(str(tmp_path)), None).seconds() == 7


def test_a_training_is_the_same_with_another_budget(config):
    plan = planned(config())
    runs = [config(), config(1.0), config(2.0)]
    assert len({known_by.training(run, plan, base="b", dataset="d", start="") for run in runs}) == 1
    assert len({json.dumps(identity.of(run, plan, model="m", dataset="d", rows=9)) for run in runs}) == 1
    assert len({planned(run).fingerprint for run in runs}) == 1


@pytest.mark.parametrize("strategy", ["zero", "fsdp"])
def test_what_the_message_says_to_write_keeps_the_machines(strategy, run_dict_of, tmp_path):
    """A larger budget led to other machines, whose training began at step 0, away from the steps that were done."""

    def plan_of(content, minimize):
        run = RunConfig.model_validate({**content, "plan": {"minimize": minimize, "budget": 1e6}})
        return run, planner.plan(run, catalogue.load(), size=Size(50_000, (512,), "rows"))

    content = run_dict_of(strategy)
    run, plan = plan_of(content, "time")
    _, cheapest = plan_of(content, "cost")
    assert cheapest.fingerprint != plan.fingerprint
    remedy = Spending(run, plan, SpentTime(Store(str(tmp_path)), None)).error(3, 9).problems[0].remedy
    written = yaml.safe_load("\n".join(remedy.partition("write into it: ")[2].rstrip(".").split(", ")))
    assert written.keys() > {"hardware.instance", "hardware.nodes", "strategy", "training.micro_batch"}
    for key, value in written.items():
        section, _, name = key.rpartition(".")
        (content.setdefault(section, {}) if section else content)[name] = value
    again, kept = plan_of(content, "cost")
    assert (kept.instance, kept.fingerprint) == (plan.instance, plan.fingerprint)
    known = {known_by.training(*made, base="b", dataset="d", start="") for made in ((run, plan), (again, kept))}
    assert len(known) == 1


@pytest.fixture
def run_dict_of():
    """Make the content of a run file that leaves the machines to the planner."""

    def make(strategy):
        return {
            "name": "run", "method": "full", "model": {"source": "HuggingFaceTB/SmolLM2-135M-Instruct"},
            "data": {"source": "rows", "format": "text", "max_length": 512}, "hardware": {"device": "T4"},
            "training": {"global_batch": 64}, "strategy": strategy,
        }  # fmt: skip

    return make


class Slow(TrainerCallback):
    """Steps take half a second, so that none fits into what is left."""

    def on_step_begin(self, args, state, control, **kwargs):
        time.sleep(0.5)


@pytest.fixture
def train(config, tiny_model_dir, chat_rows_file, tmp_path):
    """Train 8 steps of a run that costs one a second; its checkpoints are in the folder of a name."""
    dataset = tmp_path / "dataset"
    data = DataConfig(source=str(chat_rows_file), format="chat", max_length=64)
    prepare.prepare(data, seed=0, tokenizer_dir=tiny_model_dir, destination=dataset)

    def train(where, budget, fetching_seconds=0.0, **training):
        run = config(budget, **training)
        plan = replace(planned(run), price_per_hour=3600.0)  # one a second
        place = CheckpointLocation(str(tmp_path / where), tmp_path / f"{where}-scratch", 10.0)
        inputs = Inputs(run, plan, tiny_model_dir, dataset, None, place, fetching_seconds)
        result = fit(inputs, tmp_path / f"{where}-out")
        return result, load_file(tmp_path / f"{where}-out" / "adapter_model.safetensors")

    return train


def test_a_run_that_is_stopped_by_its_budget_goes_on_with_a_larger_one(train, tmp_path, monkeypatch):
    calm, expected = train("calm", None)
    with monkeypatch.context() as slow:
        slow.setattr(trainer, "DEFAULT_CALLBACKS", [*trainer.DEFAULT_CALLBACKS, Slow])
        with pytest.raises(BudgetError, match=r"plan\.budget = 1000: .* of 8 steps are done and saved") as caught:
            train("run", 1000.0, fetching_seconds=998.0)
    assert "The steps that are left need about" in str(caught.value)
    assert not (tmp_path / "run-out" / "manifest.json").exists()
    # Nothing is trained, and nothing written, for what is spent.
    with pytest.raises(BudgetError, match=r"steps are done and saved"):
        train("run", 999.0)
    result, weights = train("run", 1e6)
    assert 0 < result.resumed_at < result.steps == calm.steps
    assert result.losses == calm.losses
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(expected[name]) for name in expected)
    assert SpentTime(Store(str(tmp_path / "run")), None).seconds() > 998


def test_steps_whose_checkpoint_failed_are_not_called_saved(train, monkeypatch, caplog):
    """The message counted what was handed over, and the log promised a result that a stopped run does not have."""

    def refuse(*arguments, **options):
        raise TransientError("The last 3 checkpoints could not be saved.")

    monkeypatch.setattr(trainer, "DEFAULT_CALLBACKS", [*trainer.DEFAULT_CALLBACKS, Slow])
    monkeypatch.setattr(BackgroundSaver, "save", refuse)
    with pytest.raises(BudgetError, match=r"It stops; 0 of 8 steps are done and saved"):
        train("run", 1000.0, fetching_seconds=998.0)
    assert "which has no checkpoint. The last 3" in caplog.text
    assert "the result is saved" not in caplog.text


def test_a_result_is_written_although_its_budget_went_while_the_first_attempt_wrote_it(train, monkeypatch):
    """A pod that was lost after the last step left a run that ended with a spent budget, and all of its steps done."""

    def lose(*arguments):
        raise TransientError("The node is gone.")

    with monkeypatch.context() as lost:
        lost.setattr(fitting, "_save", lose)
        with pytest.raises(TransientError, match="gone"):
            train("run", 1000.0, 900.0, max_steps=2)
    result, weights = train("run", 900.0, max_steps=2)
    assert (result.steps, result.resumed_at) == (2, 2)
    assert weights
