"""Read and write the ledger: a folder, here or in a blob store, with one small file for each run.

Nothing that goes wrong with it ends a run or a planning: it is said once, in the log.
"""

import logging
import re
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

from thriftune.errors import ThriftuneError, TransientError, UserError, in_a_line
from thriftune.planning.ledger.record import Record, from_json
from thriftune.stores.store import Store

logger = logging.getLogger(__name__)

# The time of a run, to sort by, and a part that no other run has: nobody writes over another's.
_NAME = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{12}(?P<trial>-trial)?\.json")
# Newest records of trainings, and of calibrations, that a planning reads. More of them change nothing, and take long to
# fetch from a blob store. A calibration is not forgotten because many trainings came after it.
_MOST = 400
# A record has about 1 KiB.
_LARGEST_BYTES = 64 << 10
_AT_ONCE = 8


def read(place: str, most: int | None = _MOST) -> list[Record]:
    """The newest records of a ledger, in the order of their time. What is not a record is left out, with one warning.

    Args:
        place: Directory, s3:// or gs:// URL. None need be there.
        most: Number of trainings, and of calibrations; None for all.

    Returns:
        The records; none, with a warning, if the ledger cannot be read.
    """
    try:
        store = Store(place).without_retries()
        sizes = store.sizes()
        names = _newest(sizes, most)
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            found = dict(zip(names, threads.map(_reader(store, sizes), names), strict=True))
    except (ThriftuneError, OSError) as error:
        logger.warning(
            "The ledger %s cannot be read, and nothing is learned from earlier runs: %s", place, _cause(error)
        )
        return []
    left_out = {name: "not a record of a run" for name in sizes if not _NAME.fullmatch(name)}
    left_out |= {name: reason for name, reason in found.items() if isinstance(reason, str)}
    if left_out:
        first = min(left_out)
        logger.warning(
            "%d of the %d files in the ledger %s are left out: damaged, or not records of runs. The first: %s (%s)",
            len(left_out), len(sizes), place, first, left_out[first],
        )  # fmt: skip
    return [record for record in found.values() if isinstance(record, Record)]


def _newest(names: Iterable[str], most: int | None) -> list[str]:
    """The names of the newest records of both kinds, in the order of their time."""
    found = {name: match["trial"] for name in names if (match := _NAME.fullmatch(name))}
    kinds = ([name for name in sorted(found) if bool(found[name]) == is_trial] for is_trial in (False, True))
    return sorted(name for kind in kinds for name in (kind if most is None else kind[-most:]))


def write(place: str, record: Record) -> bool:
    """Add a record to a ledger.

    Args:
        place: Directory, s3:// or gs:// URL.
        record: The record.

    Returns:
        Whether it was written; if not, this is said in the log.
    """
    name = f"{record.when:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:12]}{'-trial' if record.trial else ''}.json"
    try:
        Store(place).put_bytes(name, record.as_json())
    except (ThriftuneError, OSError) as error:
        logger.warning(
            "The ledger %s cannot be written, and later plans do not learn from this run: %s", place, _cause(error)
        )
        return False
    return True


def _reader(store: Store, sizes: dict[str, int]) -> Callable[[str], Record | str]:
    """A function that reads a file of a ledger: a record, or why it is none."""

    def read_one(name: str) -> Record | str:
        if sizes[name] > _LARGEST_BYTES:
            return f"{sizes[name]} bytes, and a record has at most {_LARGEST_BYTES}"
        try:
            content = store.get_bytes(name)
        except TransientError:
            raise  # the others would not be read either
        except (UserError, OSError) as error:
            return _cause(error)
        try:
            return "removed meanwhile" if content is None else from_json(content)
        except (ValueError, RecursionError) as error:
            return in_a_line(error)

    return read_one


def _cause(error: ThriftuneError | OSError) -> str:
    """An error in a line, without the headline of its class, which is about checkpoints."""
    return error.problems[0].message if isinstance(error, UserError) else in_a_line(error)
