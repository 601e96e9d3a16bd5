"""Which weights of a model train when only a part of it does: chosen by name, from the architecture alone."""

import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from functools import lru_cache

from thriftune.config.methods import LastLayers
from thriftune.errors import ConfigError
from thriftune.models.architecture import Architecture, layer_of

FIELD = "partial.train"

_NUMBER = re.compile(r"\.\d+(?=\.)")


@lru_cache(maxsize=64)
def chosen(train: tuple[LastLayers | str, ...], architecture: Architecture) -> frozenset[str]:
    """Names of the parameters that a list of `partial.train` names; tied ones have one name.

    Args:
        train: The list.
        architecture: The model's.

    Raises:
        ConfigError: An entry names nothing, or more layers than there are; the message lists what there is.
    """
    names: set[str] = set()
    for entry in train:
        found = _last(entry, architecture) if isinstance(entry, LastLayers) else _named(entry, architecture)
        names |= found
    return frozenset(names)


def head(architecture: Architecture) -> frozenset[str]:
    """Names of the parameters of the output head: those of the embedding table if they are tied.

    Args:
        architecture: The model's.
    """
    module = architecture.head_name.rpartition(".")[0]
    return frozenset(name for name in architecture.shapes if name.rpartition(".")[0] == module)


def embeddings(architecture: Architecture) -> frozenset[str]:
    """Names of the parameters of embedding tables, of tokens and of positions.

    Args:
        architecture: The model's.
    """
    import torch

    return _of_modules(architecture, lambda module: isinstance(module, torch.nn.Embedding))


def norms(architecture: Architecture) -> frozenset[str]:
    """Names of the parameters of normalization layers, known by their class, such as LlamaRMSNorm or LayerNorm.

    Args:
        architecture: The model's.
    """
    return _of_modules(architecture, lambda module: "norm" in type(module).__name__.lower())


def ties_head(architecture: Architecture) -> bool:
    """Whether the output head is the embedding table, so that neither trains without the other.

    Args:
        architecture: The model's.
    """
    return architecture.head_name in embeddings(architecture)


_KEYWORDS: dict[str, Callable[[Architecture], frozenset[str]]] = {
    "norms": norms,
    "head": head,
    "embeddings": embeddings,
}


def in_layers(architecture: Architecture, names: Iterable[str]) -> tuple[frozenset[str], ...]:
    """The names in each decoder layer, in order, without the layer's own name.

    Args:
        architecture: The model's.
        names: Names of parameters.
    """
    found: list[set[str]] = [set() for _ in architecture.layer_kinds]
    for name in names:
        if layer := layer_of(name):
            found[int(layer.rpartition(".")[2])].add(name.removeprefix(f"{layer}."))
    return tuple(frozenset(inside) for inside in found)


def _of_modules(architecture: Architecture, is_one: Callable[[object], bool]) -> frozenset[str]:
    modules = {name for name, module in architecture.skeleton.named_modules() if is_one(module)}
    return frozenset(name for name in architecture.shapes if name.rpartition(".")[0] in modules)


def _last(entry: LastLayers, architecture: Architecture) -> set[str]:
    """Parameters of the last decoder layers."""
    count = len(architecture.layer_kinds)
    if entry.last_layers > count:
        raise ConfigError.single(
            FIELD,
            f"last_layers: {entry.last_layers}",
            f"{architecture.name} has {count} decoder layers.",
            f"Use at most {count}; with method: full every weight trains.",
        )
    first = count - entry.last_layers
    inside = ((name, layer_of(name)) for name in architecture.shapes)
    return {name for name, layer in inside if layer and int(layer.rpartition(".")[2]) >= first}


def _named(entry: str, architecture: Architecture) -> set[str]:
    """Parameters that a word or a pattern names."""
    if entry in _KEYWORDS:
        found = set(_KEYWORDS[entry](architecture))
    elif entry in architecture.shapes:
        found = {entry}
    else:
        found = {name for name in architecture.shapes if fnmatchcase(name, entry)}
    if entry.startswith("last_layers"):
        message = "is a text, and names no weight."
        raise ConfigError.single(FIELD, entry, message, "Write it without quotes: [last_layers: 2].")
    if not found:
        there = dict.fromkeys(_NUMBER.sub(".*", name) for name in architecture.shapes)
        raise ConfigError.single(
            FIELD,
            entry,
            f"names no weight of {architecture.name}, which has {', '.join(there)}.",
            "Use one of these, a pattern of them, norms, head, embeddings or last_layers: 2.",
        )
    return found
