"""Where a result that is measured again is measured: on the cheapest node that holds it, and on no more of its GPUs."""

import re

import pytest
from conftest import run_dict
from planning import compiled, planned

from tasks.evaluate import evaluate
from thriftune.config import RunConfig
from thriftune.errors import ConfigError
from thriftune.models import architecture
from thriftune.planning import catalogue, planner
from thriftune.planning.evaluating import evaluation_node, planned_evaluation
from thriftune.planning.report import plan_table
from thriftune.training_plan import TrainingPlan
from workflows.finetune import train_on_plan


def run(method="full", model="meta-llama/Llama-2-7b-hf", hardware=None, **overrides):
    return RunConfig.model_validate(
        run_dict(
            method,
            **{
                "model": {"source": model},
                "hardware": {"device": None, **(hardware or {"instance": "g4dn.metal"})},
                "training": {"global_batch": 16, "micro_batch": 1, "precision": "fp16"},
                "evaluation": {"saved_model": True},
                **overrides,
            },
        )
    )


def plan_of(config) -> TrainingPlan:
    return planner.plan(config, catalogue.load())


def test_a_result_that_trains_on_a_whole_machine_is_measured_on_a_part_of_a_smaller_one():
    plan = plan_of(run(evaluation={"saved_model": True, "batch": 32}))
    node = plan.evaluation
    assert (plan.instance, node.instance, node.device, node.devices) == ("g4dn.metal", "g4dn.12xlarge", "T4", 2)
    assert node.price_per_hour < plan.price_per_hour
    assert plan.of_evaluation.device_limit_gib == node.gpu_gib == catalogue.load().get(node.instance).gpu_gib
    assert node.request.gpus == node.devices
    assert node.request.memory_gib < plan.request.memory_gib
    assert node.request.disk_gib >= 2 * 13  # the model and a copy of it


def test_a_merged_model_needs_more_than_its_base_in_4_bits():
    large = {"model": "meta-llama/Llama-2-13b-hf", "hardware": {"device": "T4"}}
    merged, unmerged = (plan_of(run("qlora", **large, lora={"merge": merge})) for merge in (True, False))
    assert (merged.evaluation.instance, merged.evaluation.devices) == ("g4dn.12xlarge", 2)
    assert (unmerged.evaluation.instance, unmerged.evaluation.devices) == ("g4dn.xlarge", 1)


def test_what_the_run_fixes_of_its_machines_is_of_the_training_but_for_the_kind_of_gpu():
    config = run(hardware={"instance": "g5.48xlarge"}, training={"global_batch": 16, "precision": "bf16"})
    node = plan_of(config).evaluation
    assert (node.device, node.precision) == ("A10G", "bf16")
    assert node.instance != "g5.48xlarge"


def test_a_run_that_does_not_ask_for_it_has_a_node_for_prompts_that_a_cached_training_was_not_asked():
    asked, other = plan_of(run()), plan_of(run(evaluation={"saved_model": False}))
    assert (asked.evaluation.is_asked, other.evaluation.is_asked) == (True, False)
    assert other.evaluation.instance == asked.evaluation.instance
    assert "result measured on" in plan_table(asked, "tiny")
    assert "result measured on" not in plan_table(other, "tiny")


def test_a_run_on_this_machine_plans_none():
    here = planned(RunConfig.model_validate(run_dict(evaluation={"saved_model": True})))
    assert here.evaluation is None
    assert here.of_evaluation is here


def test_what_no_node_holds_is_refused_when_the_run_is_planned():
    small = catalogue.load()
    only = small.model_copy(update={"nodes": tuple(node for node in small.nodes if node.name == "g4dn.xlarge")})
    config = run("qlora", model="meta-llama/Llama-2-13b-hf", hardware={"device": "T4"})
    shape = architecture.of(config.model)
    with pytest.raises(
        ConfigError, match=r"evaluation\.saved_model = true: no node of the catalogue with T4 holds"
    ) as caught:
        evaluation_node(config, shape, only)
    assert caught.value.problems[0].code == "plan-does-not-fit"
    unasked = run("qlora", model="meta-llama/Llama-2-13b-hf", hardware={"device": "T4"}, evaluation={})
    assert planned_evaluation(unasked, shape, only, None) is None, "only one that asks for it is refused"


def test_the_task_that_measures_the_result_gets_the_node_and_the_training_its_own(run_config):
    plan = plan_of(run())
    nodes = {node.metadata.name.rpartition(".")[2]: node for node in compiled(train_on_plan, run(), plan)}
    selected = {
        name: nodes[name].task_node.overrides.pod_template.pod_spec["nodeSelector"]["node.kubernetes.io/instance-type"]
        for name in ("evaluate", "train_1")
    }
    assert selected == {"evaluate": "g4dn.xlarge", "train_1": "g4dn.metal"}
    assert evaluate.name.endswith("evaluate")


BENCHMARKS = {"tasks": ["general-mini"], "shards": 2}


def test_benchmarks_have_the_cheapest_node_that_holds_the_model_and_a_batch():
    small, large = (plan_of(run(benchmarks={**BENCHMARKS, "batch": batch})) for batch in (1, 16))
    assert small.benchmarks.devices <= large.benchmarks.devices
    assert small.benchmarks.price_per_hour < large.benchmarks.price_per_hour < small.price_per_hour
    assert (small.benchmarks.device, small.benchmarks.precision) == ("T4", "fp16")
    assert small.benchmarks.request.gpus == small.benchmarks.devices
    assert plan_of(run()).benchmarks is None


def test_benchmarks_of_adapters_that_are_not_merged_have_a_node_for_4_bits():
    merged, unmerged = (plan_of(run("qlora", benchmarks=BENCHMARKS, lora={"merge": merge})) for merge in (True, False))
    assert merged.benchmarks.devices > unmerged.benchmarks.devices == 1


def test_the_plan_says_what_benchmarks_run_on_and_in_how_many_pods():
    table = plan_table(plan_of(run(benchmarks={**BENCHMARKS, "parallel": 2})), "tiny")
    assert re.search(r"benchmarks on +1 x g4dn\.12xlarge +2 T4s, 3\.91 USD per hour", table)
    assert "6 pods, at most 2 at a time" in table, "the base twice, for the noise of a GPU, and the result"
    assert "benchmarks on" not in plan_table(plan_of(run()), "tiny")


def test_benchmarks_are_on_the_cheapest_spot_node_where_the_platform_allows_it():
    """On the spot market another node may be the cheapest."""
    shipped = catalogue.load()
    nodes = tuple(
        node.model_copy(update={"spot_price_per_hour": 0.1}) if node.name == "g4dn.4xlarge" else node
        for node in shipped.nodes
    )
    config = run("qlora", benchmarks=BENCHMARKS, lora={"merge": False})
    there = shipped.model_copy(update={"nodes": nodes})
    on_demand, spot = (planner.plan(config, there, interruptible=how).benchmarks for how in (False, True))
    assert (on_demand.instance, on_demand.price_per_hour) == ("g4dn.xlarge", 0.526)
    assert (spot.instance, spot.price_per_hour) == ("g4dn.4xlarge", 0.1)


def test_benchmarks_that_no_node_holds_are_refused_when_the_run_is_planned():
    with pytest.raises(ConfigError, match=r"benchmarks = batch 5000: no node of the catalogue with T4 holds") as caught:
        plan_of(run(benchmarks={**BENCHMARKS, "batch": 5000}))
    assert caught.value.problems[0].code == "plan-does-not-fit"


def test_benchmarks_of_a_local_run_are_measured_here():
    here = planned(RunConfig.model_validate(run_dict(benchmarks={**BENCHMARKS, "repeats": 1})))
    assert (here.benchmarks.instance, here.benchmarks.device) == (here.instance, "CPU")
    assert here.benchmarks.pods == 4
