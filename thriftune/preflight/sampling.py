"""The first rows of every source, read as data preparation reads them, without reading or downloading the rest."""

import itertools
import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import hub
from thriftune.config import DataConfig, DataSource, RunConfig
from thriftune.data import parquet, prepare, readers, sources
from thriftune.data.conversion import formats
from thriftune.data.examples import RawRow
from thriftune.data.selection import shares
from thriftune.data.sources import TABLE, NumberedRow, OpenSource
from thriftune.errors import DataError, Problem, TransientError
from thriftune.limits import SAMPLE_BYTES, size_of
from thriftune.preflight.access import permitted
from thriftune.preflight.outcome import Outcome, attempt

if TYPE_CHECKING:
    from datasets import IterableDataset

logger = logging.getLogger(__name__)

_LEAST_ROWS = 1000
_BATCHES = 2
_FIELD = "data.source"
# Files of this size together are counted to the end, which takes seconds; of larger ones only Parquet says how many
# rows it has.
_COUNTED_BYTES = 1 << 28


@dataclass(frozen=True)
class SampledSource:
    """The first rows of a source.

    Attributes:
        name: As the configuration names it.
        columns: What its rows have.
        rows: The rows.
        total: Rows of the whole source; None where nobody says without reading it.
        is_whole: Whether these are all of them.
    """

    name: str
    columns: tuple[str, ...]
    rows: list[NumberedRow]
    total: int | None
    is_whole: bool

    def opened(self) -> OpenSource:
        """These rows as a source of data preparation."""
        return OpenSource(self.name, self.columns, len(self.rows), lambda: iter(self.rows))


@dataclass(frozen=True)
class Sample:
    """The first rows of all sources."""

    sources: tuple[SampledSource, ...]

    @property
    def count(self) -> int:
        """Rows in it."""
        return sum(len(source.rows) for source in self.sources)

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the data."""
        return all(source.is_whole for source in self.sources)

    def used_rows(self, data: DataConfig) -> int | None:
        """Rows of all sources that `max_rows` and the weights leave; None where a source does not say how many it has.

        Args:
            data: The data section.
        """
        totals = [source.total for source in self.sources if source.total is not None]
        if len(totals) < len(self.sources) or not all(totals):
            return None
        weights = [source.weight for source in data.sources if source.weight is not None]
        return sum(shares(totals, weights or None, data.max_rows))


def wanted_rows(global_batch: int) -> int:
    """Rows to look at: a thousand, or those of two optimizer steps."""
    return max(_LEAST_ROWS, _BATCHES * global_batch)


def read(config: RunConfig, scratch: Path, token: str | None, table: Sequence[Path]) -> Outcome[Sample]:
    """Read the first rows of every source, as many of each.

    Args:
        config: The run.
        scratch: Folder to bring remote files to.
        token: Hub token.
        table: Parquet files of the workflow's table.

    Returns:
        The sample; or what is wrong with any of the sources.
    """
    data = config.data
    each = math.ceil(wanted_rows(config.training.global_batch) / len(data.all_sources))
    found: list[Outcome[SampledSource]] = []
    for number, source in enumerate(data.all_sources):
        logger.info("Preflight: the first %d rows of %s", each, source.source)
        columns = formats(data)[number].all_columns
        reader = _Reader(source, each, columns, scratch / f"source{number}", token, tuple(table))
        named = reader.read()
        findings = tuple(_in_section(f, f"data.sources.{number}") if data.sources else f for f in named.findings)
        found.append(replace(named, findings=findings))
    bad = tuple(itertools.chain.from_iterable(outcome.findings for outcome in found))
    if bad:
        return Outcome(findings=bad)
    sample = Sample(tuple(outcome.value for outcome in found if outcome.value is not None))
    lacking = attempt(lambda: _require_columns(sample, data), _FIELD, "")
    return Outcome(findings=lacking.findings) if lacking.failed else Outcome(sample)


def _require_columns(sample: Sample, data: DataConfig) -> None:
    prepare._require_columns([source.opened() for source in sample.sources], data)


def _in_section(found: Problem, section: str) -> Problem:
    return replace(found, field=found.field.replace("data", section, 1))


@dataclass(frozen=True)
class _Reader:
    """Reads the first rows of one source."""

    source: DataSource
    limit: int
    columns: tuple[str, ...]
    scratch: Path
    token: str | None
    table: tuple[Path, ...]

    def read(self) -> Outcome[SampledSource]:
        """The rows, or what is wrong."""
        source = self.source.source
        if sources.is_hub_source(source):
            sampled = self._from_hub()
        else:
            files = self._files()
            if files.value is None:
                return Outcome(findings=files.findings)
            names = files.value
            sampled = attempt(lambda: self._from_files(names), _FIELD, source)
        if sampled.value is not None and not sampled.value.rows:
            return Outcome(findings=(Problem.coded("data-empty", _FIELD, source, "holds no rows.", "Give some."),))
        return sampled

    def _files(self) -> Outcome[list[str]]:
        source = self.source.source
        if source == TABLE and self.table:
            return Outcome([str(file) for file in self.table])
        if source == TABLE:
            missing = "is the table given to a workflow, and there is none."
            remedy = "Run the workflow that takes one, with --table."
            return Outcome(findings=(Problem.coded("table-missing", _FIELD, source, missing, remedy),))
        kind = attempt(lambda: _require_readable_kind(source), _FIELD, source)
        return (
            Outcome(findings=kind.findings) if kind.failed else attempt(lambda: sources._files(source), _FIELD, source)
        )

    def _from_files(self, names: list[str]) -> SampledSource:
        """Files one after the other, until there are rows enough."""
        rows: list[NumberedRow] = []
        columns: dict[str, None] = {}
        is_whole, room = True, SAMPLE_BYTES
        for number, name in enumerate(names):
            if len(rows) >= self.limit or room <= 0:
                is_whole = False
                break
            for file, place in self._here(name, number).items():
                columns |= dict.fromkeys(readers.columns_of(file, self.source.sample_by))
                coming = readers.read_file(file, self.source.sample_by, self.columns)
                while len(rows) < self.limit and room > 0 and (row := next(coming, None)) is not None:
                    rows.append(NumberedRow(place, *row))
                    room -= size_of(row[1])
                is_whole = is_whole and next(coming, None) is None
        total = len(rows) if is_whole else self._count(names)
        return SampledSource(self.source.source, tuple(columns), rows, total, is_whole)

    def _here(self, name: str, number: int) -> dict[Path, str]:
        """A file on this disk, with the name a person knows it by."""
        if self.source.source == TABLE:
            return {Path(name): TABLE}
        return {Path(f): place for f, place in sources._local_files(name, self.scratch / str(number)).items()}

    def _count(self, names: list[str]) -> int | None:
        if any("://" in name for name in names):
            return None
        files = [Path(name) for name in names]
        is_parquet = all(readers.ending_of(file.name) == ".parquet" for file in files)
        if not is_parquet and sum(file.stat().st_size for file in files) > _COUNTED_BYTES:
            return None
        return sum(readers.count_rows(file, self.source.sample_by) for file in files)

    def _from_hub(self) -> Outcome[SampledSource]:
        source = self.source.source
        opened = attempt(self._open_hub, _FIELD, source)
        if opened.value is None:
            return Outcome(findings=opened.findings)
        stream = opened.value
        return attempt(lambda: self._stream(stream), _FIELD, source)

    def _open_hub(self) -> "IterableDataset":
        from datasets import load_dataset

        named = self.source
        permitted(named.source, named.revision, self.token, field=_FIELD, error_class=DataError, repo_type="dataset")
        with hub.explained_errors(_FIELD, named.source, DataError):
            try:
                splits = load_dataset(
                    named.source, named.subset, revision=named.revision, token=self.token, streaming=True
                )
            except FileNotFoundError as error:
                if type(error) is not FileNotFoundError:
                    raise
                # What datasets (5.2) makes of a hub that no longer answers; it did a moment ago.
                raise TransientError(f"{_FIELD} = {named.source}: the hub did not answer ({error}).") from error
            except (ValueError, RuntimeError) as error:
                raise self._no_such_split(f"{named.source} (subset {named.subset}): {error}") from error
        # datasets streams train, and not train[:10%] or train+test: the first rows are in the first of them.
        first = next(iter(splits)) if named.split == "all" else re.split(r"[\[+]", named.split)[0]
        if first not in splits:
            raise self._no_such_split(f"{named.source} has {', '.join(map(str, splits))}.")
        return splits[first]

    def _no_such_split(self, message: str) -> DataError:
        remedy = "Name a subset and a split that it has."
        return DataError.single("data.split", self.source.split, message, remedy, code="data-split-not-found")

    def _stream(self, stream: "IterableDataset") -> SampledSource:
        import pyarrow as pa

        raws: list[RawRow] = []
        room = SAMPLE_BYTES
        names: tuple[str, ...] = tuple(stream.column_names or ())
        with hub.explained_errors(_FIELD, self.source.source, DataError):
            try:
                for table in stream.with_format("arrow").iter(self.limit + 1):
                    names = names or tuple(table.column_names)
                    kept = table.select([c for c in table.column_names if c in self.columns])
                    coming = (raw for batch in kept.to_batches() for raw in parquet.rows_of_batch(batch))
                    while len(raws) <= self.limit and room > 0 and (raw := next(coming, None)) is not None:
                        raws.append(raw)
                        room -= size_of(raw)
                    if len(raws) > self.limit or room <= 0:
                        break
            except (ValueError, RuntimeError, pa.ArrowException) as error:
                message = f"could not be read: {error}."
                raise DataError.single(_FIELD, self.source.source, message, "Repair the dataset.") from error
        is_part = str(stream.split) != self.source.split
        is_whole = len(raws) <= self.limit and room > 0 and not is_part
        rows = [NumberedRow(self.source.source, n, raw) for n, raw in enumerate(raws[: self.limit], 1)]
        total = len(rows) if is_whole else None if is_part else _rows_said(stream, self.source.split)
        return SampledSource(self.source.source, names, rows, total, is_whole)


def _rows_said(stream: "IterableDataset", split: str) -> int | None:
    """Rows of a split, as the dataset's card says."""
    splits: Any = stream.info.splits or {}
    count = splits[split].num_examples if split in splits else None
    return int(count) if count else None


def _require_readable_kind(source: str) -> None:
    if readers.ending_of(source) is None:
        sources._local_files(source, Path())  # raises what it says of files that are not read
