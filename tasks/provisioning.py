"""What a node of the plan gets: requests, accelerator and pod template, per node inside `@dynamic`."""

from typing import Any

from pod_templates import with_shared_memory
from tasks import settings
from thriftune.offers import THIS_MACHINE
from thriftune.training_plan import TrainingPlan


def on_planned_node(node: Any, plan: TrainingPlan) -> Any:
    """Give one node of a `@dynamic` workflow the hardware of the plan.

    Args:
        node: What calling a task inside `@dynamic` returned.
        plan: The plan.

    Returns:
        The node. A plan for this machine changes nothing: that is a run on a laptop.
    """
    if plan.instance == THIS_MACHINE:
        return node
    resources = settings.node_resources(plan)
    return node.with_overrides(
        requests=resources,
        limits=resources,
        accelerator=settings.ACCELERATORS.get(plan.device),
        pod_template=with_shared_memory(f"{plan.request.shared_memory_gib}Gi"),
    )
