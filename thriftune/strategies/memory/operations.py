"""What operations cost: FLOPs of matrix products, and bytes that everything reads and writes.

A device is then either busy computing, or waiting for its memory (the roofline model: Williams, Waterman and Patterson,
2009, https://doi.org/10.1145/1498765.1498785).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from thriftune.hardware import Precision

_PRECISIONS: dict[torch.dtype, Precision] = {torch.float16: "fp16", torch.bfloat16: "bf16"}
# They reserve memory or look at it in another way, and compute nothing.
_WITHOUT_WORK = frozenset(
    {
        torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default, torch.ops.aten.empty_strided.default,
        torch.ops.aten.new_empty.default, torch.ops.aten.new_empty_strided.default,
        torch.ops.aten._unsafe_view.default,  # noqa: SLF001 - torch's own names
        torch.ops.aten._local_scalar_dense.default,  # noqa: SLF001
        torch.ops.aten.lift_fresh.default,
    }
)  # fmt: skip
# They draw a random number for each element.
_DRAWING = frozenset({torch.ops.aten.bernoulli_, torch.ops.aten.bernoulli, torch.ops.aten.native_dropout})
# In place of a precision: what depends on weights alone, however many tokens there are.
OF_WEIGHTS = "weights"
# They read only as much of a table as they return.
_LOOKUPS = frozenset({torch.ops.aten.embedding.default, torch.ops.aten.index_select.default})


@dataclass(frozen=True, order=True)
class Operation:
    """One operation on a device.

    Attributes:
        precision: Precision of a matrix product; `OF_WEIGHTS`, or empty, for any other operation.
        flops: Floating-point operations of a matrix product; 0 for any other operation.
        traffic: Bytes that it reads and writes.
        drawn: Random numbers that it draws, as dropout does.
    """

    precision: Precision | str
    flops: int
    traffic: int
    drawn: int = 0

    def scaled(self, share: float) -> "Operation":
        """The operation over fewer rows.

        Args:
            share: How many, as a share of those that it has.
        """
        flops, traffic, drawn = (int(share * value) for value in (self.flops, self.traffic, self.drawn))
        return Operation(self.precision, flops, traffic, drawn)


class Operations(Counter[Operation]):
    """How often each operation runs."""

    def add(self, func: Callable[..., Any], args: Any, kwargs: dict[str, Any], result: Any) -> None:
        """Count an operation of torch, unless it does no work.

        Args:
            func: The operation, as a dispatch mode gets it.
            args: Its arguments.
            kwargs: Its keyword arguments.
            result: What it returned.
        """
        operator: Any = func
        if operator in _WITHOUT_WORK or operator.is_view:
            return
        flops = flop_registry.get(operator.overloadpacket)
        outputs = [one for one in tree_iter(result) if isinstance(one, torch.Tensor)]
        inputs = [one for one in tree_iter((args, kwargs)) if isinstance(one, torch.Tensor)]
        if flops is None:
            drawn = inputs[0].numel() if operator.overloadpacket in _DRAWING else 0
            self.count("", 0, outputs if operator in _LOOKUPS else inputs, outputs, drawn=drawn)
        else:
            self.count(precision_of(outputs[0]), flops(*args, **kwargs, out_val=result), inputs, outputs)

    def count(
        self,
        precision: Precision | str,
        flops: int,
        inputs: Iterable[torch.Tensor],
        outputs: Iterable[torch.Tensor],
        beside: int = 0,
        drawn: int = 0,
    ) -> None:
        """Count one operation.

        Args:
            precision: Precision of a matrix product; `OF_WEIGHTS`, or empty, for any other operation.
            flops: Its floating-point operations; 0 if it is no matrix product.
            inputs: What it reads.
            outputs: What it writes.
            beside: Bytes that it reads or writes besides these.
            drawn: Random numbers that it draws.
        """
        traffic = sum(one.numel() * one.element_size() for one in (*inputs, *outputs)) + beside
        self[Operation(precision, flops, traffic, drawn)] += 1


def product(rows: int, features: Sequence[int]) -> int:
    """FLOPs of the product of rows with a weight: a multiplication and an addition for each element.

    Args:
        rows: Number of rows.
        features: Numbers of output and input features.
    """
    return 2 * rows * features[0] * features[1]


def precision_of(tensor: torch.Tensor) -> Precision:
    """The precision of a product that makes a tensor."""
    return _PRECISIONS.get(tensor.dtype, "fp32")
