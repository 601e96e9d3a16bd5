"""Prepares datasets for tests through `prepare`, and looks into what it wrote."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from thriftune.config import DataConfig
from thriftune.data import report
from thriftune.data.prepare import prepare
from thriftune.data.rejection import REJECTED
from thriftune.data.selection import Mix, held_out_shares, select
from thriftune.data.statistics import DataStats, stats_from_json


def write_rows(file: Path, rows: list[dict[str, Any] | str]) -> Path:
    """Write rows as JSON Lines; a text is a line as it is."""
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return file


def positions(count: int, *, held_out: bool, share: float = 0.1, seed: int = 0) -> list[int]:
    """Where the rows of a single source that train, or are held out, stand in it, if all are different."""
    (selection,) = select([count], Mix(), seed=seed)
    in_order = np.argsort(np.concatenate(list(selection.ranks())))
    (number,) = held_out_shares([count], share)
    return sorted((in_order[:number] if held_out else in_order[number:]).tolist())


@dataclass(frozen=True)
class Prepared:
    """A prepared dataset, and what was counted while it was made."""

    directory: Path
    stats: DataStats

    def rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a Parquet file."""
        return pq.read_table(self.directory / name).to_pylist()

    def texts(self, name: str, tokenizer: Any) -> list[str]:
        """The same as text, with special tokens."""
        return [tokenizer.decode(row["input_ids"]) for row in self.rows(name)]

    def rejected(self) -> list[dict[str, Any]]:
        """What rejected.parquet lists."""
        return self.rows(REJECTED)

    def count(self, what: str) -> int:
        """A count of both splits."""
        return getattr(self.stats.train, what) + getattr(self.stats.validation, what)


@dataclass
class Preparation:
    """Prepares one dataset after the other, each in a directory of its own below `folder`."""

    folder: Path
    tokenizer_dir: Path
    made: int = 0

    def __call__(self, source: Any = None, *, seed=0, processes=1, data_version="", tokenizer_dir=None, **options):
        if source is not None:
            options = {"source": str(source), "format": "text", "max_length": 128, **options}
        config = DataConfig.model_validate(options)
        self.made += 1
        directory = self.folder / f"prepared-{self.made}"
        stats = prepare(
            config,
            seed=seed,
            tokenizer_dir=tokenizer_dir or self.tokenizer_dir,
            destination=directory,
            data_version=data_version,
            processes=processes,
        )
        assert stats == stats_from_json(json.loads((directory / report.JSON).read_text()))
        return Prepared(directory, stats)
