"""Names of files and folders under the prefix of a training."""

import re

LEASES = "lease"
# The page of the training while it goes on, and the folder of the lines that it is drawn of.
PAGE = "training.html"
LINES = "lines"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def checkpoint_name(step: int) -> str:
    """The folder of the checkpoint of a step."""
    return f"checkpoint-{step}"


def manifest_name(step: int) -> str:
    """The manifest, which is written last and makes a checkpoint complete."""
    return f"{checkpoint_name(step)}/manifest.json"


def parts_name(step: int) -> str:
    """The folder in which nodes record what they uploaded."""
    return f"{checkpoint_name(step)}/parts"


def part_name(step: int, node: int) -> str:
    """The record of what one node uploaded."""
    return f"{parts_name(step)}/node-{node}.json"


def problem_name(step: int, node: int) -> str:
    """The reason why one node uploaded nothing, so that the others need not wait for it."""
    return f"{parts_name(step)}/node-{node}.problem"


def file_name(step: int, node: int, name: str) -> str:
    """One file of a checkpoint. It contains the node, as two may write the same name: DeepSpeed does on local disks."""
    return f"{checkpoint_name(step)}/files/node-{node}/{name}"


def attempts_name(owner: str) -> str:
    """The folder in which the attempts of one node of an execution say where they begin."""
    return f"attempts/{owner}"


def attempt_name(owner: str, number: int) -> str:
    """Where one attempt says at which step it begins."""
    return f"{attempts_name(owner)}/{number:05}.json"


def lines_name(owner: str, number: int) -> str:
    """The lines that one attempt left."""
    return f"{LINES}/{owner}/{number:05}.jsonl"


def lease_name(number: int) -> str:
    """One lease of the prefix; the one with the highest number is in force."""
    return f"{LEASES}/{number:06}.json"


def step_of(name: str) -> int | None:
    """The step of the checkpoint that a name belongs to; None for anything else."""
    match = _CHECKPOINT.fullmatch(name.partition("/")[0])
    return int(match[1]) if match else None


def number_of(name: str) -> int | None:
    """The number of the attempt or lease that a name belongs to; None for anything else."""
    stem = name.rpartition("/")[2].removesuffix(".json")
    return int(stem) if stem.isdecimal() else None
