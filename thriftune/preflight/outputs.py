"""Whether the results of a run can be written: to the bucket of a cluster, or to the folders of a local run."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from thriftune.disk import DiskFullError, existing, free_bytes, refusal, temporary
from thriftune.errors import Problem, ThriftuneError
from thriftune.planning.memory import disk
from thriftune.training_plan import TrainingPlan

OUTPUTS, TEMPORARY = "THRIFTUNE_OUTPUTS", "TMPDIR"
# Settings of places in a store.
RAW_OUTPUT, CHECKPOINTS = "THRIFTUNE_RAW_OUTPUT", "THRIFTUNE_CHECKPOINTS"
# What goes there, and how to name another place.
_DESTINATIONS = {
    RAW_OUTPUT: (
        "the run's models and data go",
        f"{RAW_OUTPUT} for launch plans, --raw-output-data-prefix for pyflyte run",
    ),
    CHECKPOINTS: ("checkpoints go", CHECKPOINTS),
}
_CODE = "output-not-writable"
_GIB = 2**30


def check(tried: Mapping[str, tuple[str, str]]) -> Iterator[Problem]:
    """Whether a run can write to the store.

    Args:
        tried: By the setting that says where: bucket and prefix; and what the store refused when writing was tried, in
            whole sentences. That is empty if it worked.
    """
    for setting, (place, refused) in tried.items():
        if refused:
            what, otherwise = _DESTINATIONS[setting]
            message = f"is where {what}, and cannot be written: {refused}"
            yield Problem.coded(_CODE, setting, place, message, f"Or name another place: {otherwise}.")


def check_local(folder: Path | None, plan: TrainingPlan | ThriftuneError, keep_checkpoints: int) -> Iterator[Problem]:
    """Whether a local run can write its results and its temporary files, and has room for them.

    Args:
        folder: Where results go; it need not exist. None for a run on a cluster.
        plan: Its plan, which says how much it writes; or the error that planning raised.
        keep_checkpoints: Number of checkpoints that are kept.
    """
    if folder is None:
        return
    places = {OUTPUTS: folder, TEMPORARY: temporary()}
    refused = False
    for setting, place in places.items():
        error = refusal(place, "what the run makes" if setting == OUTPUTS else "temporary files")
        if isinstance(error, DiskFullError):
            yield Problem.coded(_CODE, setting, place, f"{error}")
        elif error is not None:
            yield from error.problems
        refused = refused or error is not None
    if not refused and isinstance(plan, TrainingPlan):
        yield from _room(places, needed(plan, keep_checkpoints))


def needed(plan: TrainingPlan, keep_checkpoints: int) -> dict[str, float]:
    """GiB that a local run writes, by the setting that says where.

    Args:
        plan: Its plan.
        keep_checkpoints: Number of checkpoints that are kept; there is one more while it is written.
    """
    items = plan.memory.disk
    at_once = items.get(disk.CHECKPOINTS, 0.0)
    kept = at_once / disk.CHECKPOINTS_AT_ONCE * (keep_checkpoints + 1)
    return {OUTPUTS: items.get(disk.MODELS, 0.0) + kept, TEMPORARY: at_once + items.get(disk.OFFLOADED, 0.0)}


def _room(places: dict[str, Path], needs: dict[str, float]) -> Iterator[Problem]:
    """Compare the free space of each disk with all that will be written there."""
    disks: dict[int, list[str]] = {}
    for setting, place in places.items():
        disks.setdefault(existing(place).stat().st_dev, []).append(setting)
    for settings in disks.values():
        wanted, place = sum(needs[setting] for setting in settings), places[settings[0]]
        free = free_bytes(place) / _GIB
        if wanted > free:
            yield Problem.coded(
                "output-too-little-room",
                " and ".join(settings),
                place,
                f"{wanted:.1f} GiB are needed there for models and checkpoints, and {free:.1f} GiB are free.",
                "Free some, or name a larger disk; checkpoints.keep_checkpoints: 1 keeps fewer.",
            )
