"""Reading a prepared dataset, for training and evaluation."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from thriftune import artifacts, damage, digests, distributed

if TYPE_CHECKING:
    from datasets import Dataset

TRAIN, VALIDATION = "train.parquet", "validation.parquet"
_SAMPLES = "samples.json"
_ROWS = "rows.arrow"
_BATCH_ROWS = 1000  # as datasets writes them: a row is looked up within its batch
POSITIONS = "position_ids"


def load_split(directory: Path, name: str) -> "Dataset":
    """One split of a prepared dataset, memory-mapped. In a job of several processes, every rank of a node calls it.

    Parquet cannot be memory-mapped, so it is unpacked next to the dataset, once per node and not once per rank. Files
    that an earlier run unpacked are verified before use, which takes a quarter of the time of unpacking.

    Args:
        directory: A prepared dataset.
        name: `TRAIN` or `VALIDATION`.

    Returns:
        A dataset with the columns input_ids, labels, length and, if packed, position_ids.
    """
    from datasets import Dataset

    file = directory / name
    place = directory.with_name(f"{directory.name}.mapped") / file.stem
    distributed.once_per_node(lambda: _unpack(file, place))
    return Dataset.from_file(str(place / _ROWS))


def _unpack(file: Path, place: Path) -> None:
    """Write Parquet as rows that can be memory-mapped, unless they already exist undamaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    of = {"sha256": digests.sha256_of(file)}
    if damage.is_reusable(place) and artifacts.read_content(place) == of:
        return
    with artifacts.writing(place, "unpacking the prepared dataset") as directory:
        rows = pq.ParquetFile(file)
        with (
            pa.OSFile(str(directory / _ROWS), "wb") as stream,
            pa.ipc.new_stream(stream, rows.schema_arrow) as writer,
        ):
            for batch in rows.iter_batches(_BATCH_ROWS):
                writer.write_batch(batch)
        artifacts.write_manifest(directory, "rows", of)


def count_rows(directory: Path, name: str) -> int:
    """Number of rows in one split of a prepared dataset, without reading them.

    Args:
        directory: A prepared dataset.
        name: `TRAIN` or `VALIDATION`.
    """
    import pyarrow.parquet as pq

    return int(pq.read_metadata(directory / name).num_rows)


def is_packed(rows: "Dataset") -> bool:
    """Whether rows hold several examples."""
    return POSITIONS in rows.column_names


def write_samples(samples: list[dict[str, Any]], directory: Path) -> None:
    """Save held-out questions for the answers before and after training."""
    artifacts.write_text(directory / _SAMPLES, json.dumps(samples, indent=2))


def load_samples(directory: Path) -> list[dict[str, Any]]:
    """Held-out questions of a prepared dataset: `input_ids` up to the answer, `question` and `reference` as text."""
    return TypeAdapter(list[dict[str, Any]]).validate_json((directory / _SAMPLES).read_bytes())
