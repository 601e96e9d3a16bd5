"""The workflow of a sweep: its nodes, what is refused before any of them trains, and a whole one on the tiny model."""

import json
import math
from dataclasses import replace

import pytest
import yaml
from conftest import run_dict
from planning import nodes_of
from test_results import TRAINED
from test_sweep_config import RANGE, sweep_of
from test_workflows import pyflyte_run

from tasks import plan_sweep, trial_results
from tasks.plan_sweep import plan_round
from tasks.summarize_sweep import join_round, summarize_sweep
from thriftune.errors import ConfigError, ResultError
from thriftune.planning.offers import THIS_MACHINE
from thriftune.sweeps.outcomes import Outcome
from thriftune.sweeps.packs import TrialKey
from thriftune.sweeps.rounds import PlannedRound, SoFar
from thriftune.sweeps.table import table_of
from workflows.sweep import run_rounds
from workflows.trials import conclude, measure_round, train_round

SWEEP = ("workflows/sweep.py", "sweep")


@pytest.fixture
def tiny(tiny_model_dir, chat_rows_file, tmp_path, monkeypatch):
    """Make a sweep of the tiny model."""
    monkeypatch.setenv("THRIFTUNE_OUTPUTS", str(tmp_path / "outputs"))

    def make(sweep, **changes):
        own = {"model": {"source": str(tiny_model_dir)}, "data": {"source": str(chat_rows_file)}}
        return sweep_of(sweep, **{**own, "evaluation": {"max_new_tokens": 4, "every_steps": 1}, **changes})

    return make


RATES = {"training.learning_rate": [1e-3, 1e-2], "lora.rank": [2, 4]}


@pytest.fixture
def on_cluster(monkeypatch):
    """Plan for the catalogue, as a pod on a cluster does."""
    monkeypatch.setattr(plan_sweep, "is_for_this_machine", lambda _: False)


def test_here_all_trials_share_this_machine(tiny):
    planned = plan_round(config=tiny({"grid": RATES, "parallel": 3}), before=SoFar())
    assert [trial.number for trial in planned.trials] == [0, 1, 2, 3]
    (pack,) = planned.packs
    assert (pack.node.instance, pack.slots, pack.numbers) == (THIS_MACHINE, 3, [0, 1, 2, 3])
    assert {trial.config.name for trial in planned.trials} == {f"tiny-t{n}" for n in range(4)}
    assert planned.trials[0].model_version == planned.trials[3].model_version != ""


def test_on_a_cluster_they_share_a_node_of_the_catalogue(tiny, on_cluster):
    hardware = {"device": None, "instance": "g4dn.metal"}
    planned = plan_round(config=tiny({"grid": RATES}, hardware=hardware), before=SoFar())
    (pack,) = planned.packs
    assert (pack.node.instance, pack.slots) == ("g4dn.metal", 4)
    assert {trial.plan.instance for trial in planned.trials} == {"g4dn.metal"}
    assert {trial.plan.devices_per_node for trial in planned.trials} == {1}


def test_trials_over_several_devices_have_nodes_of_their_own(tiny, on_cluster):
    hardware = {"device": "T4", "devices_per_node": 2}
    planned = plan_round(config=tiny({"grid": RATES}, hardware=hardware, strategy="ddp"), before=SoFar())
    assert planned.packs == []
    assert {trial.plan.devices_per_node for trial in planned.alone} == {2}
    assert {trial.plan.nodes for trial in planned.alone} == {1}


def test_trials_with_fewer_validations_than_halving_asks_for_are_named(tiny, caplog):
    """How many steps an epoch has is known once the rows are counted."""
    run = tiny(
        {"grid": {"training.global_batch": [4, 12]}, "halving": {"first": 5}},
        training={"max_steps": None, "epochs": 1},
        evaluation={"every_steps": 1},
    )
    planned = plan_round(config=run, before=SoFar())
    assert [trial.plan.time.steps for trial in planned.trials] == [14, 5]
    assert "Halving stops no trial before 5 validations, and [1] have fewer" in caplog.text


def test_a_trial_of_the_file_that_cannot_be_planned_is_refused_before_any_starts(tiny):
    grid = {
        "overrides": [{"lora.rank": 2}, {"lora.target_modules": ["no_such"]}, {"lora.target_modules": ["nor_this"]}]
    }
    with pytest.raises(ConfigError) as caught:
        plan_round(config=tiny(grid), before=SoFar())
    messages = [problem.message for problem in caught.value.problems]
    assert len(messages) == 2
    assert "trial 1 (lora.target_modules: [no_such])" in messages[0]
    assert "trial 2 (lora.target_modules: [nor_this])" in messages[1]
    assert all(problem.remedy for problem in caught.value.problems)


def test_a_drawn_trial_that_cannot_be_planned_is_left_out_and_that_is_said(tiny, caplog):
    ranges = {"lora.target_modules": [["q_proj"], ["no_such"]]}
    planned = plan_round(config=tiny({"ranges": ranges, "trials": 2}), before=SoFar())
    assert len(planned.trials) == len(planned.left_out) == 1
    (left,) = planned.left_out
    assert json.loads(left.settings) == {"lora.target_modules": ["no_such"]}
    assert f"Trial {left.number} (lora.target_modules: [no_such]) is left out: lora.target_modules" in caplog.text
    with pytest.raises(ConfigError, match="no_such"):
        plan_round(config=tiny({"ranges": {"lora.target_modules": [["no_such"]]}, "trials": 1}), before=SoFar())


def test_a_round_whose_drawn_trials_cannot_be_planned_does_not_end_the_sweep(tiny):
    """One trial at a time: a bad draw is a whole round, and what trained before must not be lost for it."""
    ranges = {"lora.target_modules": [["q_proj"], ["no_such"]]}
    run = tiny({"ranges": ranges, "trials": 2, "sampler": "tpe", "parallel": 1})
    before, numbers = SoFar(), []
    for _ in range(2):
        planned = plan_round(config=run, before=before)
        numbers.append([*(trial.number for trial in planned.trials), *(one.number for one in planned.left_out)])
        outcomes = [Outcome(trial.number, "trained", model="/m", training=TRAINED) for trial in planned.trials]
        before = join_round(config=run, planned=planned, before=before, served=outcomes, keys=[], packed=[], alone=[])
    assert numbers == [[0], [1]]
    assert len(before.left_out) == len(before.tried) == 1
    assert [row.status for row in table_of(run, before).rows].count("left out") == 1


def test_the_rank_of_each_trial_is_checked_where_an_adapter_is_continued(tiny, random_adapter):
    """The preflight of another trial says nothing of it."""
    adapter = random_adapter(0, rank=4)
    run = tiny({"grid": {"lora.rank": [4, 8]}}, lora={"alpha": 8, "resume_from": str(adapter)})
    with pytest.raises(ConfigError, match=r"lora\.rank = 8: trial 1 \(lora\.rank: 8\): .* has 4") as caught:
        plan_round(config=run, before=SoFar())
    assert len(caught.value.problems) == 1


def test_a_round_that_would_exceed_the_budget_is_not_started(tiny, on_cluster, caplog):
    run = tiny({"grid": RATES, "parallel": 2, "budget": {"cost": 1}}, hardware={"device": "T4"})
    first = plan_round(config=run, before=SoFar())
    slow = [Outcome(trial.number, "failed", error="no", seconds=3400.0) for trial in first.trials]
    dear = [replace(trial, plan=replace(trial.plan, price_per_hour=0.529)) for trial in first.trials]
    done = {"served": slow, "keys": [], "packed": [], "alone": []}
    found = join_round(config=run, planned=replace(first, trials=dear), before=SoFar(), **done)
    assert 0.9 < found.cost < 1
    second = plan_round(config=run, before=found)
    assert second.trials == []
    assert second.packs == []
    assert second.ended.startswith("with the next ones 1.0")
    assert "No more trials are started: with the next ones" in caplog.text


def test_a_sweep_beyond_its_budget_is_refused_with_the_number(tiny, on_cluster):
    sweep = {"grid": RATES, "budget": {"cost": 0.01}}
    with pytest.raises(ConfigError, match=r"sweep\.budget\.cost = 0\.01: 4 trials are expected to cost .* USD"):
        plan_round(config=tiny(sweep, hardware={"device": "T4"}), before=SoFar())


def test_what_is_spent_ends_a_sweep_before_the_next_round_and_that_is_said(tiny, caplog):
    run = tiny({"grid": RATES, "parallel": 2, "budget": {"hours": 1}})
    first = plan_round(config=run, before=SoFar())
    assert len(first.trials) == 2
    outcomes = [Outcome(trial.number, "failed", error="no") for trial in first.trials]
    done = {"served": outcomes, "keys": [], "packed": [], "alone": []}
    found = join_round(config=run, planned=first, before=SoFar(), **done)
    assert [trial.number for trial in plan_round(config=run, before=found).trials] == [2, 3]
    late = plan_round(config=run, before=replace(found, began=found.began - 2 * 3600))
    assert late.trials == []
    assert "No more trials are started: 2.0 hours of 60 min are over" in caplog.text
    with pytest.raises(ResultError, match=r"no trial can be the best\. trial 0 \(failed\): no"):
        summarize_sweep(config=run, found=found)


@pytest.mark.parametrize("status", ["stopped", "trained"])
def test_why_no_trial_is_the_best_is_said_also_where_none_failed(tiny, status):
    """All diverged, and the error said: no trial can be the best."""
    run = tiny({"grid": RATES})
    planned = plan_round(config=run, before=SoFar())
    after = replace(TRAINED.after, loss=math.nan)
    made = (
        {"training": replace(TRAINED, after=after)} if status == "trained" else {"steps": (1,), "losses": (math.nan,)}
    )
    done = {"served": [Outcome(number, status, **made) for number in range(4)], "keys": [], "packed": [], "alone": []}
    found = join_round(config=run, planned=planned, before=SoFar(), **done)
    said = {
        "stopped": r"trial 0 \(stopped\): sweep\.halving",
        "trained": r"trial 0 \(trained\): its held_out_loss is not",
    }
    with pytest.raises(ResultError, match=said[status]):
        summarize_sweep(config=run, found=found)


def test_losses_of_different_tokenizers_are_said_not_to_compare(tiny, caplog):
    run = tiny({"grid": RATES, "parallel": 2, "budget": {"hours": 100}})
    first = plan_round(config=run, before=SoFar())
    assert "tokenizers" not in caplog.text
    others = replace(first, trials=[replace(trial, tokenizer_version="another") for trial in first.trials])
    done = {"served": [Outcome(number, "failed") for number in range(2)], "keys": [], "packed": [], "alone": []}
    plan_round(config=run, before=join_round(config=run, planned=others, before=SoFar(), **done))
    assert "have different tokenizers" in caplog.text


def test_a_lost_pack_is_said_and_does_not_end_the_sweep(tiny, caplog):
    run = tiny({"grid": RATES})
    planned = plan_round(config=run, before=SoFar())
    known = [Outcome(0, "failed", error="no"), Outcome(1, "stopped", steps=(1,), losses=(2.0,))]
    found = join_round(
        config=run, planned=planned, before=SoFar(), served=[], keys=[], packed=[[known, None]], alone=[]
    )
    assert [one.status for one in found.outcomes] == ["failed", "stopped", "unknown", "unknown"]
    assert "Trial 2 unknown: its pod was lost" in caplog.text


def test_what_a_lost_pack_had_trained_is_found_in_the_index(tiny, monkeypatch):
    """Its pod uploads each trial when that is done, and only its own list of outcomes is lost with it."""
    run = tiny({"grid": RATES})
    planned = plan_round(config=run, before=SoFar())
    there = Outcome(2, "trained", model="s3://b/2", training=TRAINED)
    found_by = {"key-2": there}
    monkeypatch.setattr(trial_results, "found", lambda _, key, *__: found_by.get(key))
    keys = [TrialKey(number, f"key-{number}", "s3://b/index") for number in range(4)]
    known = [Outcome(0, "failed", error="no"), Outcome(1, "stopped", steps=(1,), losses=(2.0,))]
    made = {"served": [], "keys": keys, "packed": [[known, None]], "alone": []}
    found = join_round(config=run, planned=planned, before=SoFar(), **made)
    assert [one.status for one in found.outcomes] == ["failed", "stopped", "trained", "unknown"]
    assert list(found.scores) == [2]


def test_trials_that_are_the_same_training_are_trained_once(tiny, on_cluster):
    """An adapter is stored as it trained: to two processes with one key their checkpoints would be one folder."""
    run = tiny({"grid": {"training.save_dtype": ["bf16", "fp32"]}}, hardware={"device": "T4"})
    planned = plan_round(config=run, before=SoFar())
    assert [trial.number for trial in planned.trials] == [0, 1]
    nodes = nodes_of(train_round, config=run, planned=planned, before=SoFar())
    (trained,) = (node.array_node for node in nodes if node.array_node)
    given = {one.var: one.binding for one in trained.node.inputs}
    assert len(given["cache_key"].collection.bindings) == 1


def test_what_is_missing_of_several_packs_is_trained_on_no_more_nodes_than_it_needs(tiny, on_cluster, monkeypatch):
    """Of 16 trials on two nodes with eight GPUs one of each was missing, and two such nodes trained one each."""
    grid = {"training.learning_rate": [number / 1e4 for number in range(1, 17)]}
    run = tiny({"grid": grid}, hardware={"device": None, "instance": "g4dn.metal"})
    planned = plan_round(config=run, before=SoFar())
    assert [len(pack.numbers) for pack in planned.packs] == [8, 8]
    trained = [Outcome(number, "trained", model=f"s3://b/{number}", training=TRAINED) for number in range(16)]
    monkeypatch.setattr(trial_results, "found", lambda number, *_: trained[number] if number % 8 < 7 else None)
    nodes = nodes_of(train_round, config=run, planned=planned, before=SoFar())
    (node,) = (node.array_node for node in nodes if node.array_node)
    (packs,) = (one.binding.collection.bindings for one in node.node.inputs if one.var == "cache_key")
    assert len(packs) == 1


def test_an_equal_trial_has_what_the_trained_one_has_at_no_cost(tiny):
    run = tiny({"grid": RATES})
    planned = plan_round(config=run, before=SoFar())
    keys = [TrialKey(number, f"key-{number // 2}", "") for number in range(4)]
    done = [Outcome(0, "trained", model="/m", training=TRAINED, seconds=60.0), Outcome(2, "failed", error="no")]
    made = {"served": [], "keys": keys, "packed": [[done]], "alone": []}
    found = join_round(config=run, planned=planned, before=SoFar(), **made)
    assert [one.status for one in found.outcomes] == ["trained", "trained", "failed", "failed"]
    assert [one.is_served for one in found.outcomes] == [False, True, False, True]
    assert [one.number for one in found.outcomes] == [0, 1, 2, 3]


def names(nodes):
    found = [node.array_node.node if node.array_node else node for node in nodes]
    return [node.task_node.reference_id.name.rpartition(".")[2] for node in found]


def test_a_round_fetches_and_prepares_once_and_its_packs_are_one_map_task(tiny, on_cluster):
    run = tiny({"grid": RATES}, hardware={"device": "T4"})
    planned = plan_round(config=run, before=SoFar())
    assert len(planned.packs) == 4, "one cheap node each"
    nodes = nodes_of(train_round, config=run, planned=planned, before=SoFar())
    assert names(nodes) == ["fetch_model", "prepare_dataset", "train_pack_map", "join_round"]
    (trained,) = (node.array_node for node in nodes if node.array_node)
    assert 0 < trained._min_success_ratio < 0.1, "a pod that is lost must not end the sweep"


def test_a_single_pack_is_no_map_task_so_that_its_page_is_shown_while_it_trains(tiny, on_cluster):
    run = tiny({"grid": RATES}, hardware={"device": None, "instance": "g4dn.metal"})
    planned = plan_round(config=run, before=SoFar())
    nodes = nodes_of(train_round, config=run, planned=planned, before=SoFar())
    assert names(nodes) == ["fetch_model", "prepare_dataset", "train_pack", "join_round"]
    assert not [node for node in nodes if node.array_node]


def test_other_data_is_prepared_beside_and_other_devices_are_trials_alone(tiny, on_cluster):
    run = tiny({"grid": {"data.max_length": [48, 64]}, "allow": ["data"]}, hardware={"device": "T4"})
    planned = plan_round(config=run, before=SoFar())
    nodes = nodes_of(train_round, config=run, planned=planned, before=SoFar())
    assert names(nodes).count("fetch_model") == 1
    assert names(nodes).count("prepare_dataset") == 2
    several = tiny({"grid": RATES}, hardware={"device": "T4", "devices_per_node": 2}, strategy="ddp")
    planned = plan_round(config=several, before=SoFar())
    assert "train_trial_map" in names(nodes_of(train_round, config=several, planned=planned, before=SoFar()))


@pytest.mark.parametrize(
    ("sweep", "changes", "rounds"),
    [
        ({"grid": RATES}, {}, ["train_round", "conclude"]),
        (
            {"ranges": RANGE, "trials": 4, "sampler": "tpe", "parallel": 2},
            {},
            ["train_round", "plan_round", "train_round", "conclude"],
        ),
        (
            {"grid": RATES, "metric": "general-mini.accuracy"},
            {"benchmarks": {"tasks": ["general-mini"]}},
            ["train_round", "measure_round", "conclude"],
        ),
    ],
)
def test_a_round_follows_what_came_of_those_before(sweep, changes, rounds):
    nodes = nodes_of(run_rounds, config=sweep_of(sweep, **changes), first=PlannedRound())
    assert names(nodes) == rounds


def test_what_trained_is_measured_with_one_load_of_its_base(tiny, on_cluster):
    sweep = {"grid": RATES, "metric": "general-mini.accuracy"}
    run = tiny(sweep, hardware={"device": "T4"}, benchmarks={"tasks": ["general-mini"]})
    planned = plan_round(config=run, before=SoFar())
    outcomes = [Outcome(trial.number, "trained", model=f"s3://b/{trial.number}") for trial in planned.trials]
    found = join_round(config=run, planned=planned, before=SoFar(), served=outcomes, keys=[], packed=[], alone=[])
    assert found.scores == {}
    nodes = nodes_of(measure_round, config=run, planned=planned, found=found)
    assert names(nodes) == ["prepare_benchmarks", "fetch_model", "benchmark_shard_map", "score_round"]


def bound(number):
    return number.scalar.primitive.integer


def test_trials_of_different_methods_are_measured_apart_and_equal_ones_once(tiny, on_cluster):
    """An adapter of qlora is measured on a base in 4 bits, one of lora is not, and a model is no adapter."""
    sweep = {"overrides": [{"method": method} for method in ("lora", "qlora")], "metric": "general-mini.accuracy"}
    sweep["overrides"].append({"method": "lora", "training.save_dtype": "fp32"})
    run = tiny(sweep, hardware={"device": "T4"}, benchmarks={"tasks": ["general-mini"]})
    planned = plan_round(config=run, before=SoFar())
    outcomes = [Outcome(trial.number, "trained", model=f"s3://b/{trial.number}") for trial in planned.trials]
    found = join_round(config=run, planned=planned, before=SoFar(), served=outcomes, keys=[], packed=[], alone=[])
    nodes = nodes_of(measure_round, config=run, planned=planned, found=found)
    assert names(nodes).count("benchmark_shard_map") == 2
    (folders,) = (one.binding for node in nodes[-1:] for one in node.inputs if one.var == "folders")
    numbers = [list(one.map.bindings.values()) for one in folders.collection.bindings]
    assert sorted([[bound(n) for n in own.collection.bindings] for (own,) in numbers]) == [[0, 2], [1]]


def test_a_best_of_a_method_that_merges_nothing_is_the_result_as_it_is(tiny, on_cluster):
    """The run merges by its own method, and the trial has another."""
    run = tiny({"overrides": [{"method": "lora"}, {"method": "full"}]}, hardware={"device": "T4"})
    planned = plan_round(config=run, before=SoFar())
    outcomes = [Outcome(trial.number, "trained", model=f"s3://b/{trial.number}") for trial in planned.trials]
    found = join_round(config=run, planned=planned, before=SoFar(), served=outcomes, keys=[], packed=[], alone=[])
    best = found.judged({0: 2.0, 1: 1.0}, is_higher_better=False)
    assert names(nodes_of(conclude, config=run, found=best)) == ["summarize_sweep"]


def test_the_best_is_merged_where_the_run_merges(tiny, on_cluster):
    run = tiny({"grid": RATES}, hardware={"device": "T4"})
    planned = plan_round(config=run, before=SoFar())
    outcomes = [Outcome(trial.number, "trained", model=f"s3://b/{trial.number}") for trial in planned.trials]
    found = join_round(config=run, planned=planned, before=SoFar(), served=outcomes, keys=[], packed=[], alone=[])
    merged = nodes_of(conclude, config=run, found=found.judged({0: 2.0, 1: 1.0}, is_higher_better=False))
    assert names(merged) == ["summarize_sweep", "fetch_model", "prepare_dataset", "merge_adapter"]
    kept = tiny({"grid": RATES}, hardware={"device": "T4"}, lora={"merge": False})
    assert names(nodes_of(conclude, config=kept, found=found)) == ["summarize_sweep"]


@pytest.mark.slow
def test_a_sweep_trains_only_what_is_missing_and_gives_the_best(tmp_path, tiny_model_dir, chat_rows_file):
    """Two trials, then the same with one more: only that one trains."""
    own = {"model": {"source": str(tiny_model_dir)}, "data": {"source": str(chat_rows_file)}}
    run = run_dict("lora", **own, evaluation={"max_new_tokens": 4, "every_steps": 1})

    def swept(rates):
        content = run | {"sweep": {"grid": {"training.learning_rate": rates}, "parallel": 3}}
        file = tmp_path / "sweep.yaml"
        file.write_text(yaml.safe_dump(content))
        return pyflyte_run(tmp_path, *SWEEP, "--config", str(file))

    first = swept([1e-3, 3e-2])
    assert "2 of 2 trials trained; the best is trial 1 by held_out_loss." in first.stdout + first.stderr
    second = swept([1e-3, 3e-2, 1e-2])
    said = second.stdout + second.stderr
    assert "3 of 3 trials trained, 2 of them by an earlier run; the best is trial 1" in said
    assert said.count("trains on the CPU, in process") == 1
    tables = sorted((tmp_path / "outputs" / "tiny").glob("*/sweep/sweep.json"))
    assert len(tables) == 2
    rows = json.loads(tables[1].read_text())["rows"]
    assert [(row["is_served"], row["is_best"]) for row in rows] == [(True, False), (True, True), (False, False)]
    assert len(list((tmp_path / "outputs" / "tiny").glob("*/model/model.safetensors"))) == 2, "the best is merged"
