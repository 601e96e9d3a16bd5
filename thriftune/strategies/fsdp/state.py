"""Checkpoints of a sharded training: every rank writes and reads its own parts, with torch's distributed checkpoint.

Only what trains is written: its weights and what the optimizer keeps of each. Parts are found by the name of the weight
and the rows they hold, so that another number of ranks reads them as they are. Numbers that all ranks have (the count
of steps, the learning rate) are in one JSON file of rank 0. Training goes on while copies of the tensors are written.
"""

import json
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import distributed

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

    from thriftune.strategies.fsdp.writing import ShardWriter

_FOLDER = "sharded"
_NUMBERS = "optimizer.json"
_WEIGHT = "weight"


def reshard(model: "torch.nn.Module") -> None:
    """Free the gathered weights that units keep after a forward pass, so that parameters are the shards again.

    Args:
        model: The model.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def shards(model: "torch.nn.Module") -> "dict[str, torch.nn.Parameter]":
    """The shards of a model by name, also where a unit holds gathered weights at the moment.

    Args:
        model: The model.
    """
    reshard(model)
    return dict(model.named_parameters())


class ShardFiles:
    """The checkpoints of one training, as `StateFiles` says."""

    def __init__(self) -> None:
        self._writer: ShardWriter | None = None

    def save(self, trainer: "Trainer", folder: Path) -> Future[None]:
        """Copy what trains, and begin to write it. Waits for the checkpoint before, if that is not written yet.

        Args:
            trainer: The trainer, at the end of a step.
            folder: Folder of the checkpoint, on the disk of this rank's node.

        Returns:
            Done when the files of all ranks are whole.
        """
        from thriftune.strategies.fsdp.writing import ShardWriter

        self._writer = self._writer or ShardWriter()
        self._writer.wait()
        tensors, numbers = _content(trainer)
        if distributed.current_rank().is_main:
            text = json.dumps({**numbers, "tensors": sorted(tensors)})
            (folder / _NUMBERS).write_text(text, encoding="utf-8")
        return self._writer.start(tensors, folder / _FOLDER)

    def load_weights(self, trainer: "Trainer", folder: Path) -> None:
        """Read the weights that train.

        Args:
            trainer: The trainer, before or after training.
            folder: Folder of the checkpoint, on the disk of this rank's node.
        """
        tensors = {f"{_WEIGHT}.{name}": parameter.detach() for name, parameter in _trained(trainer).items()}
        _read_into(tensors, folder)

    def load_optimizer(self, trainer: "Trainer", folder: Path) -> None:
        """Read what the optimizer keeps.

        Args:
            trainer: The trainer, with an optimizer that has not stepped.
            folder: Folder of the checkpoint, on the disk of this rank's node.
        """
        import torch

        content = json.loads((folder / _NUMBERS).read_text(encoding="utf-8"))
        optimizer = _optimizer(trainer)
        tensors: dict[str, Any] = {}
        for name, parameter in _trained(trainer).items():
            suffix = f".{name}"
            keys = [full.removesuffix(suffix) for full in content["tensors"] if full.endswith(suffix)]
            kept = {key: torch.zeros_like(parameter.detach()) for key in keys if "." not in key and key != _WEIGHT}
            tensors |= {f"{key}{suffix}": value for key, value in kept.items()}
            numbers = {key: torch.tensor(value) for key, value in content["numbers"][name].items()}
            if kept or numbers:
                optimizer.state[parameter] = {**numbers, **kept}
        _read_into(tensors, folder)
        for group, saved in zip(optimizer.param_groups, content["groups"], strict=True):
            group.update(saved)


def _content(trainer: "Trainer") -> tuple[dict[str, Any], dict[str, Any]]:
    """What a checkpoint has of this moment: tensors that are divided, by name, and the numbers beside them."""
    from torch.distributed.tensor import DTensor

    optimizer = _optimizer(trainer)
    tensors: dict[str, Any] = {}
    numbers: dict[str, dict[str, float]] = {}
    for name, parameter in _trained(trainer).items():
        tensors[f"{_WEIGHT}.{name}"] = parameter.detach()
        kept = optimizer.state.get(parameter, {})
        tensors |= {f"{key}.{name}": value for key, value in kept.items() if isinstance(value, DTensor)}
        numbers[name] = {key: float(value) for key, value in kept.items() if not isinstance(value, DTensor)}
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    return tensors, {"numbers": numbers, "groups": groups}


def _read_into(tensors: dict[str, Any], folder: Path) -> None:
    from torch.distributed.checkpoint import filesystem, state_dict_loader

    state_dict_loader.load(tensors, storage_reader=filesystem.FileSystemReader(folder / _FOLDER))


def _trained(trainer: "Trainer") -> "dict[str, torch.nn.Parameter]":
    model: Any = trainer.model
    return {name: parameter for name, parameter in shards(model).items() if parameter.requires_grad}


def _optimizer(trainer: "Trainer") -> Any:
    """Torch's optimizer, without accelerate's wrapper."""
    optimizer: Any = trainer.optimizer
    return getattr(optimizer, "optimizer", optimizer)
