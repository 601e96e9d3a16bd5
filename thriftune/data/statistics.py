"""Statistics of a dataset: counted while it is written, shown in the report and kept as JSON."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter

from thriftune.data.tokenization import IGNORED

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from thriftune.data.arrangement import Rows

_BINS = 24
_SHOWN_REASONS = 3
_BATCH = 8  # rows of the batches that padding is estimated for


@dataclass(frozen=True)
class UnreadKey:
    """A key of rows, or of messages in them, that is not read.

    Attributes:
        name: The key; column[].key if it is inside a column.
        rows: Number of used rows with a value for it.
        hint: What it was probably meant for, or why it is not read; empty if unknown.
    """

    name: str
    rows: int
    hint: str = ""


@dataclass(frozen=True)
class SourceStats:
    """Statistics of one source.

    Attributes:
        name: The source as the configuration names it.
        format: Format of its rows.
        rows: Number of its rows.
        used: Number of rows left after `max_rows`, the weights and the share of replayed rows.
        unread: Keys of its rows that are not read; those with a hint come first.
        is_replayed: Whether its rows are only trained on, against forgetting.
    """

    name: str
    format: str
    rows: int
    used: int
    unread: tuple[UnreadKey, ...] = ()
    is_replayed: bool = False


@dataclass(frozen=True)
class Bin:
    """A bar of a histogram: `count` rows of `low` to `high` tokens, both included."""

    low: int
    high: int
    count: int


@dataclass(frozen=True)
class SplitStats:
    """Statistics of one split, in numbers of rows, examples or tokens.

    Attributes:
        rows: Source rows.
        rejected: Rows of which nothing can be used; rejected.parquet says why.
        rejected_parts: Parts of other rows that cannot be used, such as one of several corrections.
        too_long: Examples longer than the maximum length.
        truncated: Too long examples that were cut.
        split: Too long examples that continue in another row.
        pieces_without_answer: Pieces of split examples left out because they hold no token to train on.
        dropped: Examples left out: too long by policy, or with no token to train on after the cut.
        duplicates: Examples left out because another one is identical.
        leaked: Training examples left out because they are also held out.
        examples: Examples that remain.
        token_rows: Rows of tokens written.
        tokens: Tokens written.
        trained_tokens: Tokens that carry loss; the others are masked.
        lengths: Histogram of the tokens of examples, or blocks of documents, before packing.
        row_lengths: Histogram of the tokens of rows written.
        padding_to_longest: Share of padding if examples were padded to the longest of 8 random ones.
        padding: The same for the rows as written.
        classes: Number of labelled rows of each class; empty for other rows.
    """

    rows: int
    rejected: int
    rejected_parts: int
    too_long: int
    truncated: int
    split: int
    pieces_without_answer: int
    dropped: int
    duplicates: int
    leaked: int
    examples: int
    token_rows: int
    tokens: int
    trained_tokens: int
    lengths: tuple[Bin, ...]
    row_lengths: tuple[Bin, ...]
    padding_to_longest: float
    padding: float
    classes: tuple[int, ...] = ()

    @property
    def masked_tokens(self) -> int:
        """Tokens that the model reads but is not trained on."""
        return self.tokens - self.trained_tokens

    @property
    def padding_saved(self) -> float:
        """Share of the pad tokens that packing saves; negative if tiny data get more padding than before."""
        before, after = (share / (1 - share) for share in (self.padding_to_longest, self.padding))
        return 1 - after / before if before else 0.0


@dataclass(frozen=True)
class DataStats:
    """Statistics of a dataset.

    Attributes:
        sources: The sources of the rows.
        train: The rows to train on.
        validation: The rows held out.
        reasons: Number of rejected rows by reason.
        packing: Whether training rows hold several examples.
        max_length: Longest row, in tokens.
        labels: Names of the classes of labelled rows; empty for other rows.
    """

    sources: tuple[SourceStats, ...]
    train: SplitStats
    validation: SplitStats
    reasons: dict[str, int]
    packing: bool
    max_length: int
    labels: tuple[str, ...] = ()


def where_rows_went(split: SplitStats, reasons: Mapping[str, int]) -> str:
    """Why nothing is left of a split, with numbers.

    Args:
        split: The split.
        reasons: Number of rejected rows of both splits by reason.
    """
    common = Counter(reasons).most_common()
    shown = [f"{count} x {reason}" for reason, count in common[:_SHOWN_REASONS]]
    if more := sum(count for _, count in common[_SHOWN_REASONS:]):
        shown.append(f"{more} for other reasons")
    went = {
        f"rejected (of all rows: {', '.join(shown)})": split.rejected,
        "dropped for their length": split.dropped,
        "duplicates": split.duplicates,
        "also held out": split.leaked,
    }
    where = ", ".join(f"{count} {what}" for what, count in went.items() if count)
    return f"of {split.rows} rows, {where or 'none can be used'}"


class SplitCounter:
    """Counts one split while it is written; its memory depends only on the maximum length."""

    def __init__(self, max_length: int, classes: int = 0) -> None:
        """Start at zero.

        Args:
            max_length: Longest row, in tokens.
            classes: Number of classes of labelled rows; 0 for other rows.
        """
        import numpy as np

        self.examples = self.token_rows = self.tokens = self.trained_tokens = 0
        self.duplicates = self.leaked = 0
        self._lengths = np.zeros(max_length + 1, dtype=np.int64)
        self._row_lengths = np.zeros(max_length + 1, dtype=np.int64)
        self._classes = np.zeros(classes, dtype=np.int64)

    def before_packing(self, rows: "Rows") -> None:
        """Count examples or blocks before packing."""
        import numpy as np

        self._lengths += np.bincount(rows.lengths, minlength=len(self._lengths))

    def written(self, rows: "Rows") -> None:
        """Count rows as they are written."""
        import numpy as np

        self.token_rows += len(rows.ends) - 1
        self.tokens += len(rows.input_ids)
        self.trained_tokens += int((rows.labels != IGNORED).sum())
        if len(self._classes):
            self._classes += np.bincount(rows.labels[rows.labels != IGNORED], minlength=len(self._classes))
        self._row_lengths += np.bincount(rows.lengths, minlength=len(self._row_lengths))

    def stats(self, counts: Counter[tuple[bool, str]], *, held_out: bool) -> SplitStats:
        """The statistics of the split.

        Args:
            counts: The counts of conversion, by (is held out, what happened).
            held_out: Whether this split is the held-out one.
        """
        rows = ("rows", "rejected", "rejected_parts")
        names = (*rows, "too_long", "truncated", "split", "pieces_without_answer", "dropped")
        return SplitStats(
            **{name: counts[held_out, name] for name in names},
            duplicates=self.duplicates,
            leaked=self.leaked,
            examples=self.examples,
            token_rows=self.token_rows,
            tokens=self.tokens,
            trained_tokens=self.trained_tokens,
            lengths=bins(self._lengths),
            row_lengths=bins(self._row_lengths),
            padding_to_longest=padding_share(self._lengths, _BATCH),
            padding=padding_share(self._row_lengths, _BATCH),
            classes=tuple(self._classes.tolist()),
        )


def bins(counts: "npt.NDArray[np.int64]") -> tuple[Bin, ...]:
    """Turn a histogram with a bar for each length into one with few bars.

    Args:
        counts: Number of rows of each length, from 0 on. Shape [maximum length + 1].

    Returns:
        Bars of equal width from 1 to the maximum length.
    """
    width = max(1, -(-(len(counts) - 1) // _BINS))
    return tuple(
        Bin(low, min(low + width, len(counts)) - 1, int(counts[low : low + width].sum()))
        for low in range(1, len(counts), width)
    )


def padding_share(counts: "npt.NDArray[np.int64]", batch: int) -> float:
    """The expected share of padding if random rows are padded to the longest of their batch.

    Args:
        counts: Number of rows of each length, from 0 on. Shape [maximum length + 1].
        batch: Rows in a batch.

    Returns:
        From 0 to 1: the expected maximum of `batch` independent draws is the sum over all lengths of
        1 - P(length < l) ** batch.
    """
    import numpy as np

    total = int(counts.sum())
    if total == 0:
        return 0.0
    mean = float((counts * np.arange(len(counts))).sum()) / total
    shorter = np.concatenate([[0], np.cumsum(counts)[:-1]]) / total
    longest = float((1 - shorter[1:] ** batch).sum())
    return max(0.0, 1 - mean / longest)


def stats_from_json(content: dict[str, Any]) -> DataStats:
    """The statistics that a preparation wrote to report.json."""
    return TypeAdapter(DataStats).validate_python(content)
