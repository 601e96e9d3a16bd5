"""What a local run does first and last: one folder for all its temporary files, and nothing of a killed one's left."""

import atexit
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from flytekit.configuration import Config
from flytekit.core.data_persistence import flyte_tmp_dir

from tasks import settings
from thriftune import artifacts, scratch

# Not the prefix alone: a checkout of this package may lie beside it, under a name of that beginning.
_PREFIX, _SUFFIX = "thriftune-", ".scratch"
_until_the_end = ExitStack()


def is_ours() -> bool:
    """Whether this process is a command of ours and not one of somebody else's that calls tasks, as a test does."""
    return Path(sys.argv[0]).stem == "pyflyte"


def begin() -> None:
    """Remove what runs that were killed left here, and make temporary files in a folder of this run alone.

    torch, flytekit and others leave theirs behind when they are killed, some of them always; and a checkpoint of a 7B
    model on its way is up to 300 GiB. What a process of this run makes is in one place, and goes with it.
    """
    temporary = Path(tempfile.gettempdir())
    left = temporary.glob(f"{_PREFIX}{scratch.RANDOM}{_SUFFIX}")
    scratch.remove_left([*left, *artifacts.unfinished(settings.local_root())])
    settings.use_for_temporary_files(_until_the_end.enter_context(scratch.new_folder(temporary, _PREFIX, _SUFFIX)))
    # flytekit made these when it was imported. They hold its copies of our pages, which are among the outputs.
    for made in (flyte_tmp_dir, Config().local_sandbox_path):
        _until_the_end.enter_context(scratch.removed(Path(made)))
    atexit.register(_until_the_end.close)
