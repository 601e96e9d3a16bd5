"""Loss, perplexity and answers of a finished model on held-out rows, if a run asks for them."""

from flytekit import task
from flytekit.types.directory import FlyteDirectory

from tasks import pod_check
from tasks.declaring import TRAIN_CACHE, cache, node_task
from tasks.transfer import download
from thriftune.config import RunConfig
from thriftune.inference import evaluation
from thriftune.methods import METHODS
from thriftune.models.loading import Placement, as_stored
from thriftune.training.held_out import EvalReport
from thriftune.training_plan import TrainingPlan


@task(**node_task(), cache=cache(TRAIN_CACHE, "config", "plan", "model", "dataset", "adapter"))
def evaluate(
    config: RunConfig,
    plan: TrainingPlan,
    cache_key: str,  # noqa: ARG001 - read by Flyte's cache alone
    model: FlyteDirectory,
    dataset: FlyteDirectory,
    as_trained: bool,
    adapter: FlyteDirectory | None = None,
) -> EvalReport:
    """Load the result of a run, or its base model, and measure it on the held-out rows.

    Args:
        config: The run.
        plan: Its plan.
        cache_key: What Flyte's cache knows the result by.
        model: The saved or merged model; or the base model, alone or for an adapter.
        dataset: The prepared dataset.
        as_trained: Whether to hold the base model as it trained: in 4 bits for QLoRA.
        adapter: The adapter to put on it; None if there is none.

    Returns:
        The report.
    """
    pod_check.require_planned(plan)
    model_dir, adapter_dir = download(model), download(adapter) if adapter else None
    four_bit = METHODS[plan.method].four_bit(config) if as_trained else None
    placement = as_stored(Placement(plan.hardware, plan.precision, four_bit), model_dir)
    return evaluation.evaluate(model_dir, download(dataset), config, placement, adapter_dir)
