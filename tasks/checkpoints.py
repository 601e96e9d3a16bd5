"""Where the checkpoints of a training are: under Flyte's prefixes for checkpoints, or beside a local run's results."""

import logging
import tempfile
from pathlib import Path

from flytekit import current_context

from tasks import settings
from thriftune import artifacts, distributed
from thriftune.checkpoints.attempts import begin_attempt
from thriftune.checkpoints.resumption import CheckpointLocation

logger = logging.getLogger("thriftune.tasks.checkpoints")


def checkpoint_location(run_name: str) -> CheckpointLocation:
    """Where this attempt and the one before keep their checkpoints. A training calls this first.

    Args:
        run_name: Name of the run.
    """
    if settings.is_local():
        here, previous = str(settings.result_path(run_name, "checkpoints")), ""
    else:
        flyte = current_context().checkpoint
        # flytekit offers only functions that read and write there; the prefixes themselves have no public name.
        here, previous = str(flyte._checkpoint_dest), str(flyte._checkpoint_src or "")  # noqa: SLF001
    # As early as possible: if an attempt dies before this call, later attempts cannot find the earlier ones.
    begin_attempt(here, previous)
    if distributed.current_rank().is_main:
        logger.info("Checkpoints go to %s", here)
    scratch = Path(tempfile.gettempdir()) / f"thriftune-checkpoints-{artifacts.key_of(here)}"
    return CheckpointLocation(here, previous, scratch, settings.PLATFORM.grace_seconds)
