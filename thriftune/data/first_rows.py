"""The first rows of a source, read as data preparation reads them, without reading or downloading the rest."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import hub, urls
from thriftune.config.formats import ending_of, is_hub_source
from thriftune.data import parquet, readers, sources
from thriftune.data.examples import RawRow
from thriftune.data.sources import NumberedRow, OpenSource
from thriftune.errors import DataError
from thriftune.limits import size_of

if TYPE_CHECKING:
    from datasets import IterableDataset

    from thriftune.config import DataSource

_FIELD = "data.source"
# Files with this size in total are counted to the end, which takes seconds; of larger ones, only Parquet files tell
# their number of rows.
_COUNTED_BYTES = 1 << 28


@dataclass(frozen=True)
class FirstRows:
    """The first rows of a source.

    Attributes:
        name: The source as the configuration names it.
        columns: Columns of its rows.
        rows: The rows.
        total: Rows of the whole source; None if this is unknown without reading it.
        is_whole: Whether these are all rows of the source.
    """

    name: str
    columns: tuple[str, ...]
    rows: list[NumberedRow]
    total: int | None
    is_whole: bool

    def opened(self) -> OpenSource:
        """These rows as a whole source."""
        return OpenSource(self.name, self.columns, len(self.rows), lambda: iter(self.rows))


@dataclass(frozen=True)
class Limit:
    """Limits on reading.

    Attributes:
        rows: Most rows to read.
        bytes: Bytes of rows to read; the row that reaches this number is the last.
    """

    rows: int
    bytes: int


def first_rows(
    config: "DataSource",
    limit: Limit,
    *,
    scratch: Path,
    token: str | None = None,
    table: Sequence[Path] = (),
    columns: Sequence[str] = (),
) -> FirstRows:
    """Find a source and read its first rows: only the needed files are fetched, and hub datasets are streamed.

    Args:
        config: The source.
        limit: Limits on reading.
        scratch: Folder for fetched files.
        token: Hub token.
        table: Parquet files of the table given to the workflow.
        columns: Columns to read, if the source can be read by columns.

    Raises:
        DataError: There is no such file or dataset, a file cannot be read, or there are no rows.
        TransientError: The hub or the blob store did not answer.
    """
    if is_hub_source(config.source):
        found = _streamed(config, _stream(config, token), limit, columns)
    else:
        found = _of_files(config, limit, scratch, table, columns)
    if not found.rows:
        raise sources.no_rows(config.source)
    return found


def _of_files(
    config: "DataSource", limit: Limit, scratch: Path, table: Sequence[Path], columns: Sequence[str]
) -> FirstRows:
    """Read files one after the other, until there are enough rows."""
    rows: list[NumberedRow] = []
    found: dict[str, None] = {}
    is_whole, room = True, limit.bytes
    names = sources.files_named(config.source, table)
    for number, name in enumerate(names):
        if len(rows) >= limit.rows or room <= 0:
            is_whole = False
            break
        file, place = sources.brought(name, config.source, scratch / f"{number:05}")
        found |= dict.fromkeys(readers.columns_of(file, config.sample_by))
        coming = readers.read_file(file, config.sample_by, columns)
        while len(rows) < limit.rows and room > 0 and (row := next(coming, None)) is not None:
            rows.append(NumberedRow(place, *row))
            room -= size_of(row[1])
        is_whole = is_whole and next(coming, None) is None
    total = len(rows) if is_whole else _count(config, names)
    return FirstRows(config.source, tuple(found), rows, total, is_whole)


def _count(config: "DataSource", names: Sequence[str]) -> int | None:
    if any(map(urls.is_remote, names)):
        return None
    files = [Path(name) for name in names]
    is_parquet = all(ending_of(file.name) == ".parquet" for file in files)
    if not is_parquet and sum(file.stat().st_size for file in files) > _COUNTED_BYTES:
        return None
    return sum(readers.count_rows(file, config.sample_by) for file in files)


def _stream(config: "DataSource", token: str | None) -> "IterableDataset":
    """A split of a dataset on the hub, with nothing downloaded yet."""
    from datasets import load_dataset

    hub.permitted(config.source, config.revision, token, field=_FIELD, error_class=DataError, repo_type="dataset")
    with sources.explained_by_hub(config):
        splits = load_dataset(config.source, config.subset, revision=config.revision, token=token, streaming=True)
    # datasets can stream train, but not train[:10%] or train+test: the first rows are in the first split.
    first = next(iter(splits)) if config.split == "all" else re.split(r"[\[+]", config.split)[0]
    if first not in splits:
        raise sources.no_such_split(config, f"{config.source} has {', '.join(map(str, splits))}.")
    return splits[first]


def _streamed(config: "DataSource", stream: "IterableDataset", limit: Limit, columns: Sequence[str]) -> FirstRows:
    import pyarrow as pa

    raws: list[RawRow] = []
    room = limit.bytes
    names: tuple[str, ...] = tuple(stream.column_names or ())
    with hub.explained_errors(_FIELD, config.source, DataError):
        try:
            for table in stream.with_format("arrow").iter(limit.rows + 1):
                names = names or tuple(table.column_names)
                kept = table.select([c for c in table.column_names if c in columns])
                coming = (raw for batch in kept.to_batches() for raw in parquet.rows_of_batch(batch))
                while len(raws) <= limit.rows and room > 0 and (raw := next(coming, None)) is not None:
                    raws.append(raw)
                    room -= size_of(raw)
                if len(raws) > limit.rows or room <= 0:
                    break
        except (ValueError, RuntimeError, pa.ArrowException) as error:
            message = f"could not be read: {error}."
            raise DataError.single(_FIELD, config.source, message, "Repair the dataset.") from error
    is_part = str(stream.split) != config.split
    is_whole = len(raws) <= limit.rows and room > 0 and not is_part
    rows = [NumberedRow(config.source, number, raw) for number, raw in enumerate(raws[: limit.rows], 1)]
    total = len(rows) if is_whole else None if is_part else _rows_said(stream, config.split)
    return FirstRows(config.source, names, rows, total, is_whole)


def _rows_said(stream: "IterableDataset", split: str) -> int | None:
    """Rows of a split, according to the dataset's card."""
    splits: Any = stream.info.splits or {}
    count = splits[split].num_examples if split in splits else None
    return int(count) if count else None
