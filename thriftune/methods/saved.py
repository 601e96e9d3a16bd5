"""What is saved is what was trained: counted after every save of an adapter."""

from pathlib import Path
from typing import TYPE_CHECKING

from thriftune.models.files import ADAPTER_FILES

if TYPE_CHECKING:
    import torch


def require_all_saved(model: "torch.nn.Module", directory: Path) -> None:
    """Refuse a saved adapter with fewer or more tensors than parameters that train.

    peft selects tensors by name, and leaves out what it does not know: wrappers around layers have made it write an
    empty adapter, without an error.

    Args:
        model: The model with the adapter.
        directory: Where it was saved.

    Raises:
        RuntimeError: With both numbers.
    """
    from safetensors import safe_open

    (weights,) = (name for name in ADAPTER_FILES if name.endswith(".safetensors"))
    with safe_open(directory / weights, "pt") as file:
        saved = len(file.keys())
    trained = sum(parameter.requires_grad for parameter in model.parameters())
    if saved != trained:
        raise RuntimeError(f"{trained} tensors train, but {saved} were saved to {directory / weights}.")
