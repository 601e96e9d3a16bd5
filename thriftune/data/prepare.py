"""Prepare a dataset once, on a CPU: rows in, tokenized Parquet and a report on the rows out.

Rows stream through: sources -> selection -> hold-out -> conversion (in parallel) -> a file of pieces -> search for
copies on disk -> arrangement. No step holds more than a window of the data.
"""

import hashlib
import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from thriftune import artifacts
from thriftune.config import DataConfig
from thriftune.data import report, unread
from thriftune.data.batches import batches
from thriftune.data.conversion import Batch, formats
from thriftune.data.held_out import hold_out
from thriftune.data.pieces import Pieces
from thriftune.data.prepared import TRAIN, VALIDATION, write_samples
from thriftune.data.rejection import REJECTED, Rejections
from thriftune.data.selection import Mix, Selection, select
from thriftune.data.sources import OpenSource, open_source
from thriftune.data.splits import SplitWriter
from thriftune.data.statistics import DataStats, SourceStats, SplitCounter, where_rows_went
from thriftune.data.summary import summary
from thriftune.data.tokenization import require_usable
from thriftune.data.workers import Workers, convert_all
from thriftune.errors import DataError, ModelSourceError, Problem
from thriftune.models.tokenizer import fingerprint as tokenizer_fingerprint
from thriftune.models.tokenizer import load_tokenizer
from thriftune.progress import progress

logger = logging.getLogger(__name__)

# Increased when the same inputs give other rows: a training on the old rows does not resume with the new ones.
PREPARATION = "5"


def prepare(
    config: DataConfig,
    *,
    seed: int,
    tokenizer_dir: Path,
    destination: Path,
    data_version: str = "",
    tokenizer_version: str = "",
    trust_remote_code: bool = False,
    token: str | None = None,
    table: Sequence[Path] = (),
    processes: int | None = None,
    labels: tuple[str, ...] = (),
) -> DataStats:
    """Read, select, tokenize, arrange and write a dataset.

    Args:
        config: The data section of a run.
        seed: Decides which rows are used, which of them are held out, and which share a packed row.
        tokenizer_dir: Directory with the tokenizer.
        destination: Directory to create: train.parquet and validation.parquet (input_ids, labels, length, and
            position_ids where packed), rejected.parquet (source, row, reason), samples.json (held-out questions),
            report.html, report.json and manifest.json. The same inputs give the same bytes.
        data_version: Result of `sources.versions`; part of the fingerprint.
        tokenizer_version: Fingerprint that the tokenizer must have, as this installation loads it; empty for any.
        trust_remote_code: Run tokenizer code that the model ships.
        token: Hub token, for hub datasets.
        table: Parquet files of the table given to the workflow, for source input:table.
        processes: Number of processes that tokenize; if None, one for each core that this process may use.
        labels: Names of the classes, for labelled rows.

    Returns:
        Statistics of the rows.

    Raises:
        DataError: A source cannot be read, a column is missing, the share of unusable rows is above `max_rejected`,
            or nothing is left to train on.
        ModelSourceError: The tokenizer has another fingerprint.
        TransientError: The hub or a store did not answer.
    """
    tokenizer = load_tokenizer(tokenizer_dir, trust_remote_code=trust_remote_code)
    found = tokenizer_fingerprint(tokenizer, tokenizer_dir if trust_remote_code else None)
    if tokenizer_version not in ("", found):
        message = "its tokenizer was changed after the preflight saw it, and before the model was fetched."
        raise ModelSourceError.single("model.source", "", message, "Start the run again, with the model as it is now.")
    require_usable(tokenizer, needs_chat_template=any(f.is_chat for f in formats(config)))
    workers = Workers(tokenizer_dir, trust_remote_code, processes, labels)
    with (
        artifacts.writing(destination, "preparing the dataset") as directory,
        tempfile.TemporaryDirectory() as scratch_name,
    ):
        scratch = Path(scratch_name)
        opened = _open(config, scratch, token, table)
        selections, coming = chosen(opened, config, seed, scratch)
        pieces = Pieces(scratch, labels)
        total = sum(selection.used for selection in selections)
        _convert(coming, total, config, workers, directory, pieces)
        stats = arranged(opened, selections, config, seed, pieces, directory)
        _require_tokens(stats)
        write_samples(pieces.samples(), directory)
        report.write(stats, directory, tokenizer)
        key = fingerprint(config, seed, data_version, found, labels)
        about = {"seed": seed, "fingerprint": key, "data_version": data_version, "report": asdict(stats)}
        about |= {"data": config.model_dump(mode="json"), "content_sha256": _content_digest(directory)}
        artifacts.write_manifest(directory, "dataset", about)
    logger.info("\n%s", summary(stats))
    logger.info("Report: %s", destination / report.HTML)
    return stats


def fingerprint(
    config: DataConfig, seed: int, data_version: str, tokenizer_version: str, labels: Sequence[str] = ()
) -> str:
    """A SHA-256 of everything that a prepared dataset depends on: rows, their meaning, template, tokenizer and seed.

    Args:
        config: The data section of a run.
        seed: Seed of the run.
        data_version: Result of `sources.versions`.
        tokenizer_version: Result of `thriftune.models.tokenizer.fingerprint`, which includes the chat template
            and, where a run trusts it, the code that the model ships.
        labels: Names of the classes, for labelled rows.
    """
    # The path of the rows and the name of their revision do not matter; `data_version` identifies them. Nor does the
    # order of columns, which is another each time where a run comes from Flyte's console or a launch plan.
    place = {"source", "revision"}
    meaning = config.model_dump(
        mode="json", exclude={**dict.fromkeys(place, True), "sources": {"__all__": place}, "replay": place}
    )
    if config.replay is None:  # as before there was such a key, so that trainings of then resume
        del meaning["replay"]
    parts = [PREPARATION, json.dumps(meaning, sort_keys=True), str(seed), data_version, tokenizer_version]
    parts += [json.dumps(list(labels))] if labels else []
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _open(config: DataConfig, scratch: Path, token: str | None, table: Sequence[Path]) -> list[OpenSource]:
    """Open every source, and refuse one that lacks a column."""
    opened = [
        open_source(
            source, scratch=scratch / f"source{number}", token=token, table=table, columns=row_format.all_columns
        )
        for number, (source, row_format) in enumerate(zip(config.all_sources, formats(config), strict=True))
    ]
    require_columns(opened, config)
    return opened


def chosen(
    opened: Sequence[OpenSource], config: DataConfig, seed: int, scratch: Path, *, is_mixed: bool = True
) -> tuple[list[Selection], Iterator[Batch]]:
    """Decide which rows are used, and which of them are held out.

    Args:
        opened: The sources.
        config: The data section of a run.
        seed: Seed of the run.
        scratch: Folder to write to.
        is_mixed: Whether to mix the sources as the run does; else all of their rows are used.

    Returns:
        The selection of each source, and the batches of rows to convert.

    Raises:
        DataError: Fewer than two distinct rows are left.
    """
    selections = select([source.count for source in opened], Mix.of(config) if is_mixed else Mix(), seed=seed)
    held_out = hold_out(
        opened,
        selections,
        formats(config),
        share=config.validation_share,
        of_task=len(config.task_sources),
        folder=scratch,
    )
    return selections, batches(opened, selections, held_out)


def require_columns(opened: Sequence[OpenSource], config: DataConfig) -> None:
    """Refuse sources that lack a column that their format needs.

    Args:
        opened: The sources.
        config: The data section of a run.

    Raises:
        DataError: Names each such source.
    """
    problems = []
    each = zip(config.source_fields, config.all_sources, opened, formats(config), strict=True)
    for section, named, source, row_format in each:
        missing = [column for column in row_format.columns if column not in source.columns]
        if missing:
            problems.append(
                Problem(
                    f"{section}.{'template' if named.template else 'format'}",
                    named.template or str(named.format),
                    f"needs the columns {', '.join(missing)}; {source.name} has {', '.join(source.columns) or 'none'}.",
                    f"Choose a format that fits the columns, or map their names in {section}.columns.",
                )
            )
    if problems:
        raise DataError.of("data-columns-missing", problems)


def _convert(
    coming: Iterator[Batch], total: int, config: DataConfig, workers: Workers, directory: Path, pieces: Pieces
) -> None:
    """Turn every selected row into tokens, or set it aside."""
    with (
        Rejections(directory / REJECTED) as rejections,
        progress(total, "Tokenizing") as bar,
        pieces.writing() as write,
    ):
        for converted in convert_all(coming, config, workers):
            write(converted)
            rejections.add(converted.rejected, converted.rejected_rows)
            bar.update(sum(count for (_, what), count in converted.counts.items() if what == "rows"))
        rejections.require_few(total, config.max_rejected)
        pieces.reasons = dict(rejections.reasons.most_common())


def _arrange(pieces: Pieces, config: DataConfig, seed: int, directory: Path) -> dict[str, SplitCounter]:
    """Write the rows of both splits. Held-out rows are never packed, so that their loss is comparable between runs."""
    with ExitStack() as stack:
        splits = {
            name: stack.enter_context(
                SplitWriter(
                    directory / name,
                    config.max_length,
                    packing=config.packing and name == TRAIN,
                    seed=seed,
                    classes=len(pieces.labels),
                )
            )
            for name in (TRAIN, VALIDATION)
        }
        for part in pieces.parts():
            splits[TRAIN].add(part, part.train)
            splits[VALIDATION].add(part, ~part.train)
    return {name: split.counter for name, split in splits.items()}


def arranged(
    opened: Sequence[OpenSource],
    selections: Sequence[Selection],
    config: DataConfig,
    seed: int,
    pieces: Pieces,
    directory: Path,
) -> DataStats:
    """Leave out copies, join documents, pack, and write the rows of both splits.

    Args:
        opened: The sources.
        selections: The selection of each source.
        config: The data section of a run.
        seed: Seed of the run, which decides the examples that share a packed row.
        pieces: All converted pieces.
        directory: Folder to write to.

    Returns:
        Statistics of the rows.
    """
    pieces.find_copies(deduplicate=config.deduplicate, leakage_check=config.leakage_check)
    counters = _arrange(pieces, config, seed, directory)
    return DataStats(
        sources=tuple(
            SourceStats(
                source.name,
                str(named.format),
                source.count,
                selection.used,
                unread.explained(pieces.unread, selection.source, named, row_format, source.columns, selection.used),
                is_replayed=named is config.replay,
            )
            for source, named, selection, row_format in zip(
                opened, config.all_sources, selections, formats(config), strict=True
            )
        ),
        train=counters[TRAIN].stats(pieces.counts, held_out=False),
        validation=counters[VALIDATION].stats(pieces.counts, held_out=True),
        reasons=pieces.reasons,
        packing=config.packing,
        max_length=config.max_length,
        labels=pieces.labels,
    )


def _require_tokens(stats: DataStats) -> None:
    """Refuse a dataset with an empty split, and say why its rows were left out."""
    for name, split in (("train", stats.train), ("validation", stats.validation)):
        if split.token_rows:
            continue
        is_length = split.dropped > max(split.rejected, split.duplicates, split.leaked)
        more = "Repair the rejected rows, or give" if split.rejected else "Give"
        raise DataError.single(
            "data.max_length" if is_length else "data.source",
            stats.max_length if is_length else ", ".join(source.name for source in stats.sources),
            f"nothing is left for {name}: {where_rows_went(split, stats.reasons)}.",
            "Raise max_length above the length of the prompts." if is_length else f"{more} more, and different, rows.",
        )


def _content_digest(directory: Path) -> str:
    """A SHA-256 of the bytes of both Parquet files."""
    digest = hashlib.sha256()
    for name in (TRAIN, VALIDATION):
        with open(directory / name, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
