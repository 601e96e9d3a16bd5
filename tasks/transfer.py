"""Move directories between Flyte and the local disk, and convert thriftune's errors to Flyte's."""

import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flytekit import FlyteContextManager
from flytekit.exceptions.user import FlyteRecoverableException
from flytekit.types.directory import FlyteDirectory
from flytekit.types.file import FlyteFile
from flytekit.types.structured import StructuredDataset

from tasks import settings
from thriftune import artifacts, damage, distributed
from thriftune.errors import DataError, TransientError, UserError
from thriftune.preflight.outputs import CHECKPOINTS, RAW_OUTPUT
from thriftune.stores import access as stores
from thriftune.stores import failures, remote, transfer
from thriftune.stores.transfer import Outgoing
from thriftune.urls import is_remote, name_of


def download(given: FlyteDirectory | FlyteFile) -> Path:
    """Download a directory or a file, in a task with one process.

    Not by flytekit, which holds gigabytes of a large model in memory (docs/transfers.md).

    Args:
        given: The directory or file.

    Raises:
        UserError: It is not there, access is denied, or it has a manifest, but files of it are missing or truncated.
    """
    url, place = uri_of(given), Path(given.path)
    if is_remote(url):
        if is_remote(str(given.path)):  # made from a URL, not by Flyte, which would have chosen a path
            place = Path(tempfile.mkdtemp()) / name_of(url)
        bring = transfer.fetch if isinstance(given, FlyteFile) else transfer.download
        with transient_errors_retried(), failures.explained("input", url, UserError, "is not there."):
            bring(url, place)
    try:
        damage.require_undamaged(place, content=False)
    except UserError as error:
        if settings.is_local():
            raise
        raise error.advising("`pyflyte run --remote --overwrite-cache` makes again what Flyte has cached.") from error
    return place


def download_once_per_node(*directories: FlyteDirectory) -> list[Path]:
    """Download directories, in a task with several processes per node. Every rank calls it.

    All ranks of a node have the same local path: one of them downloads to it, and the others wait.
    """

    def bring() -> None:
        for directory in directories:
            download(directory)

    distributed.once_per_node(bring)
    return [Path(directory.path) for directory in directories]


def download_table(table: StructuredDataset) -> list[Path]:
    """Download a table as Parquet files, in order; if it is Parquet already, without holding it in memory."""
    literal = table.literal
    uri = str(literal.uri if literal is not None else table.uri)
    folder = Path(tempfile.mkdtemp())
    kind = literal.metadata.structured_dataset_type.format if literal is not None else table.file_format
    if kind not in ("", "parquet"):  # a query or another file format: only Flyte's handler for it can read it
        import pandas as pd

        table.open(pd.DataFrame).all().to_parquet(folder / "table.parquet")
        return [folder / "table.parquet"]
    here = Path(uri)
    if is_remote(uri):
        here = folder / "table"
        with transient_errors_retried(), failures.explained("table", uri, UserError, "is not there."):
            transfer.download(uri, here)
    parts = [here] if here.is_file() else sorted(p for p in here.rglob("*") if p.is_file() and p.name[0] not in "._")
    return [_with_parquet_ending(part, folder / f"{number:05}.parquet") for number, part in enumerate(parts)]


def table_version(table: StructuredDataset) -> str:
    """The present version of a table, from the store's listing: names, sizes and checksums or times of its files.

    Flyte identifies tables by their URI, but files can be overwritten. Of a table that is a query, only the URI counts.

    Args:
        table: The table.

    Raises:
        DataError: It cannot be read.
        TransientError: The store did not answer.
    """
    literal = table.literal
    uri = str(literal.uri if literal is not None else table.uri)
    if not stores.has_files(uri):
        return artifacts.key_of(uri)
    with failures.explained("table", uri, DataError):
        files = remote.listing(uri)
    return artifacts.key_of(uri, *(remote.of_entry(name, entry) for name, entry in sorted(files.items())))


def _with_parquet_ending(file: Path, link: Path) -> Path:
    """Give a part of a table a file ending, by which rows are read: Flyte names parts 00000, 00001 ..."""
    link.symlink_to(file.absolute())
    return link


def upload(directory: Path) -> FlyteDirectory:
    """Upload a finished directory now, not when the task returns.

    The training operator considers a job of several nodes done as soon as one of its pods is done, while the pod with
    the result might still be uploading what it returned.

    Args:
        directory: The directory.

    Returns:
        Its URL in the blob store; in a local run the same path, without a copy.
    """
    if settings.is_local():
        return FlyteDirectory(str(directory), remote_directory=False)
    return FlyteDirectory(
        _sent(directory, lambda url: transfer.upload(directory, url, artifacts.digests_of(directory)))
    )


def upload_file(file: Path) -> FlyteFile:
    """Upload a finished file now.

    Args:
        file: The file.

    Returns:
        Its URL in the blob store; in a local run the same path, without a copy.
    """
    if settings.is_local():
        return FlyteFile(str(file), remote_path=False)
    return FlyteFile(_sent(file, lambda url: transfer.send_all([Outgoing(file, url)])))


def _sent(place: Path, send: Callable[[str], None]) -> str:
    """Send a file or directory to a URL below this run's outputs that nothing else has, and return that URL."""
    access = FlyteContextManager.current_context().file_access
    # Not flytekit's own random text: it comes from `random`, which every training seeds, and trials of one pod with the
    # same seed would write over each other.
    url = f"{str(access.raw_output_prefix).rstrip('/')}/{uuid.uuid4().hex}/{place.name}"
    with transient_errors_retried(), failures.explained("outputs", url, UserError):
        send(url)
    return url


def try_outputs() -> dict[str, tuple[str, str]]:
    """Try to write to where this run's outputs and checkpoints go, which may not be where Flyte itself writes to.

    Returns:
        By the setting that says where: the URL; and what the store refused, and what to set. That is empty if it did
        not refuse. Nothing for a local run.

    Raises:
        TransientError: The store did not answer.
    """
    if settings.is_local():
        return {}
    prefix = str(FlyteContextManager.current_context().file_access.raw_output_prefix)
    places = {RAW_OUTPUT: prefix.rstrip("/"), CHECKPOINTS: settings.checkpoints_root()}
    return {setting: (place, _refused(setting, place)) for setting, place in places.items()}


def _refused(setting: str, place: str) -> str:
    try:
        with failures.explained(setting, place, UserError):
            remote.try_to_write(f"{place}/write-check")
    except UserError as error:
        return " ".join(f"{problem.message} {problem.remedy}" for problem in error.problems)
    return ""


def uri_of(given: FlyteDirectory | FlyteFile) -> str:
    """The URL of a directory or file, or its path in a local run; to show to a person."""
    return str(given.remote_source or given.path)


@contextmanager
def transient_errors_retried() -> Iterator[None]:
    """Let Flyte retry transient errors; all others fail the task at once."""
    try:
        yield
    except TransientError as error:
        raise FlyteRecoverableException(str(error)) from error
