"""What tasks of lm-evaluation-harness measure, known from their configuration alone."""

import pytest

from thriftune.config.benchmarks import BenchmarkTask
from thriftune.inference.benchmarks import harness_metrics, harness_tasks


@pytest.mark.parametrize(
    ("name", "metrics", "writes"),
    [
        ("arc_easy", {"acc", "acc_norm"}, False),
        ("lambada_openai", {"acc"}, False),  # its perplexity is of all texts together
        ("gsm8k", {"exact_match,strict-match", "exact_match,flexible-extract"}, True),
        ("truthfulqa_mc2", set(), False),  # only its code knows
    ],
)
def test_metrics_are_those_that_results_have(name, metrics, writes):
    (leaf,) = harness_tasks.leaves_of(BenchmarkTask(name=name), "benchmarks.tasks.0")
    config = harness_tasks.config_of(leaf, 0, "benchmarks.tasks.0")
    assert set(harness_metrics.metrics_of(config)) == metrics
    assert harness_metrics.writes(config) == writes


def test_a_task_that_names_no_metrics_has_those_of_its_kind():
    assert harness_metrics.metrics_of({"output_type": "multiple_choice"}) == ("acc", "acc_norm")
    assert harness_metrics.metrics_of({"output_type": "loglikelihood"}) == ("acc",)
    assert harness_metrics.metrics_of({}) == ("exact_match",)
