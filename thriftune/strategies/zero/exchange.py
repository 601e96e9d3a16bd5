"""What the ranks of a training under ZeRO exchange in one optimizer step, and what they move to their host.

Source: ZeRO (arXiv 1910.02054), section 7, for the stages; ZeRO-Offload (arXiv 2101.06840), section 4.
"""

from thriftune.methods import method_of
from thriftune.models.architecture import Architecture
from thriftune.strategies.base import Machines
from thriftune.strategies.coordination import OVERLAPPED, Coordination, of_ring
from thriftune.strategies.memory.activations import StepShape
from thriftune.strategies.zero.layout import Layout
from thriftune.strategies.zero.parts import WIDTHS, Parts, parts_of

_GATHERS = 3  # the stage that divides weights
_MATRICES = 2  # of an adapter, with a module each


def coordination(
    architecture: Architecture, step_shape: StepShape, machines: Machines, layout: Layout, accumulation: int
) -> Coordination:
    """What each device does besides computing in one optimizer step.

    Below stage 2 gradients are summed once in a step; in stage 2 and 3 in every pass. Stage 3 gathers the weights for
    the forward pass and again for the backward pass; stage 1 and 2 gather the updated ones.

    Args:
        architecture: The model.
        step_shape: What one forward and backward pass of a process computes.
        machines: The machines it runs on.
        layout: Where ZeRO keeps what.
        accumulation: Passes in one optimizer step.
    """
    ranks, on_gpu = machines.nodes * machines.devices_per_node, machines.device.is_gpu
    parts = parts_of(architecture, step_shape)
    trained, gathered = WIDTHS[step_shape.precision] * parts.trained, sum(parts.sizes)
    summed, weights = of_ring(trained, ranks), 2 * of_ring(gathered, ranks)
    between = {
        0: 2 * summed,
        1: 2 * summed,
        2: accumulation * summed + summed,
        3: accumulation * (summed + weights),
    }[layout.stage]
    part = parts.trained // ranks
    on_host = on_gpu and layout.offloaded_optimizer != "none"
    host = (accumulation if layout.stage > 1 else 1) * trained // ranks if on_host else 0
    if on_gpu and layout.offloaded_params != "none":
        host += accumulation * 2 * gathered // ranks
    updated = {"updated_on_host": part} if on_host else {"updated": part if layout.stage else parts.trained}
    overlapped = OVERLAPPED if layout.overlaps or layout.stage == 3 else 0.0
    visits = accumulation * _visits(architecture, step_shape, parts) if layout.stage == _GATHERS else 0
    return Coordination(between, host, overlapped=overlapped, visits=visits, **updated)


def _visits(architecture: Architecture, step_shape: StepShape, parts: Parts) -> int:
    """How often stage 3 gathers a weight in one pass: it hooks every module, and visits it whenever it computes."""
    method = method_of(step_shape.tuned)
    adapters = (
        0 if method.facts.trains_weights else _MATRICES * len(method.trained_parts(step_shape.tuned, architecture))
    )
    return (len(parts.sizes) + adapters) * (3 if step_shape.gradient_checkpointing else 2)
