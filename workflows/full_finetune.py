"""Full fine-tuning: every weight trains. The same nodes as in `finetune`, for this method only.

pyflyte run workflows/full_finetune.py full_finetune --config configs/demo-full.yaml
"""

from flytekit import workflow
from flytekit.types.structured import StructuredDataset

from thriftune.config import RunConfig
from workflows.finetune import train_on_plan
from workflows.stages import FinetuneResult, plan_and_check


@workflow
def full_finetune(config: RunConfig) -> FinetuneResult:
    """Fine-tune every weight of a model.

    Args:
        config: The run: a YAML file like those in configs/, with `method: full`.

    Returns:
        What `finetune` returns.
    """
    planned = plan_and_check(config, "full_finetune")
    trained = train_on_plan(config=config, **planned._asdict())
    return FinetuneResult(model=trained.model, metrics=trained.metrics, plan=planned.plan)


@workflow
def full_finetune_on_table(config: RunConfig, table: StructuredDataset) -> FinetuneResult:
    """Fine-tune every weight of a model, with rows that another task or a file gives.

    Args:
        config: The run, with `source: input:table` among its data.
        table: The rows: a Flyte StructuredDataset, such as a data frame that a task returned.

    Returns:
        What `finetune` returns.
    """
    planned = plan_and_check(config, "full_finetune", table)
    trained = train_on_plan(config=config, **planned._asdict(), table=table)
    return FinetuneResult(model=trained.model, metrics=trained.metrics, plan=planned.plan)
