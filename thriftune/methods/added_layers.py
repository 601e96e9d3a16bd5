"""New fully connected layers on top of a model: decoder layers of its own class, whose attention is switched off.

A decoder layer adds two things to what it gets: what attention computes, and what its fully connected part (MLP)
computes. Each ends with a projection, and while both projections are zero the layer changes nothing. The one of the
attention is zero and frozen, the MLP and the norm before it train. So the result is an ordinary model with more layers,
which transformers loads without any code of ours; what attention computes there for nothing is the price of that.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from thriftune.errors import ConfigError
from thriftune.models.architecture import Architecture, layer_of

FIELD = "partial.add_layers"

# What a decoder layer must consist of, and nothing else: attention and an MLP, each behind a norm and with a residual
# connection around both. Other layers (parallel ones, experts, norms after the projections) are no identity, or have no
# fully connected part.
_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
_ZERO = ("self_attn.o_proj", "mlp.down_proj")
_TRAINED = ("mlp.", "post_attention_layernorm.")
_COUNT = "num_hidden_layers"


@lru_cache(maxsize=64)
def grown(architecture: Architecture, count: int) -> Architecture:
    """An architecture with more decoder layers, each like the last one.

    Args:
        architecture: The base model's.
        count: Number of layers to add.

    Raises:
        ConfigError: Its layers cannot be added to, with the reason.
    """
    if not count:
        return architecture
    if why := _obstacle(architecture):
        raise _refused(architecture, count, why)
    longer = _longer(vars(architecture.config()), architecture.layers, count)
    content = json.dumps(json.loads(architecture.content) | longer, sort_keys=True)
    larger = replace(architecture, content=content)
    if larger.shapes.keys() - architecture.shapes.keys() != _new_names(architecture, count):
        raise _refused(architecture, count, "its config.json does not decide the number of its layers alone")
    return larger


def trained(larger: Architecture, count: int) -> frozenset[str]:
    """Names of the parameters of added layers that train.

    Args:
        larger: What `grown` returned.
        count: Number of layers that were added.
    """
    first = larger.layers - count
    found = set()
    for name in larger.shapes:
        layer = layer_of(name)
        is_new = layer and int(layer.rpartition(".")[2]) >= first
        if is_new and name.removeprefix(f"{layer}.").startswith(_TRAINED):
            found.add(name)
    return frozenset(found)


def add(model: Any, count: int, seed: int) -> None:
    """Add layers to a loaded model, which computes the same as before.

    Args:
        model: The model, which is changed; `grown` accepts its architecture.
        count: Number of layers to add.
        seed: Seed of their weights.
    """
    import torch

    layers = model.get_decoder().layers
    config, last = model.config, layers[-1]
    like: torch.nn.Parameter = next(last.parameters())
    before = len(layers)
    for name, value in _longer(vars(config), before, count).items():
        setattr(config, name, value)
    # On the CPU, so that every rank and every kind of device draws the same numbers.
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for index in range(before, before + count):
            layer = type(last)(config, index)
            layer.apply(model._init_weights)  # noqa: SLF001 - as transformers starts a layer
            for name in _ZERO:
                for parameter in layer.get_submodule(name).parameters():
                    torch.nn.init.zeros_(parameter)
            layers.append(layer.to(device=like.device, dtype=torch.float32).train(last.training))


def _obstacle(architecture: Architecture) -> str:
    """Why layers cannot be added to an architecture; empty if they can."""
    if architecture.trust_remote_code:
        return "its code is not that of transformers"
    config = architecture.config()
    if config.get_text_config() is not config or _COUNT not in json.loads(architecture.content):
        return f"its config.json has no {_COUNT} at the top"
    decoder: Any = architecture.skeleton.get_decoder()
    layers = list(getattr(decoder, "layers", ()))
    if not layers or len({type(layer) for layer in layers}) != 1:
        return "its decoder layers are not a list of one class"
    last = layers[-1]
    parts = {name for name, module in last.named_children() if any(True for _ in module.parameters())}
    if parts != _PARTS or any(_projection(last, name) is None for name in _ZERO):
        named = ", ".join(sorted(parts))
        return f"its decoder layers are not built like Llama's (attention and one MLP, each after a norm): {named}"
    return ""


def _projection(layer: Any, name: str) -> Any:
    """A linear layer inside a decoder layer; None if there is none."""
    import torch

    module: Any = dict(layer.named_modules()).get(name)
    return module if isinstance(module, torch.nn.Linear) else None


def _longer(values: Mapping[str, Any], layers: int, count: int) -> dict[str, Any]:
    """The values of a configuration that change: the number of layers, and lists with an entry for each layer."""
    lists = {
        name: [*value, *[value[-1]] * count]
        for name, value in values.items()
        if "layer" in name and isinstance(value, list) and len(value) == layers
    }
    return {**lists, _COUNT: layers + count}


def _new_names(architecture: Architecture, count: int) -> set[str]:
    """Names that parameters of added layers have."""
    last = f"{layer_stem(architecture)}.{architecture.layers - 1}."
    inside = [name.removeprefix(last) for name in architecture.shapes if name.startswith(last)]
    stem, layers = layer_stem(architecture), architecture.layers
    return {f"{stem}.{index}.{name}" for index in range(layers, layers + count) for name in inside}


def layer_stem(architecture: Architecture) -> str:
    """The name of the list of decoder layers, such as model.layers.

    Args:
        architecture: The model's.
    """
    return next(layer for name in architecture.shapes if (layer := layer_of(name))).rpartition(".")[0]


def _refused(architecture: Architecture, count: int, why: str) -> ConfigError:
    remedy = "Leave it out, and name what trains in partial.train: [last_layers: 2, head]."
    return ConfigError.single(FIELD, count, f"cannot be added to {architecture.name}: {why}.", remedy)
