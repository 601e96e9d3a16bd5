"""Where rows come from: local or remote files, and datasets on the hub."""

import csv
import glob
import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import hub
from thriftune.errors import DataError, TransientError

if TYPE_CHECKING:
    from datasets import Dataset

# File ending -> name of the reader in `datasets`.
READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
_CHUNK_BYTES = 1 << 20


def is_file_source(source: str) -> bool:
    """Whether a data source is a path, glob or URL of files, as opposed to a hub id."""
    if "://" in source or source.startswith((".", "/", "~")) or not _HUB_ID.match(source):
        return True
    return Path(source).suffix in READERS or os.path.exists(source)


def load_rows(
    source: str,
    *,
    subset: str | None = None,
    split: str = "train",
    revision: str | None = None,
    token: str | None = None,
    cache_dir: Path,
) -> "Dataset":
    """Read every row of a source, memory-mapped.

    Args:
        source: Hub dataset id, or a path, glob, s3:// or gs:// URL of JSONL, CSV or Parquet files.
        subset: Config name of a hub dataset.
        split: Split of a hub dataset.
        revision: Commit, tag or branch of a hub dataset.
        token: Hub token.
        cache_dir: Where the memory-mapped copy is kept.

    Returns:
        The rows, as a `datasets.Dataset`.

    Raises:
        DataError: No such file or dataset, a file that cannot be read, or no rows at all.
        TransientError: The hub or the blob store did not answer.
    """
    if is_file_source(source):
        rows = _load_files(source, cache_dir)
    else:
        rows = _load_from_hub(source, subset, split, revision, token, cache_dir)
    if len(rows) == 0:
        raise _no_rows(source)
    return rows


def version(source: str, revision: str | None = None, token: str | None = None) -> str:
    """What a source holds now, as a short text that changes when it does: the cache key of what is made from it.

    Args:
        source: As for `load_rows`.
        revision: Commit, tag or branch of a hub dataset.
        token: Hub token.

    Returns:
        A SHA-256 over the content of local files, over the store's own checksums for remote files, or the hub
        dataset's commit.

    Raises:
        DataError: No such file or dataset.
        TransientError: The hub did not answer.
    """
    if not is_file_source(source):
        with hub.explained_errors("data.source", source, DataError):
            return hub.commit_of(source, revision, token, repo_type="dataset")
    digest = hashlib.sha256()
    for file in _files(source):
        digest.update(Path(file).name.encode())
        digest.update(_remote_checksum(file) if "://" in file else _content_digest(file))
    return digest.hexdigest()[:16]


def _load_files(source: str, cache_dir: Path) -> "Dataset":
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    reader, files = _reader(source), _files(source)
    try:
        options = _all_text(files[0]) if reader == "csv" else {}
        return load_dataset(reader, data_files=files, split="train", cache_dir=str(cache_dir), **options)
    except FileNotFoundError as error:
        raise _missing(source) from error
    except StopIteration as error:  # how `datasets` says that no file has a row in it
        raise _no_rows(source) from error
    except (DatasetGenerationError, ValueError) as error:  # pyarrow's errors are ValueErrors
        if "corresponds to no data" in str(error):
            raise _no_rows(source) from error
        cause = error.__cause__ or error
        raise DataError.single(
            "data.source", source, f"could not be read as {reader}: {cause}.", "Repair the file."
        ) from error


def _all_text(csv_file: str) -> dict[str, Any]:
    """Options to read a CSV file as it is: otherwise an answer "NA" is missing, and "007" is the number 7."""
    import fsspec
    from datasets import Features, Value

    with fsspec.open(csv_file, "rt", encoding="utf-8", newline="") as stream:
        header = next(csv.reader(stream))
    return {"features": Features({name: Value("string") for name in header}), "keep_default_na": False}


def _load_from_hub(
    source: str, subset: str | None, split: str, revision: str | None, token: str | None, cache_dir: Path
) -> "Dataset":
    from datasets import load_dataset

    with hub.explained_errors("data.source", source, DataError):
        try:
            return load_dataset(source, subset, split=split, revision=revision, token=token, cache_dir=str(cache_dir))
        except ValueError as error:
            raise DataError.single(
                "data.split", split, f"{source} (subset {subset}): {error}", "Name a subset and a split that it has."
            ) from error


def _reader(source: str) -> str:
    suffix = Path(source.rstrip("*")).suffix
    if suffix not in READERS:
        raise DataError.single(
            "data.source",
            source,
            "is not a file this package reads.",
            f"Give files that end in {', '.join(READERS)}, or a hub dataset id as owner/name.",
        )
    return READERS[suffix]


def _files(source: str) -> list[str]:
    """The files a path, glob or URL stands for, in a fixed order."""
    if "://" not in source:
        found = glob.glob(str(Path(source).expanduser()), recursive=True)
        files = sorted(f for f in found if os.path.isfile(f))
    else:
        import fsspec

        try:
            filesystem, path = fsspec.core.url_to_fs(source)
            files = sorted(filesystem.unstrip_protocol(f) for f in filesystem.glob(path))
        except (ImportError, ValueError) as error:
            raise DataError.single("data.source", source, f"cannot be read: {error}.", "Use s3:// or gs://.") from error
        except PermissionError as error:
            raise DataError.single("data.source", source, f"may not be read: {error}.", "Grant read access.") from error
        except OSError as error:
            raise TransientError(f"The store of {source} did not answer: {error}") from error
    if not files:
        raise _missing(source)
    return files


def _no_rows(source: str) -> DataError:
    return DataError.single("data.source", source, "holds no rows.", "Give a file or split with rows in it.")


def _missing(source: str) -> DataError:
    folder = Path(source).parent
    found = sorted(p.name for p in folder.iterdir())[:10] if "://" not in source and folder.is_dir() else []
    found_text = f" {folder}/ holds {', '.join(found)}." if found else ""
    return DataError.single("data.source", source, f"no such file.{found_text}", "Check the path.")


def _content_digest(file: str) -> bytes:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.digest()


def _remote_checksum(url: str) -> bytes:
    import fsspec

    filesystem, path = fsspec.core.url_to_fs(url)
    return str(filesystem.checksum(path)).encode()
