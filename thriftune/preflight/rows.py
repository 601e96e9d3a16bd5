"""The sampled rows through data preparation's own conversion and arrangement, and what that says of the data."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thriftune.config import DataConfig, RunConfig
from thriftune.data import unread
from thriftune.data.batches import batches
from thriftune.data.conversion import Batch, Converter, formats
from thriftune.data.held_out import hold_out
from thriftune.data.pieces import Pieces
from thriftune.data.prepared import TRAIN, VALIDATION
from thriftune.data.rejection import REJECTED, RejectedRow, Rejections
from thriftune.data.selection import select
from thriftune.data.splits import SplitWriter
from thriftune.data.statistics import SplitStats, UnreadKey
from thriftune.data.tokenization import IGNORED
from thriftune.errors import UserError
from thriftune.models.stopping import stop_tokens
from thriftune.preflight.outcome import Outcome, attempt
from thriftune.preflight.sampling import Sample

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_UNCUT = 1 << 31  # tokens; longer than any row


@dataclass(frozen=True)
class Tried:
    """What became of the sampled rows.

    Attributes:
        train: Of those that train.
        validation: Of those held out.
        lengths: Tokens of every example that can be used, before any is cut.
        has_documents: Whether some are documents, which are always cut into blocks.
        trained_eos: Examples that train EOS.
        trained_pad: Examples that train the pad token.
        largest_token: Highest token id.
        rejected: Rows, or parts of rows, that cannot be used.
        rejected_rows: Rows of which nothing can be used.
        unread: Of each source, the keys that are not read.
    """

    train: SplitStats
    validation: SplitStats
    lengths: tuple[int, ...]
    has_documents: bool
    trained_eos: int
    trained_pad: int
    largest_token: int
    rejected: tuple[RejectedRow, ...]
    rejected_rows: int
    unread: tuple[tuple[UnreadKey, ...], ...]

    @property
    def rows(self) -> int:
        """Rows that were tried."""
        return self.train.rows + self.validation.rows

    @property
    def kept(self) -> int:
        """Examples to train on or to measure loss on, copies included."""
        return sum(s.examples + s.duplicates + s.leaked for s in (self.train, self.validation))


def convert(sample: Sample, config: RunConfig, tokenizer: "PreTrainedTokenizerBase") -> Outcome[Tried]:
    """Convert the sampled rows as data preparation would.

    Args:
        sample: The first rows of every source.
        config: The run.
        tokenizer: The base model's tokenizer.

    Returns:
        What became of them. Where the sample is all of the data, the same rows train as in the run.
    """
    logger.info("Preflight: tokenizing %d rows", sample.count)
    data = config.data
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        chosen = attempt(lambda: _split(sample, data, config.seed, scratch), "data.source", "")
        if chosen.value is None:
            return Outcome(findings=chosen.findings)
        batches_of_rows = chosen.value
        return attempt(lambda: _converted(batches_of_rows, sample, data, tokenizer, scratch), "data.format", "")


def too_many_rejected(tried: Tried, total: int, max_rejected: float) -> UserError | None:
    """What data preparation would say of the rejected rows, if they were all there are.

    Args:
        tried: What became of the sampled rows.
        total: Rows of the data.
        max_rejected: Share of them that may be bad.
    """
    with tempfile.TemporaryDirectory() as scratch, Rejections(Path(scratch) / REJECTED) as rejections:
        rejections.add(tried.rejected, tried.rejected_rows)
        try:
            rejections.require_few(total, max_rejected)
        except UserError as error:
            return error
    return None


def _split(sample: Sample, data: DataConfig, seed: int, scratch: Path) -> Iterator[Batch]:
    """Which of the sampled rows train: the run's own choice if the sample is all there is, else all, as in a mix."""
    weights = [source.weight for source in data.sources if source.weight is not None]
    opened = [source.opened() for source in sample.sources]
    selections = select(
        [source.count for source in opened],
        weights=(weights or None) if sample.is_whole else None,
        max_rows=data.max_rows if sample.is_whole else None,
        seed=seed,
    )
    held_out = hold_out(opened, selections, formats(data), share=data.validation_share, folder=scratch)
    return batches(opened, selections, held_out)


def _converted(
    coming: Iterator[Batch], sample: Sample, data: DataConfig, tokenizer: "PreTrainedTokenizerBase", scratch: Path
) -> Tried:
    converter = Converter(data, tokenizer)
    uncut = Converter(data.model_copy(update={"max_length": _UNCUT, "long_rows": "truncate"}), tokenizer)
    pieces, lengths, seen = Pieces(scratch), list[int](), _Seen(tokenizer)
    rejected: list[RejectedRow] = []
    with pieces.writing() as write:
        for batch in coming:
            converted = converter.convert(batch)
            write(converted)
            rejected += converted.rejected
            seen.add(converted.table)
            lengths += _lengths(uncut.convert(batch).table)
    train, validation = _arranged(pieces, data, scratch)
    whole = train.rejected + validation.rejected
    return Tried(
        train, validation, tuple(lengths), seen.documents, seen.eos, seen.pad, seen.largest, tuple(rejected), whole,
        _unread(pieces, sample, data),
    )  # fmt: skip


def _unread(pieces: Pieces, sample: Sample, data: DataConfig) -> tuple[tuple[UnreadKey, ...], ...]:
    """Of each source, the keys that are not read."""
    each = enumerate(zip(sample.sources, data.all_sources, formats(data), strict=True))
    return tuple(
        unread.explained(pieces.unread, number, named, row_format, source.columns, len(source.rows))
        for number, (source, named, row_format) in each
    )


def _arranged(pieces: Pieces, data: DataConfig, scratch: Path) -> tuple[SplitStats, SplitStats]:
    """Copies left out, documents joined, examples packed: the rows of both splits, counted."""
    pieces.find_copies(deduplicate=data.deduplicate, leakage_check=data.leakage_check)
    with ExitStack() as stack:
        train, validation = (
            stack.enter_context(SplitWriter(scratch / name, data.max_length, packing=data.packing and name == TRAIN))
            for name in (TRAIN, VALIDATION)
        )
        for part in pieces.parts():
            train.add(part, part.train)
            validation.add(part, ~part.train)
    return train.counter.stats(pieces.counts, held_out=False), validation.counter.stats(pieces.counts, held_out=True)


def _lengths(table: "pa.RecordBatch") -> list[int]:
    import numpy as np

    lengths: list[int] = np.diff(table.column("input_ids").offsets.to_numpy()).tolist()
    return lengths


class _Seen:
    """What tokens the examples hold and train."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._stops, self._pad = stop_tokens(tokenizer), tokenizer.pad_token_id
        self.eos = self.pad = 0
        self.largest = -1
        self.documents = False

    def add(self, table: "pa.RecordBatch") -> None:
        """Look at a table of pieces."""
        import numpy as np

        if not table.num_rows:
            return
        ids, labels = table.column("input_ids"), table.column("labels")
        self.largest = max(self.largest, int(ids.values.to_numpy().max()))
        trained, ends = labels.values.to_numpy(), labels.offsets.to_numpy()
        assert IGNORED not in (*self._stops, self._pad)
        self.eos += int(np.logical_or.reduceat(np.isin(trained, self._stops), ends[:-1]).sum())
        self.pad += int(np.logical_or.reduceat(trained == self._pad, ends[:-1]).sum())
        self.documents = self.documents or bool(table.column("is_document").to_numpy(zero_copy_only=False).any())
