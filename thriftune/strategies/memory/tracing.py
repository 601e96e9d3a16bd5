"""Count live bytes and operations while code runs on torch's meta device, where tensors have no data.

The model's own forward and backward pass are executed, so that the count is right for every architecture of
transformers, with what grouped-query attention, tied embeddings or experts keep for their backward pass. Four
things differ between the meta device and the real one, and are replaced here while a model is traced: attention (the
meta device takes torch's slow path, which stores every score), autocast (it does nothing there), grouped products of
experts (the meta device knows them in bf16 only) and 4-bit layers (they have no data to dequantize).
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from thriftune.strategies.memory import stand_ins
from thriftune.strategies.memory.operations import Operations

# The operations of language models that torch.autocast runs in 16 bits.
# Source: https://docs.pytorch.org/docs/stable/amp.html, "CUDA Ops that can autocast to float16".
_IN_16_BITS: frozenset[Callable[..., Any]] = frozenset(
    (
        functional.linear, torch.matmul, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum,
        torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.mm, torch.Tensor.bmm,
    )
)  # fmt: skip


class LiveBytes(TorchDispatchMode):
    """Counts operations, the bytes of all tensors made inside the block that are still alive, and their highest sum.

    Attributes:
        operations: The operations until now.
        live: Bytes alive now.
        peak: Highest value of `live` so far.
        small_live: Bytes of tensors below `small` that are alive now.
        small_peak: Highest value of `small_live` so far.
    """

    operations: Operations
    live: int
    peak: int
    small_live: int
    small_peak: int

    def __init__(self, known: Iterable[torch.Tensor], small: int) -> None:
        """Start with no bytes counted.

        Args:
            known: Tensors not to count: weights and buffers, which are counted elsewhere.
            small: Bytes below which a tensor is small.
        """
        super().__init__()
        self.operations = Operations()
        self.live = 0
        self.peak = 0
        self.small_peak = 0
        self._small = small
        self.small_live = 0
        self._sizes = {_address(tensor.untyped_storage()): 0 for tensor in known}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:  # noqa: SLF001 - what `.item()` calls
            return True  # transformers asks whether rows have no padding and are not packed, to leave out the mask
        result = func(*args, **(kwargs or {}))
        self.operations.add(func, args, kwargs or {}, result)
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def __enter__(self) -> "LiveBytes":
        stand_ins.told.append(self.operations)
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        stand_ins.told.pop()

    def _count(self, storage: Any) -> None:
        key = _address(storage)
        if key in self._sizes:
            return
        self._sizes[key] = size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        if size < self._small:
            self.small_live += size
            self.small_peak = max(self.small_peak, self.small_live)
        weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        size = self._sizes.pop(key)
        self.live -= size
        if size < self._small:
            self.small_live -= size


class RealDevice(TorchFunctionMode):
    """Makes the meta device keep what a real device keeps for attention, experts, and autocast where it is used."""

    def __init__(self, autocast: torch.dtype | None) -> None:
        """Replace attention and grouped products, and cast what autocast casts.

        Args:
            autocast: The 16-bit type that autocast computes in, or None without autocast.
        """
        super().__init__()
        self.autocast = autocast
        self._cached: dict[int, torch.Tensor] = {}

    def leave_autocast(self) -> None:
        """Forget the 16-bit copies of trained weights, as torch does at the end of the forward pass."""
        self._cached.clear()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        is_attention = func is functional.scaled_dot_product_attention
        if self.autocast and (is_attention or func in _IN_16_BITS):
            args, kwargs = tree_map(self._cast, (args, kwargs))
        if is_attention:
            return stand_ins.fused_attention(*args, **kwargs)
        if func is torch._grouped_mm:  # noqa: SLF001 - what transformers calls for experts
            return stand_ins.grouped_product(*args, **kwargs)
        return func(*args, **kwargs)

    def _cast(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.dtype != torch.float32:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(self.autocast)
        if id(value) not in self._cached:  # autocast casts a trained weight once for all its uses
            self._cached[id(value)] = value.to(self.autocast)
        return self._cached[id(value)]


@contextmanager
def meta_autocast_ignored() -> Iterator[None]:
    """Let code turn autocast off on its tensors' device also where that is the meta device, which has no autocast."""
    real = torch.autocast

    def autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return nullcontext() if device_type == "meta" else real(device_type, *args, **kwargs)

    with mock.patch.object(torch, "autocast", autocast):
        yield


@contextmanager
def dequantized_on_meta(dtype: torch.dtype) -> Iterator[None]:
    """Let DoRA have the whole weight of a 4-bit layer on the meta device, in the type of its products.

    peft (0.21) computes the norm of each weight from it, when adapters are made and in every pass.

    Args:
        dtype: That type.
    """
    from peft.tuners.lora import dora as peft_dora

    dora: Any = peft_dora
    real = dora.dequantize_module_weight

    def dequantized(module: Any) -> torch.nn.Parameter:
        if type(module.weight).__name__ != "Params4bit":
            whole: torch.nn.Parameter = real(module)
            return whole
        features = (module.out_features, module.in_features)
        return torch.nn.Parameter(torch.empty(features, dtype=dtype, device="meta"), requires_grad=False)

    with mock.patch.object(dora, "dequantize_module_weight", dequantized), mock.patch.object(dora, "deepcopy", _itself):
        yield


def _itself(module: Any) -> Any:
    """What stands for a copy of a 4-bit layer, which bitsandbytes cannot make on the meta device."""
    return module


def _address(storage: Any) -> int:
    """An identity of a storage that fake tensors have too; torch has no public name for it."""
    return int(storage._cdata)  # noqa: SLF001
