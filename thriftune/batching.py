"""How a global batch is cut into micro batches (refused if it does not divide), and how many steps that makes."""

import math
from dataclasses import dataclass

from thriftune.errors import ConfigError

# Tensor cores want multiples of 8; padding to them costs at most 7 tokens a row.
PAD_MULTIPLE = 8


@dataclass(frozen=True)
class Batch:
    """A global batch cut into equal parts; `global_batch == micro_batch * accumulation * world_size`.

    Attributes:
        global_batch: Rows per optimizer step, over all ranks.
        micro_batch: Rows per rank and forward pass.
        accumulation: Forward passes per optimizer step.
        world_size: Ranks that train on different rows (1 for model-parallel QLoRA).
    """

    global_batch: int
    micro_batch: int
    accumulation: int
    world_size: int


def split_batch(global_batch: int, micro_batch: int, world_size: int) -> Batch:
    """Cut a global batch into accumulation steps.

    Args:
        global_batch: Rows per optimizer step over all ranks.
        micro_batch: Rows per rank and forward pass.
        world_size: Number of data-parallel ranks.

    Returns:
        The batch, with the accumulation filled in.

    Raises:
        ConfigError: A number below 1, or a global batch that is not a multiple of `micro_batch * world_size`.
    """
    for field, value in (
        ("training.global_batch", global_batch),
        ("training.micro_batch", micro_batch),
        ("world size", world_size),
    ):
        if value < 1:
            raise ConfigError.single(
                field, value, "must be at least 1.", "Write a positive whole number.", code="plan-does-not-fit"
            )
    per_pass = micro_batch * world_size
    accumulation, remainder = divmod(global_batch, per_pass)
    if remainder:
        lower, upper = accumulation * per_pass, (accumulation + 1) * per_pass
        near = str(upper) if lower == 0 else f"{lower} or {upper}"
        raise ConfigError.single(
            "training.global_batch",
            global_batch,
            f"is not a multiple of {per_pass} (micro_batch {micro_batch} x {world_size} ranks).",
            f"Use a global_batch of {near}, or another micro_batch.",
            code="plan-does-not-fit",
        )
    return Batch(global_batch, micro_batch, accumulation, world_size)


def steps_per_epoch(rows: int, global_batch: int) -> int:
    """Optimizer steps of one pass over the data; the last step may have fewer rows.

    Args:
        rows: Token rows to train on.
        global_batch: Rows per optimizer step.
    """
    return math.ceil(rows / global_batch)


def total_steps(per_epoch: int, epochs: float, max_steps: int | None) -> int:
    """Optimizer steps of a run.

    Args:
        per_epoch: Optimizer steps of one pass over the data.
        epochs: Passes over the data.
        max_steps: Number of steps; overrides `epochs` where given.

    Source:
        transformers 5.23, Trainer.set_initial_training_values
    """
    return max_steps or math.ceil(epochs * per_epoch)
