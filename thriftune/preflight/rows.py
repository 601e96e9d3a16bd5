"""Convert and arrange the sampled rows as data preparation does, and describe the result."""

import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thriftune.config import RunConfig
from thriftune.data import prepare
from thriftune.data.conversion import Converter
from thriftune.data.pieces import Pieces
from thriftune.data.rejection import REJECTED, Rejections
from thriftune.data.statistics import DataStats, SplitStats
from thriftune.data.tokenization import IGNORED
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
    """The converted rows of a sample.

    Attributes:
        stats: Data preparation's statistics of them.
        rejections: Rows, or parts of rows, that cannot be used.
        lengths: Tokens of every example that can be used, before any is cut.
        trained_eos: Examples that train EOS.
        trained_pad: Examples that train the pad token.
        largest_token: Highest token id.
    """

    stats: DataStats
    rejections: Rejections
    lengths: tuple[int, ...]
    trained_eos: int
    trained_pad: int
    largest_token: int

    @property
    def train(self) -> SplitStats:
        """Statistics of the rows to train on."""
        return self.stats.train

    @property
    def validation(self) -> SplitStats:
        """Statistics of the rows held out."""
        return self.stats.validation

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
    with tempfile.TemporaryDirectory() as scratch:
        return attempt(lambda: _tried(sample, config, tokenizer, Path(scratch)), "data.source", "")


def _tried(sample: Sample, config: RunConfig, tokenizer: "PreTrainedTokenizerBase", scratch: Path) -> Tried:
    data, seed, labels = config.data, config.seed, config.labels
    opened = [source.opened() for source in sample.sources]
    # Mixing a part of the sources would leave out rows that should be checked.
    selections, coming = prepare.chosen(opened, data, seed, scratch, is_mixed=sample.is_whole)
    converter = Converter(data, tokenizer, labels)
    uncut = Converter(data.model_copy(update={"max_length": _UNCUT, "long_rows": "truncate"}), tokenizer, labels)
    pieces, lengths, seen = Pieces(scratch, labels), list[int](), _Seen(tokenizer)
    with Rejections(scratch / REJECTED) as rejections, pieces.writing() as write:
        for batch in coming:
            converted = converter.convert(batch)
            write(converted)
            rejections.add(converted.rejected, converted.rejected_rows)
            seen.add(converted.table)
            lengths += _lengths(uncut.convert(batch).table)
    stats = prepare.arranged(opened, selections, data, seed, pieces, scratch)
    return Tried(stats, rejections, tuple(lengths), seen.eos, seen.pad, seen.largest)


def _lengths(table: "pa.RecordBatch") -> list[int]:
    import numpy as np

    lengths: list[int] = np.diff(table.column("input_ids").offsets.to_numpy()).tolist()
    return lengths


class _Seen:
    """Collect which tokens the examples contain and train."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._stops, self._pad = stop_tokens(tokenizer), tokenizer.pad_token_id
        self.eos = self.pad = 0
        self.largest = -1

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
