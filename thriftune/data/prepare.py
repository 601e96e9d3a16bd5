"""Prepare a dataset once, on a CPU: rows in, tokenized train and validation Parquet out."""

import hashlib
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import artifacts
from thriftune.config import DataConfig
from thriftune.data.formats import FORMATS, MarkedText, RowError
from thriftune.data.rejection import REJECTED, RejectedRow, require_good_rows, write_rejected
from thriftune.data.sources import load_rows
from thriftune.data.tokenization import IGNORED, TokenRow, as_text, require_usable, tokenize
from thriftune.errors import DataError
from thriftune.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

TRAIN, VALIDATION, SAMPLES = "train.parquet", "validation.parquet", "samples.json"
_BATCH_ROWS = 1000
_SAMPLES = 4  # held-out questions kept for the answers before and after


@dataclass(frozen=True)
class SplitStats:
    """What became of the rows of one split.

    Attributes:
        rows: Source rows read.
        token_rows: Rows of tokens written (more than `rows` when long texts were split).
        tokens: Tokens written.
        trained_tokens: Tokens that carry loss.
        truncated: Rows cut at the maximum length.
        dropped: Rows left out because no token in them would carry loss after the cut.
        rejected: Rows that cannot be used; rejected.parquet says why.
    """

    rows: int
    token_rows: int
    tokens: int
    trained_tokens: int
    truncated: int
    dropped: int
    rejected: int


def prepare(
    config: DataConfig,
    *,
    seed: int,
    model_dir: Path,
    destination: Path,
    trust_remote_code: bool = False,
    token: str | None = None,
) -> None:
    """Read, split, tokenize and write a dataset.

    Args:
        config: The data section of a run.
        seed: Decides which rows are held out.
        model_dir: Directory with the tokenizer.
        destination: Directory to make: train.parquet and validation.parquet (columns input_ids and labels, lists of
            int), rejected.parquet (source, row, reason), samples.json (held-out questions) and manifest.json (counts,
            fingerprint).
        trust_remote_code: Run tokenizer code that the model ships.
        token: Hub token, for hub datasets.

    Raises:
        DataError: A column is missing, more rows than `max_rejected` cannot be used, or nothing is left to train on.
        TransientError: The hub or a store did not answer.
    """
    tokenizer = load_tokenizer(model_dir, trust_remote_code=trust_remote_code)
    require_usable(tokenizer, config.format)
    with tempfile.TemporaryDirectory() as scratch, artifacts.writing(destination) as directory:
        rows = load_rows(
            config.source,
            subset=config.subset,
            split=config.split,
            revision=config.revision,
            token=token,
            cache_dir=Path(scratch),
        )
        _require_columns(rows.column_names, config)
        stats = _write_splits(rows, tokenizer, config, seed, directory)
        content = {
            "data": config.model_dump(mode="json"),
            "seed": seed,
            "fingerprint": fingerprint(directory),
            "train": asdict(stats[TRAIN]),
            "validation": asdict(stats[VALIDATION]),
        }
        artifacts.write_manifest(directory, "dataset", content)


def split_indices(count: int, validation_share: float, seed: int, max_rows: int | None) -> dict[str, list[int]]:
    """Which rows train and which are held out.

    Args:
        count: Rows of the source.
        validation_share: Share to hold out, of the rows used; at least one row, and at least one is left to train.
        seed: Decides the choice.
        max_rows: Use only this many.

    Returns:
        Row numbers per file name, in source order.

    Raises:
        DataError: Fewer than two rows.
    """
    import numpy as np

    used = min(count, max_rows or count)
    if used < 2:
        raise DataError.single("data.source", f"{used} rows", "cannot be split.", "Give at least two rows.")
    chosen = np.random.default_rng(seed).permutation(count)[:used]
    held_out = min(max(1, round(used * validation_share)), used - 1)
    return {
        TRAIN: sorted(int(i) for i in chosen[held_out:]),
        VALIDATION: sorted(int(i) for i in chosen[:held_out]),
    }


def fingerprint(directory: Path) -> str:
    """A SHA-256 of what will be trained on: the bytes of both Parquet files."""
    digest = hashlib.sha256()
    for name in (TRAIN, VALIDATION):
        with open(directory / name, "rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def load_split(directory: Path, name: str, cache_dir: Path) -> "Dataset":
    """One split of a prepared dataset, memory-mapped.

    Args:
        directory: A prepared dataset.
        name: `TRAIN` or `VALIDATION`.
        cache_dir: Where the memory-mapped copy is kept.

    Returns:
        A dataset with columns input_ids and labels.
    """
    from datasets import Dataset

    loaded = Dataset.from_parquet(str(directory / name), cache_dir=str(cache_dir))
    assert isinstance(loaded, Dataset)
    return loaded


def load_samples(directory: Path) -> list[dict[str, Any]]:
    """Held-out questions of a prepared dataset: `input_ids` up to the answer, `question` and `reference` as text."""
    samples: list[dict[str, Any]] = json.loads((directory / SAMPLES).read_text(encoding="utf-8"))
    return samples


def _write_splits(
    rows: "Dataset", tokenizer: "PreTrainedTokenizerBase", config: DataConfig, seed: int, directory: Path
) -> dict[str, SplitStats]:
    """Write everything but the manifest, and say what became of the rows of each split."""
    splits = split_indices(len(rows), config.validation_share, seed, config.max_rows)
    stats: dict[str, SplitStats] = {}
    rejected: list[RejectedRow] = []
    for name, indices in splits.items():
        logger.info("Tokenizing %d rows for %s", len(indices), name)
        tokens, stats[name] = _tokenize_split(rows, indices, tokenizer, config, rejected)
        tokens.to_parquet(directory / name)
    samples = _samples(rows.select(splits[VALIDATION]), tokenizer, config)
    (directory / SAMPLES).write_text(json.dumps(samples, indent=2), encoding="utf-8")
    require_good_rows(rejected, sum(s.rows for s in stats.values()), config.max_rejected)
    _require_tokens(stats, config)
    write_rejected(rejected, directory / REJECTED)
    for name, counts in stats.items():
        logger.info(
            "%s: %d rows -> %d token rows, %d tokens (%d trained on), %d truncated, %d dropped, %d rejected",
            name, counts.rows, counts.token_rows, counts.tokens, counts.trained_tokens, counts.truncated,
            counts.dropped, counts.rejected,
        )  # fmt: skip
    return stats


def _require_columns(found: Sequence[str], config: DataConfig) -> None:
    missing = [c for c in FORMATS[config.format].columns if c not in found]
    if missing:
        raise DataError.single(
            "data.format",
            config.format,
            f"needs the columns {', '.join(missing)}; {config.source} has {', '.join(found)}.",
            "Choose the format that fits the columns, or rename the columns.",
        )


def _tokenize_split(
    rows: "Dataset",
    indices: list[int],
    tokenizer: "PreTrainedTokenizerBase",
    config: DataConfig,
    rejected: list[RejectedRow],
) -> tuple["Dataset", SplitStats]:
    from datasets import Features, List, Value

    counts: Counter[str] = Counter()
    read = FORMATS[config.format].read
    rejected_before = len(rejected)

    def convert(batch: Mapping[str, list[Any]], positions: list[int]) -> dict[str, list[list[int]]]:
        texts: list[MarkedText] = []
        for position, row in zip(positions, _transposed(batch, len(positions)), strict=True):
            try:
                texts.append(as_text(read(row), tokenizer))
            except RowError as error:
                rejected.append(RejectedRow(config.source, indices[position] + 1, str(error)))
        kept: list[TokenRow] = []
        for pieces in tokenize(texts, tokenizer, max_length=config.max_length, train_on_inputs=config.train_on_inputs):
            usable = [piece for piece in pieces if piece.trained_tokens]
            counts["dropped"] += not usable
            counts["truncated"] += any(piece.truncated for piece in usable)
            kept += usable
        counts["tokens"] += sum(len(row.input_ids) for row in kept)
        counts["trained"] += sum(row.trained_tokens for row in kept)
        return {"input_ids": [r.input_ids for r in kept], "labels": [r.labels for r in kept]}

    features = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32"))})
    tokens = rows.select(indices).map(
        convert,
        batched=True,
        batch_size=_BATCH_ROWS,
        with_indices=True,
        remove_columns=rows.column_names,
        features=features,
        desc="Tokenizing",
        load_from_cache_file=False,
    )
    stats = SplitStats(
        rows=len(indices),
        token_rows=len(tokens),
        tokens=counts["tokens"],
        trained_tokens=counts["trained"],
        truncated=counts["truncated"],
        dropped=counts["dropped"],
        rejected=len(rejected) - rejected_before,
    )
    return tokens, stats


def _transposed(batch: Mapping[str, list[Any]], length: int) -> list[dict[str, Any]]:
    return [{name: column[i] for name, column in batch.items()} for i in range(length)]


def _require_tokens(stats: Mapping[str, SplitStats], config: DataConfig) -> None:
    empty = [name for name, counts in stats.items() if counts.token_rows == 0]
    if empty:
        raise DataError.single(
            "data.max_length",
            config.max_length,
            f"no row for {' and '.join(empty)} keeps a token to train on.",
            "Raise max_length above the length of the prompts, or give more rows.",
        )


def _samples(rows: Iterable[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase", config: DataConfig) -> list[Any]:
    """The first held-out rows that leave something to answer, cut where the last answer starts."""
    samples = []
    row_format = FORMATS[config.format]
    for row in rows:
        try:
            text = as_text(row_format.read(row), tokenizer)
        except RowError:
            continue  # counted where the row was tokenized
        tokens = tokenize([text], tokenizer, max_length=config.max_length)[0][0]
        if not tokens.trained_tokens:
            continue
        labels = tokens.labels
        last = max(i for i, label in enumerate(labels) if label != IGNORED and (i == 0 or labels[i - 1] == IGNORED))
        # Where all of a row but BOS is trained on, there is no question: let the model continue from the middle.
        start = last if last > 1 else len(tokens.input_ids) // 2
        reference = tokenizer.decode(tokens.input_ids[start:], skip_special_tokens=True)
        question = row_format.question(row)
        samples.append({"input_ids": tokens.input_ids[:start], "question": question, "reference": reference})
        if len(samples) == _SAMPLES:
            break
    return samples
