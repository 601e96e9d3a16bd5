"""A model's shape from its config.json alone: parameters are counted on the real model class, without weights.

The class is built on torch's meta device, where a tensor has a shape but no data. So grouped-query attention, tied
embeddings and mixtures of experts are counted as they really are.
"""

import json
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from thriftune.config import ModelConfig
from thriftune.errors import ModelSourceError, in_a_line
from thriftune.models import classifier, decoder_config
from thriftune.models import config_json as model_config

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedModel

_FIELD = model_config.FIELD

_UNBUILDABLE = (
    ValueError, TypeError, RuntimeError, AttributeError, ArithmeticError, ImportError, LookupError, AssertionError,
)  # fmt: skip


@dataclass(frozen=True)
class Architecture:
    """The shape of one model. Two architectures with the same `content` are equal.

    Attributes:
        name: The model's source, for messages.
        content: Its config.json.
        trust_remote_code: Whether model code that the repository ships may run.
        labels: Names of the classes of a classifier; none for a causal language model.
    """

    name: str
    content: str
    trust_remote_code: bool = False
    labels: tuple[str, ...] = ()

    def config(self, layers: int | None = None) -> "PretrainedConfig":
        """The configuration for transformers.

        Args:
            layers: Number of decoder layers, instead of the model's own.
        """
        config = decoder_config.read(json.loads(self.content), self.name, trust_remote_code=self.trust_remote_code)
        text = config.get_text_config()
        if layers is not None:
            text.num_hidden_layers = layers
            for name, value in vars(text).items():  # for example layer_types: one entry per layer
                if isinstance(value, list) and len(value) == self.layers:
                    setattr(text, name, value[:layers])
        if self.labels:
            for name, value in classifier.configuration(self.labels).items():
                setattr(config, name, value)
            classifier.set_pad(config, None)
        return config

    def on_meta(self, dtype: "torch.dtype", layers: int | None = None) -> "PreTrainedModel":
        """The model on the meta device.

        Args:
            dtype: Type of its weights.
            layers: Number of decoder layers, instead of the model's own.

        Raises:
            ModelSourceError: transformers cannot build it from this configuration.
        """
        import torch

        try:
            with torch.device("meta"):
                model: PreTrainedModel = classifier.auto_class(self.labels).from_config(
                    self.config(layers), dtype=dtype, trust_remote_code=self.trust_remote_code
                )
        except _UNBUILDABLE as error:
            raise ModelSourceError.single(
                _FIELD,
                self.name,
                f"no {'classifier' if self.labels else 'causal language model'} can be built from its config.json "
                f"({in_a_line(error)}).",
                "Repair config.json, or use another model.",
                code="model-config-invalid",
            ) from error
        model.tie_weights()
        return model

    @cached_property
    def layers(self) -> int:
        """Number of decoder layers."""
        return int(json.loads(self.content).get("num_hidden_layers") or self._text.num_hidden_layers)

    @cached_property
    def family(self) -> str:
        """Kind of model, as transformers names it; empty if the configuration does not say."""
        return str(json.loads(self.content).get("model_type") or "")

    @cached_property
    def hidden_size(self) -> int:
        """Width of the residual stream."""
        return int(self._text.hidden_size)

    @cached_property
    def vocabulary(self) -> int:
        """Rows of the embedding table."""
        return int(self._text.vocab_size)

    @cached_property
    def cached_per_token(self) -> int:
        """Elements of keys and values that the cache holds per token while answering."""
        heads = int(getattr(self._text, "num_attention_heads", 0) or 1)
        width = int(getattr(self._text, "head_dim", None) or self.hidden_size // heads)
        return 2 * self.layers * self.shared_heads * width

    @cached_property
    def shared_heads(self) -> int:
        """Heads of keys and values of a layer, which several heads of queries may share."""
        heads = int(getattr(self._text, "num_attention_heads", 0) or 1)
        return int(getattr(self._text, "num_key_value_heads", None) or heads)

    @cached_property
    def longest_input(self) -> int | None:
        """Number of positions the model was made for; None if the configuration does not say."""
        return decoder_config.positions_of(self._text)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter by name; tied parameters appear once."""
        return {name: tuple(p.shape) for name, p in self.skeleton.named_parameters()}

    @cached_property
    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """(out_features, in_features) of every linear layer except the output head, by module name.

        Only the quantizer knows which of them are in 4 bits when the model is loaded that way:
        `thriftune.models.quantization`.
        """
        found = linear_layers(self.skeleton)
        return {name: shape for name, shape in found.items() if name not in self.odd_layers}

    @cached_property
    def odd_layers(self) -> frozenset[str]:
        """Names of modules with a linear layer's class that do something else, such as Llama 4's router."""
        return frozenset(name for name in linear_layers(self.skeleton) if _is_odd(self.skeleton.get_submodule(name)))

    @cached_property
    def layer_kinds(self) -> list[Hashable]:
        """The kind of each decoder layer, in order: equal for layers with equal parameters and equal attention."""
        per_layer: dict[str, list[Any]] = {}
        for name, shape in self.shapes.items():
            layer = layer_of(name)
            if layer:
                per_layer.setdefault(layer, []).append((name.removeprefix(layer), shape))
        types = getattr(self._text, "layer_types", None) or [""] * len(per_layer)
        ordered = sorted(per_layer, key=lambda layer: int(layer.rpartition(".")[2]))
        return [
            (tuple(sorted(per_layer[layer])), types[i] if i < len(types) else "") for i, layer in enumerate(ordered)
        ]

    @cached_property
    def first_of_kind(self) -> list[int]:
        """For every decoder layer, the index of the first layer of its kind."""
        return [self.layer_kinds.index(kind) for kind in self.layer_kinds]

    @cached_property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @cached_property
    def largest_parameter(self) -> int:
        """Elements of the largest parameter, the embedding table in most models."""
        return max(math.prod(shape) for shape in self.shapes.values())

    @cached_property
    def layer_parameters(self) -> int:
        """Parameters of the largest decoder layer."""
        per_layer: dict[str, int] = {}
        for name, shape in self.shapes.items():
            layer = layer_of(name)
            if layer:
                per_layer[layer] = per_layer.get(layer, 0) + math.prod(shape)
        return max(per_layer.values())

    @cached_property
    def head_name(self) -> str:
        """The parameter that the output head multiplies by: its own, or the embedding's if they are tied."""
        head = classifier.head_of(self.skeleton).weight
        return next(name for name, parameter in self.skeleton.named_parameters() if parameter is head)

    @cached_property
    def outputs(self) -> int:
        """Numbers that the output head gives for a token: one per class, or per token of the vocabulary."""
        return len(self.labels) or self.vocabulary

    @cached_property
    def new_head(self) -> frozenset[str]:
        """Parameters of a classifier's head that its base model does not have; none if that is a classifier itself."""
        if not self.labels or classifier.is_classifier(json.loads(self.content)):
            return frozenset()
        module = self.head_name.rpartition(".")[0]
        return frozenset(name for name in self.shapes if name.rpartition(".")[0] == module)

    @cached_property
    def _text(self) -> "PretrainedConfig":
        return self.config().get_text_config()

    @cached_property
    def skeleton(self) -> "PreTrainedModel":
        """The model in fp32 on the meta device, only for reading."""
        import torch

        model = self.on_meta(torch.float32)
        decoder_config.require_causal(model, self.name)
        return model


def from_content(
    content: Mapping[str, Any], name: str, *, trust_remote_code: bool = False, labels: Sequence[str] = ()
) -> Architecture:
    """An architecture from the content of a config.json.

    Args:
        content: The parsed file.
        name: The model's source, for messages.
        trust_remote_code: Run model code that the repository ships.
        labels: Names of the classes of a classifier; none for a causal language model.

    Raises:
        ModelSourceError: The architecture is unknown, or fields that determine its size are missing; or it is a
            classifier of other classes.
    """
    text = content.get("text_config", content)
    if not isinstance(text, dict) or not isinstance(content.get("model_type", ""), str):
        raise ModelSourceError.single(
            _FIELD,
            name,
            "its config.json has a text_config or model_type of the wrong type.",
            "Repair config.json.",
            code="model-config-invalid",
        )
    config = decoder_config.read(dict(content), name, trust_remote_code=trust_remote_code)
    decoder_config.require_language_model(content, config, name, trust_remote_code=trust_remote_code)
    if content.get("quantization_config"):
        raise ModelSourceError.single(
            _FIELD,
            name,
            "is quantized already (its config.json has a quantization_config).",
            "Use the unquantized model; method qlora quantizes it while it loads.",
            code="model-config-invalid",
        )
    decoder_config.require_sizes(text, config.get_text_config(), name)
    if labels:
        classifier.require_same_classes(content, labels, name)
    return Architecture(name, json.dumps(dict(content), sort_keys=True), trust_remote_code, tuple(labels))


def of(model: ModelConfig, token: str | None = None, labels: Sequence[str] = ()) -> Architecture:
    """The architecture of a run's base model; no weights are read.

    Args:
        model: The model section of a run.
        token: Hub token, for a hub id whose architecture is not shipped with this package.
        labels: Names of the classes of a classifier; none for a causal language model.

    Raises:
        ModelSourceError: There is no such model, or its config.json is unusable.
        TransientError: The hub or the store did not answer.
    """
    content = model_config.shipped(model.source) or model_config.read(model, token)
    return from_content(content, model.source, trust_remote_code=model.trust_remote_code, labels=labels)


def linear_layers(model: "PreTrainedModel") -> dict[str, tuple[int, int]]:
    """(out_features, in_features) of every module with a linear layer's class except the output head, by name."""
    import torch
    from transformers.pytorch_utils import Conv1D

    head, found = classifier.head_of(model), {}
    for name, module in model.named_modules():
        if module is head:
            continue
        if isinstance(module, torch.nn.Linear):
            found[name] = (module.out_features, module.in_features)
        elif isinstance(module, Conv1D):  # GPT-2's linear layer, transposed
            inside, out = module.weight.shape
            found[name] = (int(out), int(inside))
    return found


def _is_odd(module: "torch.nn.Module") -> bool:
    """Whether a module with a linear layer's class, on the meta device, does not turn [rows, in] into [rows, out]."""
    import torch

    if type(module) is torch.nn.Linear or not isinstance(module, torch.nn.Linear):
        return False
    try:
        made = module(torch.empty(2, module.in_features, dtype=module.weight.dtype, device="meta"))
    except _UNBUILDABLE:
        return True
    return not isinstance(made, torch.Tensor) or made.shape != (2, module.out_features)


def layer_of(name: str) -> str:
    """The decoder layer that a parameter is in, such as model.layers.7; empty outside the layers."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else ""
