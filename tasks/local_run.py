"""Start and end of a local run: one folder for all its temporary files, and removal of what killed runs left."""

import atexit
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from flytekit.configuration import Config
from flytekit.core.data_persistence import flyte_tmp_dir

from tasks import settings
from thriftune import artifacts, scratch

# The prefix is not enough: a checkout of this package may lie beside it, under a name with the same prefix.
_PREFIX, _SUFFIX = "thriftune-", ".scratch"
_until_the_end = ExitStack()


def is_ours() -> bool:
    """Whether this process is a pyflyte command, and not another program that calls tasks, such as a test."""
    return Path(sys.argv[0]).stem == "pyflyte"


def begin() -> None:
    """Remove what killed runs left here, and put temporary files into a folder that only this run uses.

    torch, flytekit and others leave temporary files behind when they are killed, some of them always; and a checkpoint
    of a 7B model that waits for its upload has up to 300 GiB. With one folder for this run, all of it can be removed.
    """
    temporary = Path(tempfile.gettempdir())
    left = temporary.glob(f"{_PREFIX}{scratch.RANDOM}{_SUFFIX}")
    scratch.remove_left([*left, *artifacts.unfinished(settings.local_root())])
    settings.use_for_temporary_files(_until_the_end.enter_context(scratch.new_folder(temporary, _PREFIX, _SUFFIX)))
    # flytekit made these when it was imported. They contain its copies of our pages, which are also in the outputs.
    for made in (flyte_tmp_dir, Config().local_sandbox_path):
        _until_the_end.enter_context(scratch.removed(Path(made)))
    atexit.register(_until_the_end.close)
