"""Writing one split of a dataset (training or held-out rows), arranged as the configuration says, and counting it."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Self

from thriftune.data.arrangement import Joiner, Packer, Rows, RowWriter
from thriftune.data.duplicates import Copy
from thriftune.data.pieces import Part
from thriftune.data.statistics import SplitCounter

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class SplitWriter:
    """Takes pieces of examples, leaves out copies, joins documents, packs and writes rows."""

    def __init__(self, file: Path, max_length: int, *, packing: bool, seed: int = 0, classes: int = 0) -> None:
        """Open the file.

        Args:
            file: Parquet file to write.
            max_length: Longest row, in tokens.
            packing: Put several examples into a row.
            seed: Seed of the run: it decides which examples share a row, but not the number of rows.
            classes: Number of classes of labelled rows; 0 for other rows.
        """
        self.counter = SplitCounter(max_length, classes)
        self._writer = RowWriter(file, has_positions=packing)
        self._joiner = Joiner(max_length)
        self._packer = Packer(max_length, seed) if packing else None

    def add(self, part: Part, is_mine: "npt.NDArray[np.bool_]") -> None:
        """Add the pieces of a part that belong to this split."""
        import numpy as np

        keep = is_mine & (part.copies == Copy.KEEP)
        self.counter.examples += int((keep & part.opens).sum())
        self.counter.duplicates += int((is_mine & part.opens & (part.copies == Copy.DUPLICATE)).sum())
        self.counter.leaked += int((is_mine & part.opens & (part.copies == Copy.LEAKED)).sum())
        to_join = keep & part.is_document if self._packer is None else np.zeros_like(keep)
        if to_join.any():
            self._finish(self._joiner.add(part.rows.taken(np.flatnonzero(to_join))))
        rest = keep & ~to_join
        if rest.any():
            self._pack_or_write(part.rows.taken(np.flatnonzero(rest)))

    def _pack_or_write(self, rows: Rows) -> None:
        if self._packer is None:
            self._finish([rows])
            return
        self.counter.before_packing(rows)
        self._write(self._packer.add(rows))

    def _finish(self, lots: Iterable[Rows]) -> None:
        """Write rows that need no packing."""
        for rows in lots:
            self.counter.before_packing(rows)
            self._write([rows])

    def _write(self, lots: Iterable[Rows]) -> None:
        for rows in lots:
            self._writer.write(rows)
            self.counter.written(rows)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self._finish(self._joiner.finish())
            self._write(self._packer.finish() if self._packer else [])
        self._writer.__exit__(*error)
