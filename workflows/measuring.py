"""The nodes after training that load a finished model again: to measure it, or to answer prompts it was not asked."""

import logging
from typing import Any, NamedTuple

from flytekit.types.directory import FlyteDirectory

from tasks.evaluate import evaluate
from tasks.provisioning import on_planned_node
from tasks.results import Steps, was_asked_otherwise
from thriftune.checkpoints import known_by
from thriftune.config import RunConfig
from thriftune.training_plan import TrainingPlan

logger = logging.getLogger("thriftune.workflows.measuring")


class Made(NamedTuple):
    """The promises of the dynamic part after training.

    `result` is the model or adapter that comes out; `adapter` is None if every weight trained; `start` is the adapter
    that the training continued, if there is one.
    """

    model: Any
    dataset: Any
    result: Any
    adapter: Any
    start: FlyteDirectory | None


class Measured(NamedTuple):
    """Promises of reports, each None where there is none.

    `saved_model` is of the result, where the run asks for it; `before` and `after` are of the model before and after
    training, as it trained, where the training of an earlier run answered other prompts.
    """

    saved_model: Any = None
    before: Any = None
    after: Any = None


def measure_again(config: RunConfig, plan: TrainingPlan, steps: Steps, made: Made) -> Measured:
    """Add the nodes that measure the result again, and those that answer a run's prompts without training again.

    Called inside `@dynamic`.

    Args:
        config: The run.
        plan: Its plan.
        steps: Its cached steps.
        made: What was made so far.
    """
    asks = was_asked_otherwise(steps.training, config)
    if asks and plan.evaluation is None:
        logger.warning(
            "An earlier run has trained this and answered other prompts, and no node of the catalogue holds its result "
            "to answer this run's: unless it is trained anew, there are no answers."
        )
    asks = asks and plan.evaluation is not None
    has_adapter, is_merged = made.adapter is not None, steps.merged is not None  # promises have no truth value
    there = plan.of_evaluation

    def measured(step: str, model: Any, adapter: Any, *, as_trained: bool) -> Any:
        key = known_by.measuring(config, there, measured=step, dataset=steps.rows, as_trained=as_trained)
        inputs = {"model": model, "dataset": made.dataset, "adapter": adapter, "as_trained": as_trained}
        return on_planned_node(evaluate(config=config, plan=there, cache_key=key, **inputs), there)

    before, after, saved = None, None, None
    if asks:
        before = measured(steps.begun, made.model, made.start, as_trained=has_adapter)
    if asks or (config.evaluation.saved_model and not is_merged):
        trained = made.model if has_adapter else made.result
        after = measured(steps.training.cache_key, trained, made.adapter, as_trained=has_adapter)
    if config.evaluation.saved_model:
        saved = measured(steps.merged.cache_key, made.result, None, as_trained=False) if steps.merged else after
    return Measured(saved, before, after if asks else None)
