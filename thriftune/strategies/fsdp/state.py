"""Checkpoints of a sharded training: every rank writes and reads its own parts, with torch's distributed checkpoint.

Only what trains is written: its weights and what the optimizer keeps of each. Parts are found by the name of the weight
and the rows they hold, so that another number of ranks reads them as they are. Numbers that all ranks have (the count
of steps, the learning rate) are in one JSON file of rank 0.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import distributed

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

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


def save(trainer: "Trainer", folder: Path) -> None:
    """Write what trains. Collective: every rank calls it; all files are complete when it returns.

    Args:
        trainer: The trainer, at the end of a step.
        folder: Folder of the checkpoint, on the disk of this rank's node.
    """
    from torch.distributed.checkpoint import filesystem, state_dict_saver
    from torch.distributed.tensor import DTensor

    optimizer = _optimizer(trainer)
    tensors: dict[str, Any] = {}
    numbers: dict[str, dict[str, float]] = {}
    for name, parameter in _trained(trainer).items():
        tensors[f"{_WEIGHT}.{name}"] = parameter.detach()
        kept = optimizer.state.get(parameter, {})
        tensors |= {f"{key}.{name}": value for key, value in kept.items() if isinstance(value, DTensor)}
        numbers[name] = {key: float(value) for key, value in kept.items() if not isinstance(value, DTensor)}
    state_dict_saver.save(tensors, storage_writer=filesystem.FileSystemWriter(folder / _FOLDER))
    if distributed.current_rank().is_main:
        groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        content = {"numbers": numbers, "groups": groups, "tensors": sorted(tensors)}
        (folder / _NUMBERS).write_text(json.dumps(content), encoding="utf-8")


def load_weights(trainer: "Trainer", folder: Path) -> None:
    """Read the weights that train into the model. Collective: every rank calls it.

    Args:
        trainer: The trainer, before or after training.
        folder: Folder of the checkpoint, on the disk of this rank's node.
    """
    tensors = {f"{_WEIGHT}.{name}": parameter.detach() for name, parameter in _trained(trainer).items()}
    _read_into(tensors, folder)


def load_optimizer(trainer: "Trainer", folder: Path) -> None:
    """Read what the optimizer keeps. Collective: every rank calls it.

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
