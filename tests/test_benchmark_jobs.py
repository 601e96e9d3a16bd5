"""What the pods of benchmarks do, and what their results are known by."""

from dataclasses import replace

import pytest

from tasks import benchmark_jobs
from tasks.benchmark_jobs import Asking, jobs_of, versions_with_rows
from tasks.results import Step
from thriftune.config import BenchmarksConfig
from thriftune.hardware import DEVICES
from thriftune.inference.benchmarks.measuring import Settings
from thriftune.models.quantization import FourBit
from thriftune.planned_node import EvaluationNode, NodeRequest

NODE = EvaluationNode("g4dn.xlarge", DEVICES["T4"], 1, 14.6, "fp16", NodeRequest(3, 12, 1, 20, 1), 0.5)
ASKING = Asking(Settings(batch=8, style="chat"), NODE, None)
VERSIONS = {"general-mini": "1", "held_out": "1"}


def section(**changes) -> BenchmarksConfig:
    return BenchmarksConfig.model_validate({"tasks": ["general-mini", "held_out"], "shards": 2, **changes})


def keys(asking=ASKING, versions=VERSIONS, model="base", adapters=(), times=1, **changes) -> list[str]:
    return jobs_of(section(**changes), asking, versions, model, adapters, times).keys


def test_every_part_of_every_task_is_measured_as_often_as_asked():
    found = jobs_of(section(), ASKING, VERSIONS, "base", times=2)
    assert [(job.task, job.part, job.repeat) for job in found.jobs] == [
        (task, part, repeat) for repeat in range(2) for task in VERSIONS for part in range(2)
    ]
    assert len(set(found.keys)) == len(found.keys) == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "another"},
        {"adapters": ("one",)},
        {"versions": {**VERSIONS, "general-mini": "2"}},
        {"shards": 3},
        {"asking": replace(ASKING, four_bit=FourBit())},
        {"asking": replace(ASKING, settings=replace(ASKING.settings, style="alpaca"))},
        {"asking": replace(ASKING, settings=replace(ASKING.settings, max_new_tokens=7))},
        {"asking": replace(ASKING, node=replace(NODE, hardware=DEVICES["L4"]))},
        {"asking": replace(ASKING, node=replace(NODE, precision="fp32"))},
    ],
)
def test_what_changes_a_result_changes_what_it_is_known_by(changes):
    assert keys(**changes)[0] != keys()[0]


@pytest.mark.parametrize(
    "changes",
    [
        {"parallel": 1},
        {"asking": replace(ASKING, settings=replace(ASKING.settings, batch=1))},
        {"asking": replace(ASKING, settings=replace(ASKING.settings, seed=7))},
        {"asking": replace(ASKING, node=replace(NODE, instance="g4dn.2xlarge", price_per_hour=0.9))},
        {"versions": {**VERSIONS, "held_out": "2"}},
        {"asking": replace(ASKING, settings=replace(ASKING.settings, max_rows=7))},
    ],
)
def test_what_does_not_is_found_again(changes):
    assert keys(**changes)[0] == keys()[0]


def test_the_number_of_rows_counts_for_held_out_rows_alone():
    fewer = replace(ASKING, settings=replace(ASKING.settings, max_rows=7))
    assert [one == other for one, other in zip(keys(), keys(fewer), strict=True)] == [True, True, False, False]


def test_the_seed_counts_where_answers_are_drawn():
    drawn = replace(ASKING, settings=replace(ASKING.settings, temperature=0.7))
    assert keys(drawn)[0] != keys(replace(drawn, settings=replace(drawn.settings, seed=7)))[0]


def test_measured_again_has_other_draws_and_half_the_batch():
    first, *_, again = jobs_of(section(), ASKING, VERSIONS, "base", times=2).jobs
    assert first.settings(ASKING.settings) == ASKING.settings
    assert again.settings(ASKING.settings) == replace(ASKING.settings, seed=1, batch=4)
    assert replace(again, repeat=9).settings(ASKING.settings).batch == 1


def test_all_adapters_of_a_base_are_in_one_job_without_those_that_the_index_has(monkeypatch):
    made = Step("key-of-one", "s3://index/one", is_made=True, results=("s3://results/one",))
    steps = {"one": made, "two": Step("key-of-two", "s3://index/two"), "three": Step("key-of-three", "s3://index/3")}
    monkeypatch.setattr(benchmark_jobs, "_step", lambda *inputs: steps[inputs[-1]])
    one_task = section(tasks=["general-mini"], shards=1)
    found = jobs_of(one_task, ASKING, VERSIONS, "base", list(steps), from_index=True)
    (job,) = found.jobs
    assert (job.adapters, job.records) == (["two", "three"], ["s3://index/two", "s3://index/3"])
    assert found.served == ["s3://results/one"]
    everything = jobs_of(one_task, ASKING, VERSIONS, "base", list(steps))
    assert (everything.jobs[0].adapters, everything.served) == (list(steps), [])
    nothing = jobs_of(one_task, ASKING, VERSIONS, "base", ["one"], from_index=True)
    assert (nothing.jobs, nothing.served) == ([], ["s3://results/one"])


def test_what_one_pod_measured_of_several_adapters_is_read_once(monkeypatch):
    """Each of their items would be there twice."""
    together = [Step(f"key-{n}", f"s3://index/{n}", is_made=True, results=("s3://results/both",)) for n in "ab"]
    steps = {"a": together[0], "b": together[1], "new": Step("key-new", "s3://index/new")}
    monkeypatch.setattr(benchmark_jobs, "_step", lambda *inputs: steps[inputs[-1]])
    one_task = section(tasks=["general-mini"], shards=1)
    assert jobs_of(one_task, ASKING, VERSIONS, "base", list(steps), from_index=True).served == ["s3://results/both"]


def test_the_version_of_held_out_rows_is_that_of_the_dataset():
    versions = versions_with_rows(VERSIONS, "rows")
    assert versions["general-mini"] == "1"
    assert versions["held_out"] not in ("1", versions_with_rows(VERSIONS, "other rows")["held_out"])
    assert versions_with_rows({"general-mini": "1"}, "rows") == {"general-mini": "1"}
