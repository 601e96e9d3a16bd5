"""A base model in 4 bits: its one configuration, and which of a model's weights are quantized.

transformers replaces layers of exactly the classes `nn.Linear` and `Conv1D`, except the output head and what a model
wants in fp32. Subclasses (Falcon's) and the fused experts of a mixture stay as they are. So nothing is guessed here:
the quantizer that loads a model is given the model on the meta device, and the layers it replaced are counted.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from thriftune.errors import ConfigError
from thriftune.hardware import Precision
from thriftune.models.architecture import Architecture, layer_of, linear_layers

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig

# Source: bitsandbytes 0.50: blocks of 64 weights share an absmax, blocks of 256 absmax share another.
_BLOCK = 64
_NESTED_BLOCK = 256
# Share of the layers' weights; with less in 4 bits, the layers take more than 60 % of their memory in 16 bits.
LITTLE = 0.5


@dataclass(frozen=True)
class FourBit:
    """How a base model is held in 4 bits: NF4, in blocks of 64 weights.

    Attributes:
        double_quantization: Whether the quantization constants are quantized too, which saves 0.4 bit per weight.
    """

    double_quantization: bool = True

    @property
    def constants(self) -> float:
        """Bytes of the quantization constants for each weight.

        Source:
            QLoRA (arXiv 2305.14314), section 3.
        """
        return 1 / _BLOCK + 4 / (_BLOCK * _NESTED_BLOCK) if self.double_quantization else 4 / _BLOCK


@dataclass(frozen=True)
class Weights:
    """Numbers of weights by how a base model in 4 bits holds them.

    Attributes:
        quantized: In layers that the quantizer replaces.
        fused: In tensors with all experts of a layer, which stay in 16 bits.
        other: All others, which peft turns into fp32: embeddings, norms, the output head, other linear layers.
    """

    quantized: int = 0
    fused: int = 0
    other: int = 0

    @property
    def all(self) -> int:
        """Their sum."""
        return self.quantized + self.fused + self.other

    def held_bytes(self, four_bit: FourBit | None, precision: Precision) -> int:
        """Bytes of the frozen base that adapters train on, with the quantization constants.

        Args:
            four_bit: How it is held in 4 bits; None if it is not.
            precision: Precision of the weights that are not in 4 bits.

        Source:
            QLoRA (arXiv 2305.14314), section 2.
        """
        width = 4 if precision == "fp32" else 2
        if four_bit is None:
            return width * self.all
        return int(self.quantized * (0.5 + four_bit.constants)) + width * self.fused + 4 * self.other


def configuration(
    dtype: "torch.dtype", four_bit: FourBit, storage: "torch.dtype | None" = None
) -> "BitsAndBytesConfig":
    """The NF4 configuration for bitsandbytes, the same for every base model in 4 bits.

    Args:
        dtype: Type to compute products in.
        four_bit: How the base is held in 4 bits.
        storage: Type of the tensors that hold the 4-bit numbers, which it does not change; bytes if left out. What
            shards a model over processes needs the type of its other weights.
    """
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=four_bit.double_quantization,
        bnb_4bit_compute_dtype=dtype,
        **({} if storage is None else {"bnb_4bit_quant_storage": storage}),
    )


def replace_layers(
    model: "torch.nn.Module", dtype: "torch.dtype", four_bit: FourBit, storage: "torch.dtype | None" = None
) -> Any:
    """Replace layers of a model on the meta device as loading it in 4 bits does, before any weight is read.

    Args:
        model: The model; layers of it are replaced.
        dtype: Type to compute products in.
        four_bit: How the base is held in 4 bits.
        storage: As in `configuration`.

    Returns:
        The quantizer, for further questions.
    """
    from transformers.quantizers.auto import AutoHfQuantizer

    asked = configuration(dtype, four_bit, storage)
    quantizer = AutoHfQuantizer.from_config(asked, pre_quantized=False)  # as `from_pretrained` does for plain weights
    quantizer.preprocess_model(model=model, device_map=None)
    return quantizer


def four_bit_layers(model: "torch.nn.Module") -> frozenset[str]:
    """Names of the layers of a model that are in 4 bits, or will be once it is loaded."""
    from bitsandbytes.nn.modules import Linear4bit

    return frozenset(name for name, module in model.named_modules() if isinstance(module, Linear4bit))


@lru_cache(maxsize=64)
def quantized_layers(architecture: Architecture) -> frozenset[str]:
    """Names of the layers that loading an architecture in 4 bits quantizes.

    Args:
        architecture: The model.
    """
    import torch

    model = architecture.on_meta(torch.bfloat16)
    replace_layers(model, torch.bfloat16, FourBit())
    return four_bit_layers(model)


def weights_of(architecture: Architecture, names: Iterable[str]) -> Weights:
    """Count parameters by how a base model in 4 bits holds them.

    Args:
        architecture: The model.
        names: Names of the parameters to count.
    """
    quantized, counts = quantized_layers(architecture), [0, 0, 0]
    for name in names:
        shape = architecture.shapes[name]
        module, _, kind = name.rpartition(".")
        in_four_bits = kind == "weight" and module in quantized
        counts[0 if in_four_bits else 1 if len(shape) > 2 else 2] += math.prod(shape)
    return Weights(*counts)


def layer_weights(architecture: Architecture) -> Weights:
    """The weights of the decoder layers, without embeddings and output head, which are never in 4 bits."""
    return weights_of(architecture, filter(layer_of, architecture.shapes))


def require_savings(four_bit: FourBit, architecture: Architecture) -> None:
    """Refuse a base model in 4 bits if its layers would take no less memory than in 16 bits.

    What is not quantized becomes fp32, so a model without any quantized layer takes twice the memory of plain LoRA.
    A mixture whose fused experts stay in 16 bits saves little, but something: it is not refused.

    Args:
        four_bit: How the base is held in 4 bits.
        architecture: Architecture of the base model.

    Raises:
        ConfigError: Names what is not quantized, and both sizes.
    """
    layers = layer_weights(architecture)
    plain, held = layers.held_bytes(None, "bf16"), layers.held_bytes(four_bit, "bf16")
    if held >= plain:
        raise ConfigError.single(
            "method",
            "qlora",
            f"{layers.quantized / layers.all:.0%} of the weights in the layers of {architecture.name} would be in 4 "
            f"bits{_left_alone(architecture)}, and the rest becomes fp32: {_gib(held)} where 16 bits take "
            f"{_gib(plain)}.",
            "Set method: lora, which trains the same adapters on a 16-bit base.",
            code="quantization-saves-nothing",
        )


def saves_little(four_bit: FourBit, architecture: Architecture) -> str:
    """Why a base model in 4 bits saves less memory than expected; empty if it saves enough.

    Args:
        four_bit: How the base is held in 4 bits.
        architecture: Architecture of the base model.
    """
    layers = layer_weights(architecture)
    if layers.quantized >= LITTLE * layers.all:
        return ""
    everything = weights_of(architecture, architecture.shapes)
    plain = everything.held_bytes(None, "bf16")
    return (
        f"only {layers.quantized / layers.all:.0%} of the weights in the layers of {architecture.name} are in 4 "
        f"bits{_left_alone(architecture)}: the base takes {_gib(everything.held_bytes(four_bit, 'bf16'))}, in 16 bits "
        f"{_gib(plain)}."
    )


def _left_alone(architecture: Architecture) -> str:
    """The kinds of layers that the quantizer leaves alone, in words."""
    import torch

    quantized = quantized_layers(architecture)
    model = architecture.on_meta(torch.bfloat16)
    kinds = {type(model.get_submodule(name)).__name__ for name in linear_layers(model) if name not in quantized}
    kinds |= {"fused experts"} if any(len(shape) > 2 for shape in architecture.shapes.values()) else set()
    return f" (bitsandbytes leaves {', '.join(sorted(kinds))} alone)" if kinds else ""


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"
