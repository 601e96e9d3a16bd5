"""Progress bars for anything that takes more than a few seconds."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm

_LATE_S = 2.0  # anything faster needs no bar


def progress(total: int, what: str) -> "tqdm[None]":
    """A bar that counts rows.

    Args:
        total: Number of rows.
        what: What is being done with them.
    """
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit=" rows", mininterval=_interval())


def bytes_progress(total: int, what: str) -> "tqdm[None]":
    """A bar that counts bytes, shown only if the work takes a while.

    Args:
        total: Number of bytes.
        what: What is being done with them.
    """
    from tqdm import tqdm

    return tqdm(total=total, desc=what, unit="B", unit_scale=True, mininterval=_interval(), delay=_LATE_S, leave=False)


def _interval() -> float:
    return 0.2 if sys.stderr.isatty() else 15  # a pod's log keeps every update of the bar
