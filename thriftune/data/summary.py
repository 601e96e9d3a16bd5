"""A summary of a dataset for the log."""

import io
from collections import Counter
from collections.abc import Iterator, Sequence

from thriftune.data.report import HTML, examples_read, number, percent, share
from thriftune.data.statistics import DataStats, SourceStats, SplitStats

_LOG_COLUMNS = 110
_LOG_SOURCES, _LOG_REASONS = 2, 3
_LOG_KEYS = 3


def summary(stats: DataStats) -> str:
    """The statistics of a dataset on one screen, as plain text."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("train", "validation"):
        table.add_column(name, justify="right")
        table.add_column("share", justify="right")
    has_parts = stats.train.rejected_parts + stats.validation.rejected_parts > 0
    both = (_lines(split, has_parts, stats.labels) for split in (stats.train, stats.validation))
    for train, validation in zip(*both, strict=True):
        table.add_row(Text(train[0]), *train[1:], *validation[1:])  # labels may look like markup
    # The log has no colours, whatever the environment asks for.
    console = Console(file=io.StringIO(), width=_LOG_COLUMNS, force_terminal=False)
    console.print(table)
    for line in _lists(stats):
        console.print(Text(line), no_wrap=True, overflow="ellipsis")
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def _lines(split: SplitStats, has_parts: bool, labels: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """The lines of the table: label, number, and share of the rows, examples or tokens."""
    read = examples_read(split)
    yield "source rows", number(split.rows), ""
    yield "  rejected", number(split.rejected), percent(share(split.rejected, split.rows))
    if has_parts:
        yield "  parts of other rows rejected", number(split.rejected_parts), ""
    yield "examples", number(read), ""
    for label, count in (
        ("  duplicates, left out", split.duplicates),
        ("  leaked (held out too), left out", split.leaked),
        ("  dropped", split.dropped),
        ("  too long", split.too_long),
        ("    truncated", split.truncated),
        ("    split over several rows", split.split),
        ("  kept", split.examples),
    ):
        yield label, number(count), percent(share(count, read))
    yield "token rows", number(split.token_rows), ""
    yield "tokens", number(split.tokens), ""
    if labels:
        for label, count in zip(labels, split.classes, strict=True):
            yield f"rows of class {label}", number(count), percent(share(count, split.token_rows))
    else:
        yield "  trained on", number(split.trained_tokens), percent(share(split.trained_tokens, split.tokens))
        yield "  masked", number(split.masked_tokens), percent(share(split.masked_tokens, split.tokens))
    yield "padding to the longest of 8 examples", "", percent(split.padding_to_longest)
    yield "padding as written", "", percent(split.padding)
    yield "padding saved", "", percent(split.padding_saved)


def _lists(stats: DataStats) -> Iterator[str]:
    """Sources and reasons, the first few of each."""
    for source in stats.sources[:_LOG_SOURCES]:
        what = f"{source.format}, replayed" if source.is_replayed else source.format
        yield f"source {source.name} ({what}): {number(source.used)} of {number(source.rows)} rows used"
    if more := stats.sources[_LOG_SOURCES:]:
        used, rows = sum(source.used for source in more), sum(source.rows for source in more)
        yield f"{len(more)} more sources: {number(used)} of {number(rows)} rows used"
    for source in stats.sources[:_LOG_SOURCES]:
        yield from _not_read(source)
    reasons = Counter(stats.reasons).most_common()
    for reason, count in reasons[:_LOG_REASONS]:
        yield f"rejected {number(count)}: {reason}"
    if left := reasons[_LOG_REASONS:]:
        yield f"rejected {number(sum(count for _, count in left))}: other reasons, see {HTML}"


def _not_read(source: SourceStats) -> Iterator[str]:
    """The keys of a source that are not read: a separate line for each key with a hint."""
    for key in [key for key in source.unread if key.hint][:_LOG_KEYS]:
        yield f"not read in {number(key.rows)} rows: {key.name} ({key.hint}), of {source.name}"
    if others := [key.name for key in source.unread if not key.hint]:
        more = f" and {len(others) - _LOG_KEYS} more" if len(others) > _LOG_KEYS else ""
        yield f"also not read: {', '.join(others[:_LOG_KEYS])}{more}, of {source.name}"
