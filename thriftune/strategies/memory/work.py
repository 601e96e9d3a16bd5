"""The work of one forward and backward pass, and how long a device takes for it."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from thriftune.devices import Speed

if TYPE_CHECKING:
    from thriftune.strategies.memory.operations import Operation


@dataclass(frozen=True)
class Work:
    """Operations, and how often each one runs.

    Attributes:
        operations: Pairs of an operation and a number.
    """

    operations: "tuple[tuple[Operation, int], ...]" = ()

    @classmethod
    def of(cls, counted: "Counter[Operation]") -> "Work":
        """The work that was counted."""
        return cls(tuple(sorted((operation, count) for operation, count in counted.items() if count > 0)))

    def __add__(self, other: "Work") -> "Work":
        return Work.of(Counter(dict(self.operations)) + Counter(dict(other.operations)))

    def __sub__(self, other: "Work") -> "Work":
        return Work.of(Counter(dict(self.operations)) - Counter(dict(other.operations)))

    def __rmul__(self, times: int) -> "Work":
        return Work(tuple((operation, times * count) for operation, count in self.operations))

    def in_precision(self, old: str, new: str) -> "Work":
        """The same work with products in another precision.

        Args:
            old: The precision that is replaced.
            new: The precision in its place.
        """
        return Work(
            tuple(
                (replace(operation, precision=new) if operation.precision == old else operation, count)
                for operation, count in self.operations
            )
        )

    def with_fewer_tokens(self, share: float) -> "Work":
        """The same work over rows with fewer tokens: each operation computes and moves less in the same proportion.

        Dequantization of weights does not: it is done for a row of any length.

        Args:
            share: Number of tokens, as a share of those here.
        """
        from thriftune.strategies.memory.operations import OF_WEIGHTS

        return Work(
            tuple(
                (operation if operation.precision == OF_WEIGHTS else operation.scaled(share), count)
                for operation, count in self.operations
            )
        )

    @property
    def flops(self) -> int:
        """Floating-point operations of the matrix products."""
        return sum(operation.flops * count for operation, count in self.operations)

    @property
    def traffic(self) -> int:
        """Bytes that are read and written by what is no matrix product."""
        return sum(operation.traffic * count for operation, count in self.operations if not operation.flops)

    @property
    def count(self) -> int:
        """Number of operations that are started."""
        return sum(count for _, count in self.operations)

    def products_seconds(self, speed: Speed) -> float:
        """Seconds of the matrix products: each computes, or waits for the memory.

        Args:
            speed: The device's.
        """
        return sum(
            count * max(operation.flops / speed.of(operation.precision), operation.traffic / speed.bandwidth)
            for operation, count in self.operations
            if operation.flops
        )

    def memory_seconds(self, speed: Speed) -> float:
        """Seconds of everything else, which waits for the memory, or draws random numbers.

        Args:
            speed: The device's.
        """
        drawn = sum(operation.drawn * count for operation, count in self.operations)
        return self.traffic / speed.bandwidth + drawn * speed.draw


_NONE = Work()


@dataclass(frozen=True)
class PassWork:
    """The work of one pass over a model.

    Attributes:
        forward: The forward pass.
        backward: The backward pass, with the layers that are computed again.
    """

    forward: Work = _NONE
    backward: Work = _NONE

    @property
    def whole(self) -> Work:
        """Both."""
        return self.forward + self.backward

    def in_precision(self, old: str, new: str) -> "PassWork":
        """The same work with products in another precision.

        Args:
            old: The precision that is replaced.
            new: The precision in its place.
        """
        return PassWork(self.forward.in_precision(old, new), self.backward.in_precision(old, new))

    def __add__(self, other: "PassWork") -> "PassWork":
        return PassWork(self.forward + other.forward, self.backward + other.backward)

    def __sub__(self, other: "PassWork") -> "PassWork":
        return PassWork(self.forward - other.forward, self.backward - other.backward)

    def __rmul__(self, times: int) -> "PassWork":
        return PassWork(times * self.forward, times * self.backward)


NOTHING = PassWork()
