"""Moving directories between Flyte and the local disk, and errors between thriftune and Flyte."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flytekit import FlyteContextManager
from flytekit.exceptions.system import FlyteDownloadDataException, FlyteUploadDataException
from flytekit.exceptions.user import FlyteDataNotFoundException, FlyteRecoverableException
from flytekit.types.directory import FlyteDirectory
from flytekit.types.file import FlyteFile
from flytekit.types.structured import StructuredDataset

from tasks import settings
from thriftune import artifacts, damage, distributed, remote
from thriftune.errors import TransientError, UserError


def download(given: FlyteDirectory | FlyteFile) -> Path:
    """Bring a directory or a file to this disk, in a task that is one process.

    Raises:
        UserError: It is a finished one, and files of it are missing or cut short.
    """
    with _store_errors_retried(), _reached(place_of(given)):
        place = Path(given.download())
    try:
        damage.require_undamaged(place, content=False)
    except UserError as error:
        if settings.is_local():
            raise
        raise error.advising("`pyflyte run --remote --overwrite-cache` makes what Flyte has cached anew.") from error
    return place


def download_once_per_node(*directories: FlyteDirectory) -> list[Path]:
    """Bring directories to this disk, in a task of several processes per node. Every rank calls it.

    All local ranks were given the same local path: one of them downloads to it, and the others wait.
    """

    def bring() -> None:
        for directory in directories:
            download(directory)

    distributed.once_per_node(bring)
    return [Path(directory.path) for directory in directories]


def download_table(table: StructuredDataset) -> list[Path]:
    """Bring a table to this disk as Parquet files, in order; without holding it in memory if it is Parquet already."""
    literal = table.literal
    uri = str(literal.uri if literal is not None else table.uri)
    folder = Path(tempfile.mkdtemp())
    kind = literal.metadata.structured_dataset_type.format if literal is not None else table.file_format
    if kind not in ("", "parquet"):  # a query or another file format: only Flyte's handler for it can read it
        import pandas as pd

        table.open(pd.DataFrame).all().to_parquet(folder / "table.parquet")
        return [folder / "table.parquet"]
    access = FlyteContextManager.current_context().file_access
    here = Path(uri)
    if access.is_remote(uri):
        here = folder / "table"
        with _store_errors_retried():
            access.get_data(uri, str(here), is_multipart=True)
    parts = [here] if here.is_file() else sorted(p for p in here.rglob("*") if p.is_file() and p.name[0] not in "._")
    return [_with_parquet_ending(part, folder / f"{number:05}.parquet") for number, part in enumerate(parts)]


def table_version(table: StructuredDataset) -> str:
    """What a table holds now, from the store's own listing: names, sizes and checksums or times of its files.

    Flyte tells tables apart by their URI, and a file can be written over. A table that is a query has its URI only.
    """
    literal = table.literal
    uri = str(literal.uri if literal is not None else table.uri)
    try:
        filesystem = FlyteContextManager.current_context().file_access.get_filesystem_for_path(uri)
        files = filesystem.find(uri, detail=True)
    except (ImportError, ValueError):  # bq:// and the like name no files
        return artifacts.key_of(uri)
    stamps = (
        f"{name} {info.get('size')} {info.get('ETag') or info.get('mtime')}" for name, info in sorted(files.items())
    )
    return artifacts.key_of(uri, *stamps)


def _with_parquet_ending(file: Path, link: Path) -> Path:
    """Flyte names the parts of a table 00000, 00001 ...; rows are read by the ending of a file."""
    link.symlink_to(file.absolute())
    return link


def upload(directory: Path) -> FlyteDirectory:
    """Hand a finished directory to Flyte now, not when the task returns.

    The training operator calls a job of several nodes done as soon as any of its pods is, while the pod with the
    result may still be uploading what it returned.

    Returns:
        Where it is: the blob store, or in a local run the same place on disk, without a copy.
    """
    if settings.is_local():
        return FlyteDirectory(str(directory), remote_directory=False)
    with _store_errors_retried():
        remote = FlyteContextManager.current_context().file_access.put_raw_data(str(directory))
    return FlyteDirectory(str(remote))


def try_output() -> tuple[str, str]:
    """Write something where this run's outputs go, which may be another bucket than the one Flyte itself writes to.

    Returns:
        The place, and what the store said to refuse it; empty where it did not.

    Raises:
        TransientError: The store did not answer.
    """
    access = FlyteContextManager.current_context().file_access
    prefix = str(access.raw_output_prefix)
    if settings.is_local():
        return prefix, ""
    filesystem, probe = access.get_filesystem_for_path(prefix), f"{prefix.rstrip('/')}/write-check"
    try:
        filesystem.pipe_file(probe, b"thriftune")
    except (PermissionError, FileNotFoundError) as error:
        return prefix, str(error)
    except OSError as error:
        raise TransientError(f"{prefix}: the store did not answer ({error}).") from error
    with suppress(OSError):  # who may write need not be let remove
        filesystem.rm_file(probe)
    return prefix, ""


def place_of(given: FlyteDirectory | FlyteFile) -> str:
    """Where a directory or a file is, for a person: its URL, or in a local run its path."""
    return str(given.remote_source or given.path)


@contextmanager
def _reached(place: str) -> Iterator[None]:
    """Tell a place that holds nothing from a web server that does not answer, which flytekit calls the same."""
    try:
        yield
    except FlyteDataNotFoundException:
        if remote.is_remote(place):
            with transient_errors_retried(), remote.explained("input", place, UserError):
                remote.listing(place)
        raise


@contextmanager
def _store_errors_retried() -> Iterator[None]:
    """Let Flyte retry a blob store that did not answer: after hours of training that must not end the run."""
    try:
        yield
    except (FlyteDownloadDataException, FlyteUploadDataException, ConnectionError, TimeoutError) as error:
        raise FlyteRecoverableException(f"The blob store did not answer: {error}") from error


@contextmanager
def transient_errors_retried() -> Iterator[None]:
    """Let Flyte retry what may work in a minute; everything else fails the task at once."""
    try:
        yield
    except TransientError as error:
        raise FlyteRecoverableException(str(error)) from error
