"""Adapters on a frozen base model, merged into it at the end. The nodes of `finetune`, only for LoRA and QLoRA.

pyflyte run workflows/qlora_finetune.py qlora_finetune --config configs/demo-qlora.yaml
"""

from flytekit import workflow
from flytekit.types.structured import StructuredDataset

from thriftune.config import RunConfig
from workflows.finetune import train_on_plan
from workflows.stages import FinetuneResult, plan_and_check


@workflow
def qlora_finetune(config: RunConfig) -> FinetuneResult:
    """Train adapters on a frozen base model, in 4 bits by QLoRA, and merge them into it.

    Args:
        config: The run: a YAML file like those in configs/, with `method: qlora` or `lora`.

    Returns:
        What `finetune` returns.
    """
    planned = plan_and_check(config, "qlora_finetune")
    trained = train_on_plan(config=config, **planned._asdict())
    return FinetuneResult(model=trained.model, metrics=trained.metrics, plan=planned.plan)


@workflow
def qlora_finetune_on_table(config: RunConfig, table: StructuredDataset) -> FinetuneResult:
    """Train adapters on a frozen base model, with rows that another task or a file gives.

    Args:
        config: The run, with `source: input:table` among its data.
        table: The rows: a Flyte StructuredDataset, such as a data frame that a task returned.

    Returns:
        What `finetune` returns.
    """
    planned = plan_and_check(config, "qlora_finetune", table)
    trained = train_on_plan(config=config, **planned._asdict(), table=table)
    return FinetuneResult(model=trained.model, metrics=trained.metrics, plan=planned.plan)
