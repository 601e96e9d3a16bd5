"""What is published beside a result, to show that it is better: gate.json, and what the model card says of it."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from thriftune import artifacts
from thriftune.config.publishing import GateConfig
from thriftune.inference.gate import wording
from thriftune.inference.gate.comparison import Compared, Comparison
from thriftune.inference.gate.verdict import Verdict

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

# The file beside a model.
FILE = "gate.json"
_SCHEMA = 1
# The hub's names of metrics that have another one here.
_HUB_METRICS = {"acc": "accuracy", "acc_norm": "accuracy", "accuracy_sum": "accuracy"}


def text_of(comparison: Comparison, verdict: Verdict | None, gate: GateConfig | None) -> str:
    """The content of gate.json: everything that was compared and decided, and the versions that it was measured with.

    The texts of items are left out: they may be a licensed benchmark's, or a run's own rows.

    Args:
        comparison: Base and result.
        verdict: What the gate decides, if there is one.
        gate: The gate.
    """
    compared = comparison.as_json()
    decided = verdict.as_json() if verdict else None
    for flips in (compared["flips"], *(ruling["examples"] for ruling in (decided or {"rulings": ()})["rulings"])):
        for flip in flips:
            flip["question"] = {key: flip["question"][key] for key in ("task", "item", "group")}
    content = {
        "schema": _SCHEMA,
        "gate": gate.model_dump(mode="json") if gate else None,
        "verdict": decided,
        "comparison": compared,
        "versions": artifacts.versions(),
    }
    return json.dumps(content, indent=2) + "\n"


def card_rows(comparison: Comparison) -> Iterator[tuple[str, str, str, str, str]]:
    """Rows of a card's table: metric, number of items, base, result, and change.

    Args:
        comparison: Base and result.
    """
    for one in (*comparison.main, *comparison.groups, *comparison.behaviours):
        base, tuned = (wording.estimate(found, one) for found in (one.base, one.tuned))
        yield one.metric.replace("|", "\\|"), f"{one.items:,}", base, tuned, wording.change(one)


def eval_results(comparison: Comparison, model_type: str) -> "list[EvalResult]":
    """The result's metrics of whole benchmarks in the hub's format, which shows them on the model's page.

    Args:
        comparison: Base and result.
        model_type: The hub's name of what the model does, such as text-generation.
    """
    from huggingface_hub import EvalResult

    versions = {task.name: task.version for task in comparison.tasks}
    return [
        EvalResult(
            task_type=model_type,
            dataset_type=one.task,
            dataset_name=one.task,
            dataset_args={"version": versions[one.task]},
            metric_type=_HUB_METRICS.get(one.name, one.name),
            metric_name=_named(one, comparison.confidence),
            metric_value=round(one.tuned.value, 6),
        )
        for one in comparison.metrics
        if one.task in versions and not one.group
    ]


def _named(one: Compared, confidence: float) -> str:
    interval = f"{confidence * 100:.4g}% interval {wording.ends(one.tuned, one)[1:-1]}"
    return f"{one.name}, {interval}; base {wording.value(one.base.value, one)}"
