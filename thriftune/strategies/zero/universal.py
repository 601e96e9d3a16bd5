"""Convert checkpoints of DeepSpeed ZeRO for another number of ranks than the one that wrote them.

Shards fit one number of ranks only. DeepSpeed's universal format holds every parameter and its optimizer state
whole instead, so that any number of ranks can take its own shards from it. Converting needs the shards of all ranks,
and twice as much free space until it is done.

The rows of each global batch stay the same (`thriftune.training.row_order`): with a global batch of b rows, optimizer
step k of an epoch, from 0, trains on rows k*b to (k+1)*b - 1 of the epoch's order, whatever the number of ranks.
"""

import contextlib
import copy
import io
import logging
import shutil
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from thriftune import artifacts, damage
from thriftune.disk import DiskFullError, free_bytes
from thriftune.errors import UserError

logger = logging.getLogger(__name__)

_GIB = 2**30
_MODEL_STATES = "model_states.pt"
_OPTIMIZER_STATES = "optim_states.pt"
# The name of the tag must begin like that of DeepSpeed's shards: transformers looks for that before it loads.
_SUFFIX = "_universal"


def to_universal(checkpoint: Path, destination: Path | None = None) -> Path:
    """Convert a checkpoint for any number of ranks. One process per node calls it, while the others wait.

    The result appears only when it is complete; one that exists already is used as it is. To resume from it, DeepSpeed
    needs `universal_config`, and the trainer calls `separate_steps` before its first step.

    For a training on the CPU `DS_ACCELERATOR` must be set before this call, which imports DeepSpeed.

    Args:
        checkpoint: `checkpoint-<step>` as the Trainer wrote it, with the shards of all ranks.
        destination: Directory to create; None for one beside the checkpoint.

    Returns:
        The directory to give to `Trainer.train(resume_from_checkpoint=...)`.

    Raises:
        FileNotFoundError: A shard is missing.
        UserError: The optimizer states are on NVMe.
        DiskFullError: The disk has no room for it.
    """
    # Not "checkpoint-<step>-...": the Trainer's rotation would take it for one of its checkpoints.
    destination = destination or checkpoint.with_name(f"universal-{checkpoint.name}")
    if damage.is_reusable(destination):
        return destination
    for abandoned in destination.parent.glob(f"{destination.name}.*.partial"):
        shutil.rmtree(abandoned, ignore_errors=True)
    shards = _shards_of(checkpoint)
    world_size = _require_whole(shards)
    size = _require_room(shards, destination)
    started = time.monotonic()
    logger.info("Converting %s, written by %d ranks (%.2f GiB), for any number of ranks", checkpoint, world_size, size)
    with artifacts.writing(destination, "converting a checkpoint") as directory:
        _convert(shards, directory / f"{shards.name}{_SUFFIX}")
        for file in checkpoint.iterdir():
            # Without `latest`, resuming from here in the ordinary way fails, instead of loading something wrong.
            if file.is_file() and file.name != "latest":
                shutil.copyfile(file, directory / file.name)
        about = {"source": checkpoint.name, "world_size": world_size}
        # Sizes only, no checksums: all ranks wait for this, and a 7B model has 84 GB.
        artifacts.write_manifest(directory, "checkpoint", about, checksums=False)
    logger.info("Converted it in %.0f s to %s", time.monotonic() - started, destination)
    return destination


def universal_config(deepspeed: dict[str, Any]) -> dict[str, Any]:
    """The DeepSpeed configuration that resumes from a converted checkpoint, as a new dictionary.

    Args:
        deepspeed: The complete configuration of the run, with the batch for the new number of ranks.
    """
    config = copy.deepcopy(deepspeed)
    config["checkpoint"] = {**config.get("checkpoint", {}), "load_universal": True}
    return config


def separate_steps(optimizer: Any) -> None:
    """Give every part of a rank's shard its own count of steps, after loading and before the first step.

    DeepSpeed gives all sub-groups of ZeRO-3 one and the same tensor when it loads a universal checkpoint
    (`load_hp_checkpoint_state_from_checkpoint_dir_stage3`, 0.19.8). torch's AdamW increments it in place, once for each
    sub-group: with 5 of them the loss of a tiny model is off by 0.04 after three steps, without any error. Remove
    when DeepSpeed copies it.

    Args:
        optimizer: The optimizer that the Trainer passes to its callbacks, wrapped or not. Changed in place; one whose
            counts are separate already stays as it is.
    """
    import torch

    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    for state in optimizer.state.values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = state["step"].clone()


def _shards_of(checkpoint: Path) -> Path:
    """The folder inside a checkpoint to which DeepSpeed wrote its shards."""
    latest = checkpoint / "latest"
    if not latest.is_file():
        raise FileNotFoundError(f"{latest} is missing: {checkpoint} is not a checkpoint that DeepSpeed wrote.")
    shards = checkpoint / latest.read_text(encoding="utf-8").strip()
    if not shards.is_dir():
        raise FileNotFoundError(f"{shards} is missing, and {latest} names it.")
    return shards


def _recorded(shards: Path) -> dict[str, Any]:
    """What DeepSpeed recorded beside the weights, without reading the weights."""
    import torch

    file = next(iter(sorted(shards.glob(f"*{_MODEL_STATES}"))), None)
    if file is None:
        raise FileNotFoundError(f"{shards / f'*{_MODEL_STATES}'} is missing: no rank's model states are here.")
    recorded: dict[str, Any] = torch.load(file, map_location="cpu", mmap=True, weights_only=False)
    return recorded


def _require_whole(shards: Path) -> int:
    """The number of ranks that wrote the shards, after a check that the shards of all of them are here.

    Checked here, since for most missing shards DeepSpeed only reports, late, that some shape does not fit.
    """
    if (shards / "offloaded_tensors").exists():
        raise UserError.single(
            "checkpoint",
            shards.parent,
            "holds optimizer states offloaded to NVMe, which DeepSpeed restores only on the same number of ranks.",
            "Resume with the number of ranks that wrote it, or offload to the CPU.",
        )
    world_size = int(_recorded(shards)["dp_world_size"])
    ranks = [f"zero_pp_rank_{rank}_mp_rank_00_" for rank in range(world_size)]
    prefix = "bf16_" if any(shards.glob(f"bf16_*{_OPTIMIZER_STATES}")) else ""
    files = [f"{prefix}{rank}{_OPTIMIZER_STATES}" for rank in ranks]
    # Below ZeRO-3 the model is not sharded, and one file holds it.
    is_cut = any(shards.glob(f"zero_pp_rank_*{_MODEL_STATES}"))
    files += [f"{rank}{_MODEL_STATES}" for rank in ranks] if is_cut else [f"mp_rank_00_{_MODEL_STATES}"]
    missing = [str(shards / name) for name in files if not (shards / name).is_file()]
    if missing:
        raise FileNotFoundError(f"A checkpoint of {world_size} ranks cannot be converted: missing {', '.join(missing)}")
    return world_size


def _require_room(shards: Path, destination: Path) -> float:
    """Size of the shards in GiB, after a check that the disk has room to convert them."""
    sizes = [file.stat().st_size for file in shards.iterdir()]
    # Everything once in pieces and once joined, and one rank's optimizer shard, which DeepSpeed copies as a whole.
    needed = 2 * sum(sizes) + max(sizes)
    if needed > free_bytes(destination):
        raise DiskFullError.at(destination, needed, "converting a checkpoint")
    return sum(sizes) / _GIB


def _convert(shards: Path, target: Path) -> None:
    """Run DeepSpeed's converter in this process: a fork of one that holds a GPU or a process group may hang."""
    from deepspeed.checkpoint import ds_to_universal

    arguments = Namespace(
        input_folder=str(shards),
        output_folder=str(target),
        num_extract_workers=1,
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        # Else DeepSpeed refuses ZeRO-1 and 2 for want of a description of tensor parallelism, which is not used here.
        inject_missing_state=True,
    )
    target.mkdir()
    with _output_to_log():
        ds_to_universal.main(arguments)
    _drop_copied_shard(target / "zero" / "optimizer_state.pt")


def _drop_copied_shard(file: Path) -> None:
    """Remove from the common optimizer state of ZeRO-3 what belongs to one rank.

    DeepSpeed (0.19.8) copies rank 0's whole shard into it, and every rank would load that into host memory to read the
    number of steps.
    """
    import torch

    content: dict[str, Any] = torch.load(file, map_location="cpu", mmap=True, weights_only=False)
    if content.pop("fp32_flat_groups", None) is None:  # below ZeRO-3 there is only what is common
        return
    optimizer = content["optimizer_state_dict"]
    common = {key: value for key, value in optimizer["state"][0].items() if key == "step"}
    content["optimizer_state_dict"] = {**optimizer, "state": {0: copy.deepcopy(common)}}
    small = file.with_suffix(".small")
    torch.save(content, small)
    small.replace(file)


@contextlib.contextmanager
def _output_to_log() -> Iterator[None]:
    """Send printed output and progress bars to the log, at level debug."""
    lines = _LogLines()
    with contextlib.redirect_stdout(lines), contextlib.redirect_stderr(lines):
        yield


class _LogLines(io.TextIOBase):
    """A text stream that logs every line written to it."""

    def write(self, text: str) -> int:
        for line in text.replace("\r", "\n").splitlines():
            if line.strip():
                logger.debug("%s", line.strip())
        return len(text)
