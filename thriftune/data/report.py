"""The report of a preparation: report.json for programs, and report.html for people; `summary` writes the log's."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from thriftune import artifacts, pages
from thriftune.data.prepared import POSITIONS, TRAIN
from thriftune.data.statistics import DataStats, SplitStats
from thriftune.data.tokenization import IGNORED

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HTML = "report.html"
JSON = "report.json"

_SAMPLES = 6
_SAMPLE_CHARACTERS = 1500
_SEGMENT_CHARACTERS = 500  # longer ones lose their middle, so that the start and end of loss are visible
_CONTEXT_TOKENS = 4  # decoded before a segment: some tokenizers drop the space at the start of a text
_PAGE_REASONS = 50
_PAGE_KEYS = 50

Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Segment:
    """Text of consecutive tokens of the same kind.

    Attributes:
        text: Their text.
        trained: Whether they carry loss.
        special: Whether they are special tokens.
        left_out: Characters left out here; `text` is empty then.
    """

    text: str
    trained: bool
    special: bool = False
    left_out: int = 0


@dataclass(frozen=True)
class Sample:
    """A training row to look at.

    Attributes:
        number: Its number in train.parquet, from 1.
        tokens: Number of its tokens.
        trained_tokens: Number of its tokens that carry loss.
        examples: Number of its examples.
        shown: The first examples that fit, as segments.
        left_out: Number of characters after the shown ones.
        label: Name of its class; empty if it has none.
    """

    number: int
    tokens: int
    trained_tokens: int
    examples: int
    shown: list[list[Segment]]
    left_out: int
    label: str = ""


def write(stats: DataStats, directory: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Write report.json and report.html next to the prepared rows. The same rows give the same bytes.

    Args:
        stats: Statistics of the rows.
        directory: The prepared dataset, with train.parquet in it.
        tokenizer: The tokenizer of its rows.
    """
    artifacts.write_text(directory / JSON, json.dumps(asdict(stats), indent=2) + "\n")
    page = render(stats, read_samples(directory / TRAIN, tokenizer, stats.labels))
    # A file name that is not UTF-8 contains half of a surrogate pair, which UTF-8 cannot encode.
    artifacts.write_text(directory / HTML, page)


def render(stats: DataStats, samples: Sequence[Sample]) -> str:
    """The report as one HTML page that loads nothing; texts of rows are escaped."""
    reasons = Counter(stats.reasons).most_common()
    return pages.render(
        "data/report.html.jinja",
        {"number": number, "percent": percent, "read": examples_read, "share": share, "zip": zip},
        stats=stats,
        samples=samples,
        reasons=reasons[:_PAGE_REASONS],
        more_reasons=len(reasons[_PAGE_REASONS:]),
        max_keys=_PAGE_KEYS,
    )


def number(count: int) -> str:
    """A count with thousands separators."""
    return f"{count:,}"


def percent(value: float) -> str:
    """A share as text: never 0 % for something, nor 100 % for less than all."""
    if 0 < value < 0.0005:
        return "<0.1%"
    if 0.9995 <= value < 1:
        return ">99.9%"
    return f"{value:.1%}"


def share(part: int, whole: int) -> float:
    """`part` divided by `whole`, from 0 to 1; 0 if both are 0."""
    return part / whole if whole else 0.0


def examples_read(split: SplitStats) -> int:
    """Number of examples of a split before any was left out."""
    return split.examples + split.dropped + split.duplicates + split.leaked


def read_samples(file: Path, tokenizer: "PreTrainedTokenizerBase", labels: Sequence[str] = ()) -> list[Sample]:
    """Some rows of a Parquet file, as text. Reads their row groups, one at a time.

    Args:
        file: Rows of a split.
        tokenizer: Their tokenizer.
        labels: Names of the classes of labelled rows; none for other rows.

    Returns:
        Rows spread over the whole file, and so from every large source.
    """
    import pyarrow.parquet as pq

    added = tokenizer.added_tokens_decoder.items()
    special = {token_id for token_id, token in added if token.special} | set(tokenizer.all_special_ids)

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    samples: list[Sample] = []
    with pq.ParquetFile(file) as parquet:
        columns = [name for name in ("input_ids", "labels", POSITIONS) if name in parquet.schema_arrow.names]
        wanted, first = spread(parquet.metadata.num_rows, _SAMPLES), 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if indices := [i - first for i in wanted if first <= i < first + rows]:
                taken = parquet.read_row_group(group, columns=columns).take(indices).to_pylist()
                for i, row in zip(indices, taken, strict=True):
                    samples.append(sample(first + i + 1, row, special, decode, labels))
            first += rows
    return samples


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the indices from 0 to `count` - 1, evenly spaced."""
    wanted = min(count, wanted)
    return [(2 * i + 1) * count // (2 * wanted) for i in range(wanted)]


def sample(
    row_number: int, row: dict[str, list[int]], special: set[int], decode: Decode, classes: Sequence[str] = ()
) -> Sample:
    """A row as text.

    Args:
        row_number: Its number in the file, from 1.
        row: Its input_ids, labels and, if packed, position_ids.
        special: Ids of the special tokens.
        decode: Returns the text of token ids.
        classes: Names of the classes of labelled rows; none for other rows.
    """
    ids, labels, name = row["input_ids"], row["labels"], ""
    if classes:  # of which no token is trained
        labels, name = [IGNORED] * len(ids), classes[labels[-1]]
    starts = [i for i, position in enumerate(row.get(POSITIONS, [])) if position == 0] or [0]
    examples = [
        list(segments(ids[start:end], labels[start:end], special, decode))
        for start, end in zip(starts, [*starts[1:], len(ids)], strict=True)
    ]
    shown, left_out = shortened(examples)
    return Sample(row_number, len(ids), len(labels) - labels.count(IGNORED), len(examples), shown, left_out, name)


def segments(ids: list[int], labels: list[int], special: set[int], decode: Decode) -> Iterator[Segment]:
    """An example as text, cut where training starts or ends and around special tokens.

    Args:
        ids: Tokens of the example.
        labels: Their labels.
        special: Ids of the special tokens.
        decode: Returns the text of token ids.

    Yields:
        Segments that together form the example.
    """
    kinds = ((label != IGNORED, token in special) for token, label in zip(ids, labels, strict=True))
    end = 0
    for (is_trained, is_special), tokens in groupby(kinds):
        start, end = end, end + len(list(tokens))
        context = ids[max(0, start - _CONTEXT_TOKENS) : start]
        before, text = decode(context), decode(context + ids[start:end])
        # If the bytes of a character cross the border, the text before it is not a prefix of the whole.
        text = text[len(before) :] if text.startswith(before) else decode(ids[start:end])
        yield Segment(text, is_trained, is_special)


def shortened(
    examples: list[list[Segment]], limit: int = _SAMPLE_CHARACTERS, longest: int = _SEGMENT_CHARACTERS
) -> tuple[list[list[Segment]], int]:
    """Shorten the text of a row.

    Args:
        examples: The segments of each of its examples.
        limit: Most characters to show in total.
        longest: Most characters to show of a segment; the middle of a longer one is left out.

    Returns:
        The segments to show, and the number of characters after them.
    """
    shown: list[list[Segment]] = []
    for example in examples:
        if limit > 0:
            shown.append([])
        for segment in (part for whole in example for part in _without_middle(whole, longest)):
            if limit > 0:
                shown[-1].append(replace(segment, text=segment.text[:limit]))
                limit -= len(segment.text)
    total = sum(len(segment.text) for example in examples for segment in example)
    return shown, total - sum(len(segment.text) + segment.left_out for example in shown for segment in example)


def _without_middle(segment: Segment, longest: int) -> list[Segment]:
    left_out = len(segment.text) - longest
    if left_out <= 0:
        return [segment]
    head, tail = segment.text[: longest // 2], segment.text[longest // 2 + left_out :]
    return [replace(segment, text=head), replace(segment, text="", left_out=left_out), replace(segment, text=tail)]
