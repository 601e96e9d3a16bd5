"""Whether a model keeps the examples of a packed row apart: tested on the model itself, before it is trained."""

from typing import TYPE_CHECKING, Any

from thriftune.errors import ConfigError

if TYPE_CHECKING:
    import torch

_EXAMPLE_TOKENS = 8
# Share of the logits' standard deviation. Rounding in 16 or 4 bits gives 0.01; seeing the other example gives 0.5.
_TOLERANCE = 0.1


def require_separation(model: Any) -> None:
    """Refuse packing for a model in which the second example of a row sees the first.

    transformers keeps them apart by their positions, in models that build their masks with its functions. A model's own
    code, and layers that carry a state along the row, mix them without any error.

    Args:
        model: A causal language model, in evaluation mode.

    Raises:
        ConfigError: The logits of an example depend on the one before it.
    """
    leaked = leakage(model)
    if leaked > _TOLERANCE:
        raise ConfigError.single(
            "data.packing",
            "true",
            f"this model ({model.config.model_type}) lets packed examples see each other (its answers change by "
            f"{leaked:.0%} when another example comes before).",
            "Use data.packing: false, with training.group_by_length: true.",
        )


def leakage(model: Any) -> float:
    """How much an example depends on the one before it in a packed row.

    Args:
        model: A causal language model, in evaluation mode.

    Returns:
        Root mean square of the difference between the logits of an example in a packed row and alone, over the
        standard deviation of the latter; 0 if it does not depend on it at all.
    """
    import torch

    device = next(model.parameters()).device
    vocabulary = model.config.get_text_config().vocab_size
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocabulary, (1, 2 * _EXAMPLE_TOKENS), generator=generator).to(device)
    positions = torch.arange(_EXAMPLE_TOKENS, device=device).repeat(2)[None]
    second = slice(_EXAMPLE_TOKENS, None)
    together = _logits(model, tokens, positions)[:, second]
    alone = _logits(model, tokens[:, second], positions[:, second])
    return float((together - alone).square().mean().sqrt() / alone.std())


def _logits(model: Any, tokens: "torch.Tensor", positions: "torch.Tensor") -> "torch.Tensor":
    import torch

    with torch.no_grad():  # not inference mode: the model is trained with these weights afterwards
        logits: torch.Tensor = model(input_ids=tokens, position_ids=positions, use_cache=False).logits
    return logits.float()
