"""Names inside the prefix of an attempt, in one place."""

import re

ATTEMPTS = "attempts.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def checkpoint_name(step: int) -> str:
    """The folder of a checkpoint."""
    return f"checkpoint-{step}"


def manifest_name(step: int) -> str:
    """Written last; what makes a checkpoint whole."""
    return f"{checkpoint_name(step)}/manifest.json"


def parts_name(step: int) -> str:
    """The folder where nodes say what they uploaded."""
    return f"{checkpoint_name(step)}/parts"


def part_name(step: int, node: int) -> str:
    """What one node uploaded."""
    return f"{parts_name(step)}/node-{node}.json"


def problem_name(step: int, node: int) -> str:
    """Why one node did not deliver, so that the others need not wait for it."""
    return f"{parts_name(step)}/node-{node}.problem"


def file_name(step: int, node: int, name: str) -> str:
    """One file. By node: two may write the same name, as DeepSpeed does on node-local disks."""
    return f"{checkpoint_name(step)}/files/node-{node}/{name}"


def step_of(name: str) -> int | None:
    """The step of the checkpoint that a name belongs to; None for anything else."""
    match = _CHECKPOINT.fullmatch(name.partition("/")[0])
    return int(match[1]) if match else None
