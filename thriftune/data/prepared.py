"""Reading a prepared dataset: what training and evaluation see of it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import artifacts, distributed
from thriftune.disk import writing_to

if TYPE_CHECKING:
    from datasets import Dataset

TRAIN, VALIDATION = "train.parquet", "validation.parquet"
_SAMPLES = "samples.json"
POSITIONS = "position_ids"


def load_split(directory: Path, name: str) -> "Dataset":
    """One split of a prepared dataset, memory-mapped. In a job of several processes, every rank of a node calls it.

    Parquet cannot be mapped: it is unpacked beside the dataset, once for each node and not once for each rank.

    Args:
        directory: A prepared dataset.
        name: `TRAIN` or `VALIDATION`.

    Returns:
        A dataset with the columns input_ids, labels, length and, where packed, position_ids.
    """
    from datasets import Dataset

    cache = str(directory.with_name(directory.name + ".mapped"))

    def load() -> "Dataset":
        with writing_to(Path(cache), "unpacking the prepared dataset"):
            loaded = Dataset.from_parquet(str(directory / name), cache_dir=cache)
        assert isinstance(loaded, Dataset)
        return loaded

    distributed.once_per_node(load)
    return load()


def count_rows(directory: Path, name: str) -> int:
    """Rows of one split of a prepared dataset, without reading them.

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
    """Keep held-out questions for the answers before and after training."""
    artifacts.write_text(directory / _SAMPLES, json.dumps(samples, indent=2))


def load_samples(directory: Path) -> list[dict[str, Any]]:
    """Held-out questions of a prepared dataset: `input_ids` up to the answer, `question` and `reference` as text."""
    samples: list[dict[str, Any]] = json.loads((directory / _SAMPLES).read_text(encoding="utf-8"))
    return samples
