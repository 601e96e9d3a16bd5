"""Where the checkpoints of a training lie: under Flyte's prefixes for them, or beside the results of a local run."""

import logging
import tempfile
from pathlib import Path

from flytekit import FlyteContextManager, current_context

from tasks import settings
from thriftune import artifacts, distributed
from thriftune.checkpoints.attempts import begin_attempt
from thriftune.checkpoints.resumption import CheckpointPlace

logger = logging.getLogger("thriftune.tasks.checkpoints")


def checkpoint_place(run_name: str) -> CheckpointPlace:
    """The place of this attempt's checkpoints and of those of the attempt before: the first thing that a training asks.

    Args:
        run_name: Name of the run.
    """
    if settings.is_local():
        here, previous = str(settings.result_place(run_name, "checkpoints")), ""
    else:
        flyte = current_context().checkpoint
        # flytekit's own ways to either read and write files; the places themselves have no public name.
        here, previous = str(flyte._checkpoint_dest), str(flyte._checkpoint_src or "")  # noqa: SLF001
        use_credentials_of_flyte(here)
    # As early as can be: an attempt that dies before it hides those before it from those after it.
    begin_attempt(here, previous)
    if distributed.current_rank().is_main:
        logger.info("Checkpoints go to %s", here)
    scratch = Path(tempfile.gettempdir()) / f"thriftune-checkpoints-{artifacts.key_of(here)}"
    return CheckpointPlace(here, previous, scratch, settings.PLATFORM.grace_seconds)


def use_credentials_of_flyte(place: str) -> None:
    """Let fsspec reach the store as flytekit does, which may know it by variables of its own (FLYTE_AWS_ENDPOINT).

    Args:
        place: Any place in that store; on a disk nothing is needed.
    """
    import fsspec
    from flytekit.core.data_persistence import get_fsspec_storage_options

    protocol, separator, _ = place.partition("://")
    if not separator:
        return
    known = get_fsspec_storage_options(protocol, FlyteContextManager.current_context().file_access.data_config)
    fsspec.config.conf.setdefault(protocol, {}).update(known)
