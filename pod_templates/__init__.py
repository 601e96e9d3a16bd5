"""Pod templates, made by functions that build on each other: each call returns a new object.

Example:
    with_shared_memory("16Gi", on_instance("g4dn.metal", unprivileged(), gpus=8))
"""

from pod_templates.composing import PRIMARY, ConflictError, with_annotations, with_environment
from pod_templates.gangs import JOB_LABEL, GangScheduler, in_one_zone, with_gang_scheduling
from pod_templates.nodes import INSTANCE_LABEL, on_instance, tolerating_gpu_nodes, with_grace
from pod_templates.scratch import ScratchKind, with_scratch
from pod_templates.security import unprivileged
from pod_templates.shared_memory import with_shared_memory

__all__ = [
    "INSTANCE_LABEL",
    "JOB_LABEL",
    "PRIMARY",
    "ConflictError",
    "GangScheduler",
    "ScratchKind",
    "in_one_zone",
    "on_instance",
    "tolerating_gpu_nodes",
    "unprivileged",
    "with_annotations",
    "with_environment",
    "with_gang_scheduling",
    "with_grace",
    "with_scratch",
    "with_shared_memory",
]
