"""The file of a sweep: which trials it names, and what it may not say."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import run_dict

from thriftune.checkpoints.known_by import DECIDED
from thriftune.config import RunConfig
from thriftune.config.sweep import SweepRun
from thriftune.config.sweep_rules import REFUSED, validations_before_end
from thriftune.config.trials import all_keys, field_of, given_settings, number_of_trials, numbers_of, trial_of
from thriftune.errors import ConfigError
from thriftune.training.validation import Validator

RATES = {"training.learning_rate": [1e-4, 2e-4, 3e-4]}
RANGE = {"training.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}}
Sweep = Callable[..., SweepRun]


def sweep_of(sweep: dict[str, Any], method: str = "lora", **changes: Any) -> SweepRun:
    return SweepRun.model_validate(run_dict(method, **changes) | {"sweep": sweep})


def test_a_grid_is_every_combination_in_the_order_of_the_file():
    run = sweep_of({"grid": {**RATES, "lora.rank": [4, 8]}})
    settings = given_settings(run)
    assert len(settings) == number_of_trials(run) == 6
    assert settings[:2] == [
        {"training.learning_rate": 1e-4, "lora.rank": 4},
        {"training.learning_rate": 1e-4, "lora.rank": 8},
    ]


@pytest.mark.parametrize(
    ("ranges", "count"),
    [
        (RANGE, 50),
        ({"lora.rank": {"low": 4, "high": 8}}, 5),
        ({"lora.rank": {"low": 4, "high": 9, "step": 2}}, 3),
        ({"lora.dropout": {"low": 0.0, "high": 0.3, "step": 0.1}}, 4),
        ({"lora.rank": [4, 8], "lora.alpha": {"low": 1, "high": 3}}, 6),
        ({**RANGE, "lora.rank": [4, 8]}, 50),
    ],
)
def test_there_are_no_more_trials_than_the_ranges_hold(ranges, count):
    """Of 50 asked for, a budget counted 50 where 3 could be drawn."""
    assert number_of_trials(sweep_of({"ranges": ranges, "trials": 50})) == count


def test_a_trial_is_a_run_with_its_values_in_sections_that_the_file_leaves_out():
    run = sweep_of({"grid": {**RATES, "lora.rank": [4, 8]}})
    trial = trial_of(run, 3, given_settings(run)[3])
    assert type(trial.config) is RunConfig
    assert (trial.config.name, trial.config.lora.rank, trial.config.training.learning_rate) == ("tiny-t3", 8, 2e-4)
    assert run.as_run.merges, "the best is merged"
    assert not trial.config.merges, "a trial is not"
    again = SweepRun.model_validate_json(run.model_dump_json())  # as a pod has it, with every key given
    assert trial_of(again, 3, given_settings(again)[3]) == trial


def test_only_keys_that_lead_to_values_are_fields_of_trials():
    assert numbers_of(field_of("lora.rank")) is int
    assert numbers_of(field_of("training.max_steps")) is int
    assert numbers_of(field_of("training.learning_rate")) is float
    assert numbers_of(field_of("lora.dropout")) is float
    assert numbers_of(field_of("training.scheduler")) is None
    assert field_of("lora.rank.more") is None
    assert {"lora.rank", "data.max_length", "seed"} <= set(all_keys())


def test_what_does_not_change_a_training_is_refused():
    """Such trials would be known by the same key, and only one of them would train."""
    equal = [key for key, counts in DECIDED.items() if counts == "not" and field_of(key)]
    assert len(equal) > 8
    assert [key for key in equal if not any(key == one or key.startswith(f"{one}.") for one in REFUSED)] == []
    assert [key for key in REFUSED if field_of(key) is None] == []


@pytest.mark.parametrize(
    ("sweep", "changes", "said"),
    [
        ({}, {}, r"sweep: names no trial\. Give one of overrides, grid, ranges\."),
        ({"grid": RATES, "overrides": [{"lora.rank": 2}]}, {}, r"sweep = overrides, grid: several ways"),
        (
            {"grid": {"learning_rate": [1, 2]}},
            {},
            r"sweep\.grid\.learning_rate = \[1, 2\]: is not a key .*'training\.l",
        ),
        ({"grid": {"lora.rnk": [1, 2]}}, {}, r"sweep\.grid\.lora\.rnk = .*Did you mean 'lora\.rank'\?"),
        ({"grid": {"lora": [1]}}, {}, r"sweep\.grid\.lora = \[1\]: is a section, .*lora\.rank\."),
        ({"overrides": [{"training": {"max_steps": 1}}]}, {}, r"sweep\.overrides\.0\.training = .*is a section"),
        ({"overrides": [{}]}, {}, r"sweep\.overrides\.0 = \{\}: changes nothing"),
        ({"grid": {"name": ["a", "b"]}}, {}, r"sweep\.grid\.name = \[a, b\]: is the sweep's.*Set it in the run"),
        ({"grid": {"hardware.device": ["T4"]}}, {}, r"sweep\.grid\.hardware\.device = \[T4\]: must be the same"),
        ({"grid": {"data.max_length": [32, 64]}}, {}, r"data\.max_length = \[32, 64\]: .*Add allow: \[data\]"),
        ({"grid": {"seed": [0, 1]}}, {}, r"sweep\.grid\.seed = .*Add allow: \[seed\]"),
        ({"grid": {"model.source": ["a", "b"]}}, {}, r"sweep\.grid\.model\.source = .*Add allow: \[model\]"),
        ({"grid": RATES, "allow": ["rows"]}, {}, r"sweep\.allow\.0 = 'rows'"),
        ({"grid": {"lora.rank": [4, 4]}}, {}, r"sweep\.grid\.lora\.rank = 4: is listed twice"),
        ({"grid": {"lora.rank": []}}, {}, r"sweep\.grid\.lora\.rank = \[\]: has no value"),
        ({"grid": {"lora.rank": [4, "x"]}}, {}, r"sweep\.grid\.lora\.rank = 'x': trial 1 \(lora\.rank: x\): "),
        ({"overrides": [{"lora.rank": 4}, {"lora.rank": -1}]}, {}, r"sweep\.overrides\.1\.lora\.rank = -1: trial 1"),
        ({"overrides": [{"lora.rank": 4}, {"lora.rank": 4}]}, {}, r"sweep = trial 1: is equal to trial 0"),
        ({"grid": RATES, "trials": 2}, {}, r"sweep\.grid = 3 trials: are more than the 2 of sweep\.trials"),
        ({"grid": {"lora.rank": list(range(1, 40)), "lora.alpha": list(range(1, 40))}}, {}, r"1521 trials: are more"),
        ({"ranges": RANGE}, {}, r"sweep\.trials: is missing\. Say how many"),
        ({"ranges": RANGE, "trials": 4, "sampler": "tpe"}, {}, r"sweep\.parallel: is missing: tpe draws"),
        ({"grid": RATES, "sampler": "tpe"}, {}, r"sweep\.sampler = tpe: draws from ranges, and there are none"),
        ({"ranges": {"lora.rank": {"low": 9, "high": 4}}, "trials": 2}, {}, r"sweep\.ranges\.lora\.rank = 9 to 4"),
        ({"ranges": {"lora.rank": {"low": 1.5, "high": 4}}, "trials": 2}, {}, r"is for whole numbers"),
        ({"ranges": {"lora.rank": {"low": 1, "high": 4, "step": 9}}, "trials": 2}, {}, r"rank\.step = 9: is more than"),
        ({"ranges": {"lora.dropout": {"low": 0, "high": 0.1, "log": True}}, "trials": 2}, {}, r"has no logarithm"),
        ({"ranges": {"lora.dropout": {"low": 0, "high": 7}}, "trials": 2}, {}, r"sweep\.ranges\.lora\.dropout = 7"),
        ({"ranges": {"training.scheduler": {"low": 0, "high": 7}}, "trials": 2}, {}, r"is no number in a run file"),
        ({"grid": RATES, "metric": "general-mini.accuracy"}, {}, r"sweep\.metric = general-mini\.accuracy: .*has none"),
        ({"grid": RATES}, {"benchmarks": {"tasks": ["general-mini"]}}, r"benchmarks = given: are not measured"),
        (
            {"grid": RATES, "metric": "arc.acc"},
            {"benchmarks": {"tasks": ["general-mini"]}},
            r"sweep\.metric = arc\.acc: is of arc, which is not measured\. Measured are general-mini",
        ),
        (
            {"grid": RATES, "metric": "general-mini.acuracy"},
            {"benchmarks": {"tasks": ["general-mini"]}},
            r"sweep\.metric = general-mini\.acuracy: is no metric .*Did you mean accuracy",
        ),
        ({"grid": RATES, "budget": {}}, {}, r"sweep\.budget = \{\}: limits nothing"),
        ({"grid": RATES, "budget": {"cost": 0}}, {}, r"sweep\.budget\.cost = 0"),
        ({"grid": RATES, "halving": {"factor": 1}}, {}, r"sweep\.halving\.factor = 1"),
        (
            {"grid": RATES, "halving": {"first": 3}},
            {"training": {"max_steps": 9}, "evaluation": {"every_steps": 3}},
            r"sweep\.halving\.first = 3: stops no trial: before its last step, none validates more than 2 times\.",
        ),
        (
            {"grid": RATES, "halving": {"first": 10}},
            {"training": {"max_steps": None}},
            r"none validates more than 9 times",
        ),
        ({"grid": {"export.shard_gb": [1, 2]}}, {}, r"sweep\.grid\.export\.shard_gb = \[1, 2\]: is for one result"),
        ({"grid": RATES}, {"publish": {"repository": "me/it"}}, r"publish = me/it: is for one result"),
        ({"grid": RATES}, {"export": {"formats": ["gguf-f16"]}}, r"export\.formats = gguf-f16: are for one result"),
        (
            {"grid": RATES},
            {"strategy": "ddp", "hardware": {"nodes": 2, "device": "T4"}},
            r"hardware\.nodes = 2: a trial",
        ),
        ({"grid": RATES}, {"evaluation": {"saved_model": True}}, r"evaluation\.saved_model = true"),
        ({"grid": RATES}, {"name": "a" * 36}, r"name = a+: is longer than 35"),
        ({"grid": RATES}, {"data": {"source": "input:table"}}, r"data\.source = input:table: .*sweeps take none"),
        ({"grid": RATES}, {"checkpoints": {"resume_from": "/a/b"}}, r"checkpoints\.resume_from = /a/b: "),
        ({"grdi": RATES}, {}, r"sweep\.grdi = .*Did you mean 'grid'\?"),
    ],
)
def test_what_cannot_be_is_refused_by_field_value_and_remedy(sweep, changes, said):
    with pytest.raises(ConfigError, match=said) as caught:
        sweep_of(sweep, **changes)
    assert len(caught.value.problems) == 1, str(caught.value)
    assert caught.value.problems[0].remedy


@pytest.mark.parametrize(
    ("first", "grid", "changes"),
    [
        (2, RATES, {"training": {"max_steps": 9}, "evaluation": {"every_steps": 3}}),
        (9, RATES, {"training": {"max_steps": 10}}),
        (
            500,
            RATES,
            {"training": {"max_steps": None}, "evaluation": {"every_steps": 3}},
        ),  # the file does not say how many
        (4, {"training.max_steps": [2, 50]}, {"evaluation": {"every_steps": 10}}),
    ],
)
def test_halving_that_can_stop_a_trial_is_accepted(first, grid, changes):
    sweep_of({"grid": grid, "halving": {"first": first}}, **changes)


@pytest.mark.parametrize("every", [None, 1, 2, 3, 7, 30])
def test_the_validations_that_may_stop_a_trial_are_those_before_its_last_step(every):
    config = sweep_of({"grid": RATES}, evaluation={"every_steps": every}).as_run
    counts = SimpleNamespace(_config=config)
    for steps in range(1, 40):
        states = [SimpleNamespace(global_step=step, max_steps=steps) for step in range(1, steps)]
        due = sum(Validator.is_due(counts, state) for state in states)
        assert validations_before_end(steps, every) == due, steps


def test_all_problems_of_run_and_sweep_are_said_at_once():
    with pytest.raises(ConfigError) as caught:
        sweep_of({"grid": {"lora.rnk": [1], "name": ["a"]}, "trials": 1, "metric": "a.b"}, lora={"rank": 0})
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {"lora.rank"}, "what the schema refuses comes first"
    with pytest.raises(ConfigError) as caught:
        sweep_of({"grid": {"lora.rnk": [1], "name": ["a"]}, "metric": "a.b"}, prefix={})
    fields = {problem.field for problem in caught.value.problems}
    assert fields == {"prefix", "sweep.grid.lora.rnk", "sweep.grid.name", "sweep.metric"}


def test_every_key_that_leads_to_other_rows_or_to_another_model_has_to_be_allowed():
    """Else each of its values would prepare a dataset of its own unawares."""
    leads = {key for key, counts in DECIDED.items() if counts in ("data", "model")} | {"seed", "task", "classification"}
    keys = [key for key in all_keys() if any(key == one or key.startswith(f"{one}.") for one in leads)]
    assert len(keys) > 25
    with pytest.raises(ConfigError) as caught:
        sweep_of({"grid": {key: ["any"] for key in keys}})
    refused = [problem.field for problem in caught.value.problems if "Add allow: [" in problem.remedy]
    assert refused == [f"sweep.grid.{key}" for key in keys]


def test_a_file_without_a_sweep_is_told_so():
    with pytest.raises(ConfigError, match=r"sweep: is missing\. Add it: What the trials"):
        SweepRun.model_validate(run_dict("lora"))


def test_what_is_allowed_by_name_is_done():
    run = sweep_of({"grid": {"data.max_length": [32, 64], "seed": [0, 1]}, "allow": ["data", "seed"]})
    assert [trial_of(run, 0, one).config.data.max_length for one in given_settings(run)] == [32, 32, 64, 64]
