"""Whether a model can compute with what a method adds to it: tried on the meta device, without weights."""

from typing import TYPE_CHECKING, Any

from thriftune.config import Section
from thriftune.errors import ConfigError, in_a_line
from thriftune.methods.base import TrainingMethod
from thriftune.models.architecture import Architecture

if TYPE_CHECKING:
    import torch

_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, NotImplementedError)
_TOKENS = 8


def require_working(method: TrainingMethod, section: Section, architecture: Architecture) -> None:
    """Refuse an architecture that fails with what a method adds, or that does not use it: one pass and its gradients.

    Only over the first layers, with one of every kind; in fp32, or in bf16 where experts need that on the meta device.

    Args:
        method: The method.
        section: Its section of the run file.
        architecture: The model's.

    Raises:
        ConfigError: With the reason that peft or transformers gives.
    """
    import torch

    reasons = []
    for dtype in (torch.float32, torch.bfloat16):
        try:
            unused = _unused(method, section, architecture, dtype)
        except _FAILURES as error:
            reasons.append(in_a_line(error))
        else:
            if not unused:
                return
            reasons.append(f"its layers do not use {unused}")
    raise ConfigError.single(
        "method",
        method.name,
        f"{method.facts.title} does not work with {architecture.name} ({reasons[0]}).",
        "Use method: lora or qlora.",
        code="lora-refused",
    )


def _unused(method: TrainingMethod, section: Section, architecture: Architecture, dtype: "torch.dtype") -> str:
    """Name of a parameter that trains and gets no gradient; empty if there is none."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Answering(TorchDispatchMode):
        """Answers what transformers asks of the values of a mask, of which the meta device has none."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            is_question = func is torch.ops.aten._local_scalar_dense.default  # noqa: SLF001 - what `.item()` calls
            return True if is_question else func(*args, **(kwargs or {}))

    layers = max(architecture.first_of_kind, default=0) + 1
    ids = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
    model: Any = method.put_on(architecture.on_meta(dtype, layers=layers), section, architecture)
    with Answering():
        logits = model.train()(input_ids=ids, use_cache=False).logits
    if logits.requires_grad:
        logits.sum().backward()
    return next((name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None), "")
