"""What the sampled rows show about the data: rejected and long rows, tokens trained on, ids in the embedding table."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from thriftune.config import DataConfig
from thriftune.data.report import number, percent
from thriftune.data.selection import Mix, rows_for_lack_of_replay
from thriftune.data.statistics import Bin, bins, where_rows_went
from thriftune.errors import Problem
from thriftune.models.architecture import Architecture
from thriftune.models.stopping import stop_tokens
from thriftune.preflight.outcome import attempt
from thriftune.preflight.rows import Tried
from thriftune.preflight.sampling import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_SOURCE, _LENGTH, _REJECTED = "data.source", "data.max_length", "data.max_rejected"
_LABELS = "classification.labels"
# If so large a share of the sample cannot be used, the format is wrong.
_SURELY = 0.5
# A class with so many times fewer rows than the largest is called rare.
_RARE = 10
_MOST = 0.95
_SHOWN_KEYS = 10
_LONGEST_SHOWN = 4  # times max_length: one book among short answers must not flatten the histogram


def check(
    tried: Tried,
    sample: Sample,
    data: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
    architecture: Architecture,
) -> Iterator[Problem]:
    """Check the sampled rows.

    Args:
        tried: The converted rows.
        sample: The sampled rows.
        data: The data section.
        tokenizer: The tokenizer.
        architecture: Of the base model.
    """
    rejected = list(_rejected(tried, sample, data))
    yield from rejected
    yield from _unread(tried, data)
    yield from _replayed(sample, data)
    if tried.rejections.rows == tried.rows and rejected:
        return
    yield from _lengths(tried, sample, data)
    if not _all_dropped(tried):
        yield from _left(tried, sample)
    if tried.stats.labels:
        yield from _classes(tried, sample)
    else:
        yield from _trained(tried, sample, data, tokenizer)
    if tried.largest_token >= architecture.vocabulary:
        yield Problem.coded(
            "token-outside-embedding",
            "model.source",
            f"token {tried.largest_token}",
            f"is in the rows, and the embedding table has {architecture.vocabulary} rows.",
            "Use the tokenizer that belongs to the model, or enlarge the table and save the model.",
        )


def histogram(tried: Tried, max_length: int) -> tuple[Bin, ...]:
    """Lengths of the examples before any is cut; the last bar holds those far beyond the maximum.

    Args:
        tried: The converted rows.
        max_length: data.max_length, in tokens.
    """
    import numpy as np

    if not tried.lengths:
        return ()
    longest = max(tried.lengths)
    limit = min(max(longest, max_length), _LONGEST_SHOWN * max_length)
    counts = np.bincount(np.minimum(tried.lengths, limit), minlength=limit + 1)
    bars = bins(counts)
    return (*bars[:-1], Bin(bars[-1].low, max(longest, bars[-1].high), bars[-1].count))


def too_long_share(tried: Tried, max_length: int) -> float | None:
    """Share of the examples that are longer than the maximum; None where there are none."""
    return sum(length > max_length for length in tried.lengths) / len(tried.lengths) if tried.lengths else None


def trained_share(tried: Tried) -> float | None:
    """Share of the tokens that carry loss; None where there are none, or labels in place of them."""
    if tried.stats.labels:
        return None
    tokens = tried.train.tokens + tried.validation.tokens
    return (tried.train.trained_tokens + tried.validation.trained_tokens) / tokens if tokens else None


def _rejected(tried: Tried, sample: Sample, data: DataConfig) -> Iterator[Problem]:
    """Rows that cannot be used. In a sample, only what is practically certain for all rows is an error."""
    rejections = tried.rejections
    if not rejections.reasons:
        return
    share, first = rejections.rows / tried.rows, next(iter(rejections.reasons))
    if rejections.rows == tried.rows and rejections.causes == {"chat template"}:
        message = f"none of {tried.rows} conversations can be rendered, the first because {first}."
        remedy = "Repair chat_template.jinja, use another instruct model, or change the roles in the data."
        yield Problem.coded("chat-template-fails", "data.format", "chat", message, remedy)
        return
    used = [tried.rows] if sample.is_whole or share >= _SURELY else sample.used_rows(data)
    total = None if used is None else sum(used)
    few = None if total is None else attempt(lambda: rejections.require_few(total, data.max_rejected), _REJECTED, "")
    if few is not None and few.failed:
        yield from few.findings
    elif share > data.max_rejected:
        yield Problem.coded(
            "rejected-in-sample",
            _REJECTED,
            data.max_rejected,
            f"{rejections.rows} of the first {tried.rows} rows ({percent(share)}) cannot be used, the first "
            f"because {first}.",
            "Look at them: if the rest is alike, preparing the data will stop.",
        )


def _replayed(sample: Sample, data: DataConfig) -> Iterator[Problem]:
    """Rows of the task that are not used, for lack of rows to replay beside them."""
    totals = [source.total for source in sample.sources]
    if data.replay is None or not all(totals):
        return
    rows = [total for total in totals if total is not None]
    left_out = rows_for_lack_of_replay(rows, Mix.of(data))
    if left_out:
        yield Problem.coded(
            "replay-too-few-rows",
            "data.replay.share",
            data.replay.share,
            f"the source has {number(rows[-1])} rows, too few for the others: {number(left_out)} of "
            f"{number(sum(rows[:-1]))} rows of the task are not used.",
            "Use a smaller share, or a source with more rows.",
        )


def _unread(tried: Tried, data: DataConfig) -> Iterator[Problem]:
    """Keys that are not read: a warning for each that looks like a misspelt key, one note for the others."""
    for section, source in zip(data.source_fields, tried.stats.sources, strict=True):
        for key in (key for key in source.unread if key.hint):
            message = f"has {key.rows} rows that say something under {key.name!r}, which is not read ({key.hint})."
            mapped = "" if "[]" in key.name else f" Or map it in {section}.columns."
            remedy = f"Rename or remove it in the data.{mapped}"
            yield Problem.coded("key-not-read", f"{section}.source", source.name, message, remedy)
        others = [f"{key.name} ({key.rows})" for key in source.unread if not key.hint]
        if others:
            more = f" and {len(others) - _SHOWN_KEYS} more" if len(others) > _SHOWN_KEYS else ""
            message = f"its rows also have keys that are not read: {', '.join(others[:_SHOWN_KEYS])}{more}."
            yield Problem.coded("other-keys", f"{section}.source", source.name, message)


def _lengths(tried: Tried, sample: Sample, data: DataConfig) -> Iterator[Problem]:
    """Examples that are longer than the maximum, and what happens to them."""
    too_long, examples = _sum(tried, "too_long"), len(tried.lengths)
    if not too_long:
        return
    if _all_dropped(tried):
        yield Problem.coded(
            "all-rows-too-long",
            _LENGTH,
            data.max_length,
            f"nothing of {_scope(sample, 'examples')} is left: the shortest has {min(tried.lengths)} tokens.",
            f"Raise it: {_longer(tried, data.max_length)}.",
        )
        return
    fates = (("truncated", "cut at the end"), ("split", "split over several rows"), ("dropped", "dropped"))
    what = ", ".join(f"{_sum(tried, name)} {fate}" for name, fate in fates if _sum(tried, name))
    yield Problem.coded(
        "rows-too-long",
        _LENGTH,
        data.max_length,
        f"{percent(too_long / examples)} of {_scope(sample, 'examples')} are longer: {what}.",
        f"Raise it, or choose another data.long_rows: {_longer(tried, data.max_length)}.",
    )


def _all_dropped(tried: Tried) -> bool:
    """Whether every example is longer than the maximum, and dropped."""
    examples = len(tried.lengths)
    return tried.kept == 0 and 0 < examples <= _sum(tried, "too_long")


def _left(tried: Tried, sample: Sample) -> Iterator[Problem]:
    """Whether anything is left to train on and to measure on."""
    names = ", ".join(source.name for source in sample.sources)
    reasons = tried.rejections.reasons
    remedy = "Give more, and different, rows."
    # In a part of the data, other rows are held out than in the run.
    if not (sample.is_whole or tried.kept == 0):
        return
    if not tried.train.token_rows:
        message = f"nothing is left to train on: {where_rows_went(tried.train, reasons)}."
        yield Problem.coded("no-training-rows", _SOURCE, names, message, remedy)
    elif not tried.validation.token_rows:
        message = f"nothing is left to measure loss on: {where_rows_went(tried.validation, reasons)}."
        yield Problem.coded("no-held-out-rows", _SOURCE, names, message, remedy)


def _trained(tried: Tried, sample: Sample, data: DataConfig, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Problem]:
    """The special tokens among what is trained on."""
    if tried.kept and not tried.trained_eos:
        yield Problem.coded(
            "eos-never-trained",
            _LENGTH,
            data.max_length,
            f"none of {_scope(sample, 'examples')} trains {tokenizer.eos_token!r}, because all are cut before it; "
            "answers would never end.",
            f"Raise it: {_longer(tried, data.max_length)}.",
        )
    if tried.trained_pad and tokenizer.pad_token_id not in stop_tokens(tokenizer):
        yield Problem.coded(
            "pad-trained",
            _SOURCE,
            ", ".join(source.name for source in sample.sources),
            f"{tried.trained_pad} of {_scope(sample, 'examples')} train the pad token {tokenizer.pad_token!r}.",
            "Remove it from the answers, or give the tokenizer a pad token that no text makes.",
        )


def _classes(tried: Tried, sample: Sample) -> Iterator[Problem]:
    """Classes that no row, or next to no row, would train."""
    counted = dict(zip(tried.stats.labels, tried.train.classes, strict=True))
    most = max(counted.values())
    absent = [label for label, count in counted.items() if not count]
    if absent and most:
        message = f"has classes that no row in {_scope(sample, 'training rows')} has: {', '.join(absent)}."
        remedy = "Look at the labels of the rows; a model does not learn a class without rows."
        yield Problem.coded("class-without-rows", _LABELS, ", ".join(absent), message, remedy)
    rare = [f"{label} ({number(count)})" for label, count in counted.items() if 0 < count * _RARE < most]
    if rare:
        label = max(counted, key=counted.__getitem__)
        message = (
            f"of {_scope(sample, 'training rows')}, few have the classes {', '.join(rare)}; {label} has {number(most)}."
        )
        remedy = "Read the macro-F1 beside the accuracy, or give more rows of them."
        yield Problem.coded("classes-unbalanced", _LABELS, ", ".join(rare), message, remedy)


def _scope(sample: Sample, what: str) -> str:
    return f"all {what}" if sample.is_whole else f"the {what} in the first {sample.count} rows"


def _longer(tried: Tried, max_length: int) -> str:
    """A row length that holds most of the examples whole, or all of them if most fit already."""
    in_order = sorted(tried.lengths)
    enough = in_order[min(len(in_order) - 1, int(_MOST * len(in_order)))]
    if enough > max_length and enough < in_order[-1]:
        return f"{number(enough)} holds {_MOST:.0%} of them, {number(in_order[-1])} all"
    return f"{number(in_order[-1])} holds all of them"


def _sum(tried: Tried, name: str) -> int:
    return int(getattr(tried.train, name)) + int(getattr(tried.validation, name))
