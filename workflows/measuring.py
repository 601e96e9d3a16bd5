"""The nodes after training that load a finished model again: to measure it, or to answer prompts it was not asked."""

import logging
from typing import Any, NamedTuple

from tasks.evaluate import evaluate
from tasks.provisioning import on_planned_node
from tasks.results import Steps, was_asked_otherwise
from thriftune.checkpoints import known_by
from thriftune.config import RunConfig
from thriftune.training_plan import TrainingPlan

logger = logging.getLogger("thriftune.workflows.measuring")


class Made(NamedTuple):
    """The promises of the dynamic part after training.

    `result` is the model or adapter that comes out; `adapter` is None if every weight trained.
    """

    model: Any
    dataset: Any
    result: Any
    adapter: Any


class Measured(NamedTuple):
    """Promises of reports, each None where there is none.

    `saved_model` is of the result, where the run asks for it; `before` and `after` are of base model and result, where
    the training comes from the cache and answered other prompts.
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
            "The training comes from the cache, where it answered other prompts, and no node of the catalogue holds "
            "its result to answer this run's: there are no answers."
        )
    asks = asks and plan.evaluation is not None
    is_unmerged = made.adapter is not None and steps.merged is None  # promises have no truth value
    there = plan.of_evaluation
    common = {"config": config, "plan": there, "dataset": made.dataset, "as_trained": is_unmerged}

    def measured(step: str, **model: Any) -> Any:
        key = known_by.measuring(config, there, measured=step, dataset=steps.rows, as_trained=is_unmerged)
        return on_planned_node(evaluate(**common, **model, cache_key=key), there)

    before, after = None, None
    if asks:
        before = measured(steps.base, model=made.model)
    if asks or config.evaluation.saved_model:
        of_result = {"model": made.model, "adapter": made.adapter} if is_unmerged else {"model": made.result}
        after = measured((steps.merged or steps.training).cache_key, **of_result)
    return Measured(after if config.evaluation.saved_model else None, before, after if asks else None)
