"""Load a base model in 4 bits weight by weight, so that no process ever holds it in 16 bits.

`from_pretrained` quantizes a whole model onto one device. A strategy that shards it needs each weight alone: read from
the mapped files, quantized, and cut before the next one is read. The packed bytes are those of loading on one device.

The 4-bit numbers are stored in tensors of the type that the other weights have (`bnb_4bit_quant_storage`), so that
DeepSpeed and FSDP2 shard them as any other weight: accelerate leaves `Params4bit` of bytes whole under FSDP2. The
constants (`quant_state`) stay whole on every rank: with double quantization a 64th of a byte for each weight.

Source: https://huggingface.co/docs/bitsandbytes/fsdp_qlora
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from thriftune.methods.adapters import KEEPS_TYPES
from thriftune.models.quantization import FourBit, four_bit_layers, replace_layers
from thriftune.strategies.mapped import give_back_pages

if TYPE_CHECKING:
    import torch
    from bitsandbytes.functional import QuantState
    from bitsandbytes.nn.modules import Linear4bit


@dataclass(frozen=True)
class Unquantized:
    """A layer in 4 bits that has no weight yet, and the weight to quantize for it.

    Attributes:
        name: Name of the weight in the base model.
        layer: The layer; its weight is on the meta device. It stays the same object when peft puts adapters on it.
        weight: The weight in the mapped files, of shape [out, in].
        blank: The weight that the layer was made with, which says how to quantize.
    """

    name: str
    layer: "Linear4bit"
    weight: "torch.Tensor"
    blank: Any


@dataclass(frozen=True)
class Packed:
    """A quantized weight.

    Attributes:
        name: Name of the weight in the base model.
        layer: The layer that it is for.
        weight: The 4-bit numbers, as a tensor of the storage type and of shape [n, 1].
        quant_state: Constants of its blocks, and the shape and type of the weight it stands for.
    """

    name: str
    layer: "Linear4bit"
    weight: "torch.Tensor"
    quant_state: "QuantState"

    def put_in_place(self) -> "torch.nn.Parameter":
        """Give the layer its weight, and return it."""
        from bitsandbytes.nn.modules import Params4bit

        blank: Any = self.layer.weight
        parameter: torch.nn.Parameter = Params4bit(
            self.weight,
            requires_grad=False,
            quant_state=self.quant_state,
            blocksize=self.quant_state.blocksize,
            compress_statistics=blank.compress_statistics,
            quant_type=blank.quant_type,
            quant_storage=self.weight.dtype,
            module=self.layer,
            bnb_quantized=True,
        )
        self.layer.weight = parameter
        self.layer.quant_state = self.quant_state  # from which it is restored where sharding loses the class
        return parameter


def with_four_bit_layers(model: Any, dtype: "torch.dtype", four_bit: FourBit) -> list[Unquantized]:
    """Replace layers of a mapped model by ones in 4 bits, without reading any weight.

    The same layers as in `from_pretrained`, and the model is marked as quantized as there. No method converts its other
    weights before they are sharded.

    Args:
        model: The mapped model, which is changed.
        dtype: Type of the weights that are not in 4 bits, in which products are computed.
        four_bit: How the base is held in 4 bits.

    Returns:
        The layers that were replaced, in the order of the model.
    """
    from transformers.pytorch_utils import Conv1D

    from thriftune.strategies import sharded_product

    before = dict(model.named_modules())
    quantizer = replace_layers(model, dtype, four_bit, storage=dtype)
    found = []
    for name in sorted(four_bit_layers(model), key=list(before).index):
        layer, source = model.get_submodule(name), before[name]
        layer.bias, layer.training = source.bias, source.training
        layer.source_cls = type(source)  # as `from_pretrained` notes it
        layer.forward = partial(sharded_product.forward, layer)
        layer.register_state_dict_post_hook(_forget)
        weight = source.weight.data.T if isinstance(source, Conv1D) else source.weight.data
        found.append(Unquantized(f"{name}.weight", layer, weight, layer.weight))
    model.hf_quantizer = quantizer
    quantizer.postprocess_model(model)
    setattr(model, KEEPS_TYPES, True)
    return found


def packed(layers: Iterable[Unquantized], dtype: "torch.dtype", device: "torch.device") -> Iterator[Packed]:
    """Quantize the weights of layers, one at a time. Nothing is kept of a weight when the next one is read.

    Args:
        layers: What `with_four_bit_layers` returned.
        dtype: Type that a weight has before it is quantized, and that its 4-bit numbers are stored in.
        device: Where to quantize, and where the result is.

    Yields:
        Each of them, for the caller to put in place, or to shard first.
    """
    from bitsandbytes.nn.modules import Params4bit

    for each in layers:
        weight: Any = Params4bit(
            each.weight.to(device=device, dtype=dtype),
            requires_grad=False,
            compress_statistics=each.blank.compress_statistics,
            quant_type=each.blank.quant_type,
            quant_storage=dtype,
        )
        weight = weight.to(device)  # which quantizes it
        give_back_pages(each.weight)
        yield Packed(each.name, each.layer, weight.data, weight.quant_state)


def _forget(_: Any, state: dict[str, Any], prefix: str, __: Any) -> None:
    """Leave a layer's weight and constants out of the state of a model: no checkpoint or result holds the base."""
    for name in [name for name in state if name.startswith(f"{prefix}weight")]:
        del state[name]
