"""What a task of lm-evaluation-harness measures, as its configuration says it: no data are needed to know it."""

from collections.abc import Mapping
from typing import Any

_WRITTEN = "generate_until"  # also the kind of a task that names none


def metrics_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The metrics of a task by which items are compared, named as its results name them.

    Args:
        config: Its configuration.

    Returns:
        With several filters, each metric of each filter as `metric,filter`. None where the task's own code names them.

    Source:
        lm_eval 0.4, ConfigurableTask.__init__
    """
    from lm_eval.api.registry import DEFAULT_METRIC_REGISTRY

    kind = config.get("output_type") or _WRITTEN
    listed = config.get("metric_list") or [{"metric": name} for name in DEFAULT_METRIC_REGISTRY.get(kind, ())]
    if config.get("process_results") is not None or any(callable(each["metric"]) for each in listed):
        return ()
    names = [str(each["metric"]) for each in listed if _is_mean(each)]
    filters = [str(each["name"]) for each in config.get("filter_list") or ()]
    return tuple(names if len(filters) < 2 else (f"{name},{each}" for name in names for each in filters))


def writes(config: Mapping[str, Any]) -> bool:
    """Whether a task has the model write its answers.

    Args:
        config: Its configuration.
    """
    return (config.get("output_type") or _WRITTEN) == _WRITTEN


def _is_mean(metric: Mapping[str, Any]) -> bool:
    """Whether a metric is the mean of a number per item."""
    from lm_eval.api.metrics import mean
    from lm_eval.api.registry import get_metric_aggregation

    how = metric.get("aggregation") or get_metric_aggregation(str(metric["metric"]))
    return how is mean or how == "mean"
