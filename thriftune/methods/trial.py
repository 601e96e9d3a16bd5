"""Whether a model can compute with what a method adds to it: tried on the meta device, without weights."""

from typing import Any

from thriftune.config import Section
from thriftune.errors import ConfigError, in_a_line
from thriftune.methods.base import TrainingMethod
from thriftune.models.architecture import Architecture

_FAILURES = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, NotImplementedError)
_TOKENS = 8


def require_working(method: TrainingMethod, section: Section, architecture: Architecture) -> None:
    """Refuse an architecture that fails with what a method adds. One pass over the first layers of every kind.

    Args:
        method: The method.
        section: Its section of the run file.
        architecture: The model's.

    Raises:
        ConfigError: With the reason that peft or transformers gives.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Answering(TorchDispatchMode):
        """Answers what transformers asks of the values of a mask, of which the meta device has none."""

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            is_question = func is torch.ops.aten._local_scalar_dense.default  # noqa: SLF001 - what `.item()` calls
            return True if is_question else func(*args, **(kwargs or {}))

    layers = max(architecture.first_of_kind, default=0) + 1
    ids = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
    try:
        model: Any = method.put_on(architecture.on_meta(torch.float32, layers=layers), section, architecture)
        with Answering():
            model.train()(input_ids=ids, use_cache=False)
    except _FAILURES as error:
        raise ConfigError.single(
            "method",
            method.name,
            f"{method.facts.title} does not work with {architecture.name} ({in_a_line(error)}).",
            "Use method: lora or qlora.",
            code="lora-refused",
        ) from error
