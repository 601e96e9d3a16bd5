"""When a step runs out of memory: take fewer rows at a time, with the same rows per optimizer step."""

from dataclasses import dataclass

from thriftune.errors import UserError

# A plan that is wrong by more than a factor of 4 has a real error: better to stop and report it.
MAX_HALVINGS = 2


@dataclass(frozen=True)
class Halvings:
    """How often the micro batch of a run was made smaller.

    Attributes:
        count: Number of times.
        before: Micro batch that the plan gave, in rows.
        after: Micro batch at the end, in rows.
    """

    count: int
    before: int
    after: int


def halved(micro_batch: int, accumulation: int) -> tuple[int, int]:
    """The largest micro batch of at most half the size with which an optimizer step still takes the same rows.

    Args:
        micro_batch: Rows that a rank takes at a time.
        accumulation: Number of such passes per optimizer step.

    Returns:
        The new micro batch and accumulation, with the same product: 8 x 1 becomes 4 x 2, and 9 x 1 becomes 3 x 3.

    Raises:
        UserError: The micro batch is 1 already.
    """
    if micro_batch <= 1:
        raise UserError.single(
            "training.micro_batch",
            micro_batch,
            "a single row does not fit into memory.",
            "Lower data.max_length, turn training.gradient_checkpointing on, or ask for GPUs with more memory.",
        )
    rows = micro_batch * accumulation
    smaller = next(size for size in range(micro_batch // 2, 0, -1) if rows % size == 0)
    return smaller, rows // smaller
