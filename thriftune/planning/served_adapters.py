"""How large adapters are that are served, from their files or from a rank; and the slots that vLLM makes for them."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from thriftune.config import LoraConfig
from thriftune.errors import ConfigError
from thriftune.methods.adapters import adapter_parameters
from thriftune.models.adapter_weights import shapes_in
from thriftune.models.architecture import Architecture
from thriftune.models.completeness import ADAPTER_CONFIG
from thriftune.models.weight_files import Folder

# The values that vLLM allows for --max-lora-rank.
# Source: the LoRA section of vLLM 0.8.5's configuration.
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_ADDED_WORDS = 256  # vLLM's default for --lora-extra-vocab-size


@dataclass(frozen=True)
class AdapterSize:
    """The size of an adapter.

    Attributes:
        name: Its name.
        elements: Number of its weights.
        rank: The largest rank in it; 0 for an adapter that has none.
    """

    name: str
    elements: int
    rank: int


def size_in(directory: Path, name: str) -> AdapterSize:
    """The size of an adapter, from the header of its file.

    Args:
        directory: The adapter.
        name: Its name.

    Raises:
        AdapterError: It has no weights that can be read.
    """
    shapes = shapes_in(Folder(directory), f"adapters.{name}", directory)
    written = json.loads((directory / ADAPTER_CONFIG).read_bytes())
    own = written.get("rank_pattern") or {}
    ranks = [written.get("r") or 0, *own.values()]
    return AdapterSize(name, sum(math.prod(shape) for shape in shapes.values()), max(ranks))


def sizes_of(architecture: Architecture, rank: int, count: int) -> tuple[AdapterSize, ...]:
    """The sizes of adapters that are not there yet: on every linear layer of a model.

    Args:
        architecture: The model.
        rank: Their rank.
        count: Number of them.
    """
    elements = sum(adapter_parameters(architecture, LoraConfig(rank=rank)).values())
    return tuple(AdapterSize(f"adapter-{number}", elements, rank) for number in range(1, count + 1))


def slot_rank(adapters: Sequence[AdapterSize]) -> int:
    """The rank of vLLM's slots for adapters: the smallest that it allows and all of them fit.

    Args:
        adapters: The adapters.

    Raises:
        ConfigError: One has a larger rank than vLLM allows.
    """
    largest = max(adapters, key=lambda adapter: adapter.rank)
    found = next((rank for rank in VLLM_RANKS if rank >= largest.rank), None)
    if found is None:
        message = f"has rank {largest.rank}; vLLM serves adapters up to {VLLM_RANKS[-1]}."
        raise ConfigError.single(f"adapters.{largest.name}", largest.rank, message, "Merge it, or use our own server.")
    return found


def slots_elements(architecture: Architecture, rank: int, devices: int = 1) -> int:
    """Number of weights of one of vLLM's slots on each device, whatever an adapter is on.

    It makes them on every linear layer; and on the embeddings and the output head of most models, with room for words
    that an adapter adds. Of a layer that is divided, the side of the hidden states is whole on each device, and those
    of the vocabulary are not divided.

    Args:
        architecture: The model.
        rank: Rank of the slots.
        devices: Number of devices that every layer is divided over.

    Source: the classes in https://github.com/vllm-project/vllm/blob/v0.8.5/vllm/lora/layers.py.
    """
    width = architecture.hidden_size
    layers = sum(_divided(inside, out, width, devices) for out, inside in architecture.linear_shapes.values())
    words = 2 * (rank * (architecture.vocabulary + _ADDED_WORDS + width) + _ADDED_WORDS * width)
    return rank * layers + words


def _divided(inside: int, out: int, width: int, devices: int) -> int:
    """Numbers of both sides of a layer, for each of a slot's ranks, on one of several devices."""
    if width not in (inside, out):
        return inside + out
    return width + -(-(inside + out - width) // devices)
