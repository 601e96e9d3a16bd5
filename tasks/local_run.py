"""What a local run does first and last: one folder for all its temporary files, and nothing of a killed one's left."""

import atexit
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tasks import settings
from thriftune import artifacts, scratch

_PREFIX = "thriftune-"
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
    scratch.remove_left([*temporary.glob(f"{_PREFIX}*"), *artifacts.unfinished(settings.local_root())])
    folder = _until_the_end.enter_context(scratch.folder(temporary, _PREFIX))
    settings.use_for_temporary_files(folder)
    atexit.register(_until_the_end.close)
