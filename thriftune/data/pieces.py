"""The pieces of examples on disk, between conversion and arrangement, and the counts of conversion."""

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.data import unread
from thriftune.data.arrangement import Rows, rows_of
from thriftune.data.conversion import SAMPLES, Converted, schema
from thriftune.data.duplicates import find_copies

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Samples kept until it is known which of them are copies: in total, and from one file or dataset.
_CANDIDATES, _CANDIDATES_OF_ONE = 256, 16


@dataclass(frozen=True)
class Part:
    """Some of the pieces, in order.

    Attributes:
        rows: Their tokens.
        train: Whether each is for training; else it is held out. Shape [pieces], as for the next three.
        is_document: Whether each is joined with others.
        opens: Whether each is the first piece of its example.
        copies: A `Copy` for each.
    """

    rows: Rows
    train: "npt.NDArray[np.bool_]"
    is_document: "npt.NDArray[np.bool_]"
    opens: "npt.NDArray[np.bool_]"
    copies: "npt.NDArray[np.uint8]"


class Pieces:
    """Pieces in files, written once, then read once in the same order."""

    def __init__(self, folder: Path, labels: Sequence[str] = ()) -> None:
        """Choose the folder.

        Args:
            folder: A scratch folder.
            labels: Names of the classes, for labelled rows.
        """
        self.labels = tuple(labels)
        self.counts: Counter[tuple[bool, str]] = Counter()
        self.reasons: dict[str, int] = {}
        self.unread: Counter[tuple[int, str]] = Counter()
        self._table, self._copies = folder / "pieces.arrow", folder / "copies.bin"
        self._digests, self._sides = folder / "digests.bin", folder / "sides.bin"
        self._candidates: dict[bytes, dict[str, Any]] = {}
        self._kept: set[bytes] = set()

    @contextmanager
    def writing(self) -> Iterator[Callable[[Converted], None]]:
        """Open the files, and yield a function that appends the result of a batch."""
        import numpy as np
        import pyarrow as pa

        with (
            pa.OSFile(str(self._table), "wb") as file,
            pa.ipc.new_stream(file, schema(), options=pa.ipc.IpcWriteOptions(compression="lz4")) as table,
            self._digests.open("wb") as digests,
            self._sides.open("wb") as sides,
        ):

            def write(converted: Converted) -> None:
                table.write_batch(converted.table)
                digests.write(b"".join(converted.table.column("digest").to_pylist()))
                held_out = converted.table.column("held_out").to_numpy(zero_copy_only=False)
                sides.write(held_out.astype(np.uint8).tobytes())
                self.counts.update(converted.counts)
                unread.count(self.unread, converted.unread)
                for key, sample in converted.samples.items():
                    of_one = sum(other["source"] == sample["source"] for other in self._candidates.values())
                    if len(self._candidates) < _CANDIDATES and of_one < _CANDIDATES_OF_ONE:
                        self._candidates.setdefault(key, sample)

            yield write

    def find_copies(self, *, deduplicate: bool, leakage_check: bool) -> None:
        """Decide which pieces are copies of others."""
        find_copies(self._digests, self._sides, self._copies, deduplicate=deduplicate, leakage_check=leakage_check)

    def parts(self) -> Iterator[Part]:
        """All pieces, in parts of bounded size."""
        import numpy as np
        import pyarrow as pa

        with (
            pa.OSFile(str(self._table), "rb") as file,
            pa.ipc.open_stream(file) as table,
            self._copies.open("rb") as copies,
        ):
            for batch in table:
                flags = {
                    name: batch.column(name).to_numpy(zero_copy_only=False)
                    for name in ("held_out", "is_document", "opens")
                }
                marks = np.frombuffer(copies.read(batch.num_rows), dtype=np.uint8)
                # Further pieces follow the first of their example: a held-out copy may be cut differently.
                marks = marks[np.maximum.accumulate(np.where(flags["opens"], np.arange(len(marks)), 0))]
                if len(self._kept) < len(self._candidates):
                    self._keep_samples(batch.column("digest").to_pylist(), (marks == 0) & flags["held_out"])
                yield Part(rows_of(batch), ~flags["held_out"], flags["is_document"], flags["opens"], marks)

    def samples(self) -> list[dict[str, Any]]:
        """Held-out questions that are not copies, from every source in turn; call it after reading all `parts`."""
        by_source: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
        for key, sample in self._candidates.items():
            if key in self._kept:
                by_source[sample["source"]].append(sample)
        in_turn = itertools.chain.from_iterable(itertools.zip_longest(*by_source.values()))
        return [sample for sample in in_turn if sample is not None][:SAMPLES]

    def _keep_samples(self, digests: list[bytes], is_held_out: "npt.NDArray[np.bool_]") -> None:
        self._kept |= {key for key, held in zip(digests, is_held_out, strict=True) if held and key in self._candidates}
