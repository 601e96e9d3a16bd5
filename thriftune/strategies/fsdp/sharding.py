"""Shard a mapped model over the ranks: each rank reads its own rows of each weight from the files, and nothing else.

The model is put on the meta device, sharded there with torch's `fully_shard`, and then gets the rows of this rank, one
weight after another. So the peak of host and device memory is a rank's shards, and for a weight in 4 bits that one
weight. The Trainer is told that the model knows its own placement (`_is_distributed_loading_by_transformers`, as
transformers marks what its own `from_pretrained(distributed_config=...)` sharded): it then neither wraps nor moves the
model, on GPUs and on CPUs alike. Through accelerate's own FSDP plugin nothing would be sharded on a CPU
(accelerate 1.15: its state leaves MULTI_CPU out), without any message.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thriftune import distributed
from thriftune.models.classifier import head_of
from thriftune.strategies.fsdp.policy import held_as, rows_of, unit_names
from thriftune.strategies.mapped import give_back_pages
from thriftune.strategies.quantized_loading import Unquantized, packed

if TYPE_CHECKING:
    import torch
    from torch.distributed.device_mesh import DeviceMesh

    _Parameter = torch.nn.Parameter
    _Place = tuple[torch.nn.Module, str]


@dataclass(frozen=True)
class Sharding:
    """How a model is sharded.

    Attributes:
        computes_in: Type of gathered weights.
        reduces_in: Type that gradients are summed in.
        device: Where this rank computes.
        wrap: Classes of the modules whose weights are gathered together; None for the decoder layers.
        reshards: Whether gathered weights are freed between the forward and the backward pass.
        offloads: Whether shards are in host memory; only for GPUs.
    """

    computes_in: "torch.dtype"
    reduces_in: "torch.dtype"
    device: "torch.device"
    wrap: tuple[str, ...] | None = None
    reshards: bool = True
    offloads: bool = False


def make_blank(layers: Iterable[Unquantized], dtype: "torch.dtype") -> None:
    """Give layers in 4 bits weights without content, for a method to put adapters on.

    peft makes adapters on the device of the weight that they are on: on the meta device they would be lost.

    Args:
        layers: Layers of a mapped model; `shard` gives them their weights.
        dtype: Type that 4-bit numbers are stored in.
    """
    import torch
    from bitsandbytes.nn.modules import Params4bit

    for each in layers:
        stored = torch.zeros(1, 1, dtype=dtype).expand((each.weight.numel() + 1) // (2 * dtype.itemsize), 1)
        each.layer.weight = Params4bit(
            stored,
            requires_grad=False,
            compress_statistics=each.blank.compress_statistics,
            quant_type=each.blank.quant_type,
            quant_storage=dtype,
            bnb_quantized=True,
        )


def shard(model: Any, layers: Sequence[Unquantized], sharding: Sharding) -> None:
    """Shard a mapped model, whose method has prepared it. Collective: every rank calls it.

    Args:
        model: The model; its parameters become DTensors.
        layers: Its layers in 4 bits, after `make_blank`.
        sharding: How.
    """
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(sharding.device.type, (distributed.current_rank().world_size,))
    mapped = _to_meta(model, sharding)
    _fully_shard(model, mesh, sharding)
    _fill(model, mapped, layers, sharding)
    base = _base(model)
    base._is_distributed_loading_by_transformers = True  # noqa: SLF001 - see above
    base._is_fsdp_managed_module = True  # noqa: SLF001 - `generate` goes on until all ranks are done


def _places(model: "torch.nn.Module") -> "Iterator[tuple[torch.nn.Module, str, _Parameter]]":
    """Every place of a parameter: tied weights have several."""
    for module in model.modules():
        for key, parameter in list(module.named_parameters(recurse=False)):
            yield module, key, parameter


def _to_meta(model: "torch.nn.Module", sharding: Sharding) -> "dict[_Place, _Parameter]":
    """Put parameters on the meta device, in the type they are held in; returns what each of them was."""
    import torch

    blanks: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
    mapped: dict[_Place, _Parameter] = {}
    for module, key, parameter in _places(model):
        mapped[module, key] = parameter
        if parameter not in blanks:
            dtype = held_as(parameter, sharding.computes_in)
            blank = torch.empty(parameter.shape, dtype=dtype, device="meta")
            blanks[parameter] = torch.nn.Parameter(blank, requires_grad=parameter.requires_grad)
        module.register_parameter(key, blanks[parameter])
    return mapped


def _fully_shard(model: Any, mesh: "DeviceMesh", sharding: Sharding) -> None:
    """Make units of a model. Embeddings and head are units of their own, unless they are one weight."""
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        MixedPrecisionPolicy,
        OffloadPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    policy: dict[str, Any] = {
        "mesh": mesh,
        # Autocast converts what layers exchange, and nothing does where the model is measured in fp32.
        "mp_policy": MixedPrecisionPolicy(sharding.computes_in, sharding.reduces_in, cast_forward_inputs=False),
        "offload_policy": CPUOffloadPolicy() if sharding.offloads else OffloadPolicy(),
    }
    base = _base(model)
    for name in sorted(unit_names(base, sharding.wrap), key=lambda name: -name.count(".")):  # inner units first
        fully_shard(base.get_submodule(name), **policy, reshard_after_forward=sharding.reshards)
    embedding, head = base.get_input_embeddings(), head_of(base)
    if embedding is not None and head is not None and embedding.weight is not head.weight:
        fully_shard(embedding, **policy, reshard_after_forward=sharding.reshards)
        fully_shard(head, **policy, reshard_after_forward=False)  # its backward pass follows at once
    fully_shard(model, **policy)
    if hasattr(model, "generate"):  # a classifier writes nothing
        register_fsdp_forward_method(model, "generate")


def _fill(
    model: "torch.nn.Module", mapped: "dict[_Place, _Parameter]", layers: Iterable[Unquantized], sharding: Sharding
) -> None:
    """Give every parameter of a model that was sharded on the meta device this rank's rows of its weight."""
    rank = distributed.current_rank()
    done: dict[int, Any] = {}
    for each in packed(layers, sharding.computes_in, sharding.device):
        rows = rows_of(rank.index, rank.world_size, len(each.weight))
        done[id(mapped[each.layer, "weight"])] = _held(each.layer.weight, each.weight[rows], sharding)
        each.layer.quant_state = each.quant_state  # from which bitsandbytes restores it where sharding loses the class
    for module, key, parameter in _places(model):
        source = mapped[module, key]
        if id(source) not in done:
            own = source.data[rows_of(rank.index, rank.world_size, len(source))]
            done[id(source)] = _held(parameter, own, sharding)
            give_back_pages(own)
        module.register_parameter(key, done[id(source)])


def _held(blank: Any, rows: "torch.Tensor", sharding: Sharding) -> "torch.nn.Parameter":
    """A parameter of a model that was sharded on the meta device, with content."""
    import torch
    from torch.distributed.tensor import DTensor

    device = torch.device("cpu") if sharding.offloads else sharding.device
    local = rows.to(device=device, dtype=blank.dtype, copy=True)
    # As `fully_shard` itself makes them; `from_local` would move what is offloaded to the device of the mesh.
    whole = DTensor(local, blank._spec, requires_grad=False)  # noqa: SLF001
    return torch.nn.Parameter(whole, requires_grad=blank.requires_grad)


def _base(model: Any) -> Any:
    """The model of transformers that adapters may be on."""
    return model.get_base_model() if hasattr(model, "peft_config") else model
