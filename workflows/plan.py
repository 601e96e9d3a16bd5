"""Plan and check a run: its needs, its costs, and everything else that can be known before a GPU is asked for.

pyflyte run workflows/plan.py plan --config configs/llama2-7b-full.yaml
pyflyte run workflows/plan.py preflight --config configs/llama2-7b-full.yaml
"""

from flytekit import workflow

from tasks.plan import show_plan
from tasks.preflight import preflight_alone
from thriftune.config import RunConfig


@workflow
def plan(config: RunConfig) -> str:
    """Find the cheapest machines that a run fits on, and show what it needs, item by item. Downloads no weights.

    Args:
        config: The run. What its file leaves open of strategy, hardware, micro batch and ZeRO is chosen.

    Returns:
        The plan as JSON.
    """
    result: str = show_plan(config=config)
    return result


@workflow
def preflight(config: RunConfig) -> str:
    """Check everything about a run that needs no GPU, and report all problems together.

    Args:
        config: The run.

    Returns:
        The report as JSON.
    """
    result: str = preflight_alone(config=config)
    return result
