"""Sources of rows: local or remote files, datasets on the hub, and the table given to a workflow."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from thriftune import hub, urls
from thriftune.config.formats import ENDINGS_IN_WORDS, TABLE, ending_of, is_file_source, is_hub_source
from thriftune.data import local_files, parquet, readers
from thriftune.data.examples import RawRow
from thriftune.disk import writing_to
from thriftune.errors import DataError, TransientError
from thriftune.redaction import redacted
from thriftune.stores import failures, remote, transfer

if TYPE_CHECKING:
    from datasets import Dataset

    from thriftune.config import DataConfig, DataSource

Source = TypeVar("Source", bound="DataSource")
_FIELD = "data.source"
_CHUNK_BYTES = 1 << 20
_BATCH_ROWS = 1000


class NumberedRow(NamedTuple):
    """A row as read, with its origin. Millions of them are sent to other processes: a tuple is fastest.

    Attributes:
        place: File or dataset.
        number: Its number there, from 1.
        raw: The row, or why it cannot be read.
    """

    place: str
    number: int
    raw: RawRow


@dataclass(frozen=True)
class OpenSource:
    """A source that was found and counted.

    Attributes:
        name: The source as the configuration names it.
        columns: Its columns; if each row has its own columns, those of the first rows.
        count: Number of rows, usable or not.
        read: Reads all rows, in the same order every time.
    """

    name: str
    columns: tuple[str, ...]
    count: int
    read: Callable[[], Iterator[NumberedRow]]


def reads_by_column(source: str) -> bool:
    """Whether unneeded columns can be skipped: true for Parquet files and hub datasets."""
    return not is_file_source(source) or ending_of(source) == ".parquet"


def open_source(
    config: "DataSource",
    *,
    scratch: Path,
    token: str | None = None,
    table: Sequence[Path] = (),
    columns: Sequence[str] | None = None,
) -> OpenSource:
    """Find a source and count its rows.

    Args:
        config: The source.
        scratch: Folder for remote files and hub datasets.
        token: Hub token.
        table: Parquet files of the table given to the workflow.
        columns: Columns to read, if the source can be read by columns; None means all.

    Returns:
        The source, which can be read any number of times.

    Raises:
        DataError: There is no such file or dataset, a file cannot be read, or there are no rows.
        TransientError: The hub or the blob store did not answer.
    """
    is_hub = is_hub_source(config.source)
    opened = _open_hub(config, token, scratch, columns) if is_hub else _open_files(config, scratch, table, columns)
    if opened.count == 0:
        raise no_rows(opened.name)
    return opened


def version(source: str, revision: str | None = None, token: str | None = None) -> str:
    """The present version of a source: a short text that changes with its content, used as a cache key.

    Args:
        source: The source as in the configuration.
        revision: Commit, tag or branch of a hub dataset.
        token: Hub token.

    Returns:
        A SHA-256 over the content of local files, or over the store's own checksums of remote files (independent of
        signatures in their URLs), or the hub dataset's commit; empty for a workflow's table.

    Raises:
        DataError: There is no such file or dataset.
        TransientError: The hub did not answer.
    """
    if source == TABLE:
        return ""
    if is_hub_source(source):
        with hub.explained_errors("data.source", source, DataError):
            return hub.commit_of(source, revision, token, repo_type="dataset")
    digest = hashlib.sha256()
    for file in files_named(source):
        digest.update(urls.name_of(file).encode())
        digest.update(_remote_stamp(file) if urls.is_remote(file) else _content_digest(file))
    return digest.hexdigest()[:16]


def versions(data: "DataConfig", token: str | None = None, *, table: str = "") -> str:
    """The present versions of all sources of a run, in order, joined by +.

    Args:
        data: The data section of a run.
        token: Hub token.
        table: Version of the table given to the workflow.
    """
    return "+".join(
        table if source.source == TABLE else version(source.source, source.revision, token)
        for source in data.all_sources
    )


def pinned(data: "DataConfig", version_text: str) -> "DataConfig":
    """The same sources, with hub datasets at the commits that `versions` found, even if their branches have moved."""

    def pin(source: "Source", commit: str) -> "Source":
        return source.model_copy(update={"revision": commit}) if is_hub_source(source.source) else source

    commits = version_text.split("+")
    if data.replay:
        data = data.model_copy(update={"replay": pin(data.replay, commits.pop())})
    if not data.sources:
        return pin(data, commits[0])
    pairs = zip(data.sources, commits, strict=True)
    return data.model_copy(update={"sources": tuple(pin(source, commit) for source, commit in pairs)})


def files_named(source: str, table: Sequence[Path] = ()) -> list[str]:
    """The files of a file source, as paths and URLs, in a fixed order. Nothing is downloaded.

    Args:
        source: The source as in the configuration.
        table: Parquet files of the table given to the workflow.

    Raises:
        DataError: There are none, or their type is not supported.
        TransientError: The store did not answer.
    """
    if source == TABLE:
        if not table:
            raise DataError.single(
                _FIELD,
                TABLE,
                "this workflow was given no table, or one without files.",
                "Run the workflow that takes one, with --table.",
                code="table-missing",
            )
        return [str(file) for file in table]
    if ending_of(source) is None:
        raise DataError.single(
            _FIELD,
            source,
            "is not a file this package reads.",
            f"Give files that end in {ENDINGS_IN_WORDS}, a glob of them, or a hub dataset id (owner/name).",
        )
    return _files(source)


def brought(name: str, source: str, folder: Path) -> tuple[Path, str]:
    """One of the files that `files_named` found, on this disk, with its name for people.

    Args:
        name: The file.
        source: The source that it belongs to.
        folder: Folder to download it to, if it is not on this disk.

    Raises:
        DataError: It no longer exists.
        TransientError: The store did not answer.
    """
    if not urls.is_remote(name):
        return Path(name), TABLE if source == TABLE else name
    local = folder / urls.name_of(name)
    with writing_to(local, "fetching data"), failures.explained(_FIELD, name, DataError):
        transfer.fetch(name, local)
    return local, redacted(name)


def _open_files(config: "DataSource", scratch: Path, table: Sequence[Path], columns: readers.Columns) -> OpenSource:
    named = enumerate(files_named(config.source, table))
    places = dict(brought(name, config.source, scratch / f"{number:05}") for number, name in named)

    def read() -> Iterator[NumberedRow]:
        for file, place in places.items():
            for number, raw in readers.read_file(file, config.sample_by, columns):
                yield NumberedRow(place, number, raw)

    found: dict[str, None] = {}
    count = 0
    for file in places:
        found |= dict.fromkeys(readers.columns_of(file, config.sample_by))
        count += readers.count_rows(file, config.sample_by)
    return OpenSource(redacted(config.source), tuple(found), count, read)


def _open_hub(config: "DataSource", token: str | None, scratch: Path, columns: readers.Columns) -> OpenSource:
    rows = _load_from_hub(config, token, scratch)
    name = redacted(config.source)
    needed = rows if columns is None else rows.select_columns([c for c in rows.column_names if c in columns])

    def read() -> Iterator[NumberedRow]:
        numbers = itertools.count(1)
        for table in needed.with_format("arrow").iter(_BATCH_ROWS):
            for raw in parquet.rows_of_batch(table):
                yield NumberedRow(name, next(numbers), raw)

    return OpenSource(name, tuple(rows.column_names), len(rows), read)


def _load_from_hub(config: "DataSource", token: str | None, scratch: Path) -> "Dataset":
    from datasets import load_dataset

    with explained_by_hub(config):
        return load_dataset(
            config.source,
            config.subset,
            split=config.split,
            revision=config.revision,
            token=token,
            cache_dir=str(scratch),
        )


@contextmanager
def explained_by_hub(config: "DataSource") -> Iterator[None]:
    """Turn errors of loading a hub dataset into errors that say what to do.

    Args:
        config: The source.

    Raises:
        DataError: There is no such dataset, subset or split, or the token may not see it.
        TransientError: The hub did not answer.
    """
    with hub.explained_errors(_FIELD, config.source, DataError):
        try:
            yield
        except FileNotFoundError as error:  # raised by datasets 5.2 if the hub stops answering
            if type(error) is not FileNotFoundError:
                raise
            raise TransientError(f"{_FIELD} = {config.source}: the hub did not answer ({error}).") from error
        except (ValueError, RuntimeError) as error:
            raise no_such_split(config, f"{config.source} (subset {config.subset}): {error}") from error


def no_such_split(config: "DataSource", why: str) -> DataError:
    """The error for a dataset without such a subset or split."""
    remedy = "Name a subset and a split that it has."
    return DataError.single("data.split", config.split, why, remedy, code="data-split-not-found")


def _files(source: str) -> list[str]:
    """The files that match a path, glob or URL, in a fixed order."""
    if not urls.is_remote(source):
        files = local_files.matching(source)
    else:
        with failures.explained(_FIELD, source, DataError):
            files = remote.files(source)
    if not files:
        raise _missing(source)
    return files


def no_rows(source: str) -> DataError:
    """The error for a source without rows."""
    return DataError.single(
        "data.source", source, "holds no rows.", "Give a file or split with rows in it.", code="data-empty"
    )


def _missing(source: str) -> DataError:
    folder = Path(source).parent
    is_folder = not urls.is_remote(source) and folder.is_dir()
    found = sorted(p.name for p in folder.iterdir() if ending_of(p.name))[:10] if is_folder else []
    found_text = f" {folder}/ holds {', '.join(found)}." if found else ""
    return DataError.single(
        "data.source", source, f"no such file.{found_text}", "Check the path.", code=DataError.missing
    )


def _content_digest(file: str) -> bytes:
    digest = hashlib.sha256()
    try:
        with open(file, "rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    except PermissionError as error:
        raise DataError.single(_FIELD, file, "cannot be read: permission denied.", "Grant read access.") from error
    return digest.digest()


def _remote_stamp(url: str) -> bytes:
    with failures.explained(_FIELD, url, DataError):
        return remote.stamp(url).encode()
