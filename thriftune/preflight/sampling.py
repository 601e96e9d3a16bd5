"""Read the first rows of every source, the same number of each."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from thriftune.config import DataConfig, RunConfig
from thriftune.data.conversion import formats
from thriftune.data.first_rows import FirstRows, Limit, first_rows
from thriftune.data.prepare import require_columns
from thriftune.data.selection import Mix, shares
from thriftune.limits import SAMPLE_BYTES
from thriftune.preflight.outcome import Outcome, attempt

logger = logging.getLogger(__name__)

_LEAST_ROWS = 1000
_BATCHES = 2
_FIELD = "data.source"


@dataclass(frozen=True)
class Sample:
    """The first rows of all sources."""

    sources: tuple[FirstRows, ...]

    @property
    def count(self) -> int:
        """Rows in it."""
        return sum(len(source.rows) for source in self.sources)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the data."""
        return all(source.is_whole for source in self.sources)

    def used_rows(self, data: DataConfig) -> list[int] | None:
        """Rows of each source that are used after mixing; None where a source does not say how many it has.

        Args:
            data: The data section.
        """
        totals = [source.total for source in self.sources if source.total is not None]
        if len(totals) < len(self.sources) or not all(totals):
            return None
        return shares(totals, Mix.of(data))


def wanted_rows(global_batch: int) -> int:
    """Rows to look at: a thousand, or those of two optimizer steps."""
    return max(_LEAST_ROWS, _BATCHES * global_batch)


def read(config: RunConfig, scratch: Path, token: str | None, table: Sequence[Path]) -> Outcome[Sample]:
    """Read the first rows of every source.

    Args:
        config: The run.
        scratch: Folder to download remote files to.
        token: Hub token.
        table: Parquet files of the workflow's table.

    Returns:
        The sample; or what is wrong with any of the sources.
    """
    data = config.data
    limit = Limit(math.ceil(wanted_rows(config.training.global_batch) / len(data.all_sources)), SAMPLE_BYTES)
    found: list[Outcome[FirstRows]] = []
    each = zip(data.source_fields, data.all_sources, formats(data), strict=True)
    for number, (section, source, row_format) in enumerate(each):
        logger.info("Preflight: the first %d rows of %s", limit.rows, source.source)
        folder, columns = scratch / f"source{number}", row_format.all_columns
        reading = partial(first_rows, source, limit, scratch=folder, token=token, table=table, columns=columns)
        begun = attempt(reading, _FIELD, source.source)
        named = (replace(problem, field=problem.field.replace("data", section, 1)) for problem in begun.findings)
        found.append(replace(begun, findings=tuple(named)))
    if bad := tuple(problem for outcome in found for problem in outcome.findings):
        return Outcome(findings=bad)
    sample = Sample(tuple(outcome.value for outcome in found if outcome.value is not None))
    lacking = attempt(lambda: require_columns([source.opened() for source in sample.sources], data), _FIELD, "")
    return Outcome(findings=lacking.findings) if lacking.failed else Outcome(sample)
