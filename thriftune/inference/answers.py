"""Answers to prompts, and the files that they are in: written and read one at a time."""

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from thriftune.errors import ConfigError

OutputFormat = Literal["jsonl", "parquet"]
_AT_ONCE = 1000  # answers that are in memory while a file is written


@dataclass(frozen=True)
class Answer:
    """The answer to one prompt.

    Attributes:
        prompt: As it was given.
        adapter: Name of the adapter that answered, or `base`.
        answer: What the model generated, without special tokens.
    """

    prompt: str
    adapter: str
    answer: str


def require_format(given: str) -> None:
    """Refuse a format that answers are not written in. Flyte takes any text for one.

    Args:
        given: What was asked for.

    Raises:
        ConfigError: It is none of them.
    """
    known = get_args(OutputFormat)
    if given not in known:
        raise ConfigError.single("output_format", given, "is no format of answers.", f"Use {' or '.join(known)}.")


def write_answers(answers: Iterable[Answer], file: Path) -> int:
    """Write answers as Parquet or JSONL, depending on the file's ending, a few at a time.

    Args:
        answers: The answers.
        file: The file to write.

    Returns:
        Number of answers.
    """
    write = _write_parquet if file.suffix == ".parquet" else _write_jsonl
    return write(map(asdict, answers), file)


def _write_jsonl(rows: Iterator[dict[str, str]], file: Path) -> int:
    count = 0
    with file.open("w", encoding="utf-8") as stream:
        for count, row in enumerate(rows, 1):  # noqa: B007 - the last one is returned
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    return count


def _write_parquet(rows: Iterator[dict[str, str]], file: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 0
    schema = pa.schema([(name, pa.string()) for name in Answer.__dataclass_fields__])
    with pq.ParquetWriter(file, schema) as writer:
        while lot := list(itertools.islice(rows, _AT_ONCE)):
            writer.write_table(pa.Table.from_pylist(lot, schema))
            count += len(lot)
    return count


def read_answers(file: Path) -> Iterator[Answer]:
    """Read answers from JSONL, one at a time.

    Args:
        file: What `write_answers` wrote.

    Yields:
        The answers, in order.
    """
    with file.open(encoding="utf-8") as stream:
        for line in stream:  # what json.dumps writes has no other ends of lines than its own
            yield Answer(**json.loads(line))


def by_adapter(answers: Iterable[Answer]) -> dict[str, list[str]]:
    """The texts of answers by the name of the adapter, each in the order of the prompts.

    Args:
        answers: The answers.
    """
    texts: dict[str, list[str]] = {}
    for answer in answers:
        texts.setdefault(answer.adapter, []).append(answer.answer)
    return texts


def in_rows(answers: Iterable[Answer], most: int) -> tuple[list[str], dict[str, list[str | None]], int]:
    """Answers that are in the order of the prompts, as a table: one row for each prompt, one column for each adapter.

    Args:
        answers: The answers; those of several adapters to one prompt follow one another.
        most: Largest number of prompts to return.

    Returns:
        The first prompts; by adapter its answers to them, None where it was not asked; and the number of all prompts.
    """
    rows: list[tuple[str, dict[str, str]]] = []
    count, last, seen = 0, "", set[str]()
    for answer in answers:
        if not count or last != answer.prompt or answer.adapter in seen:
            count, last, seen = count + 1, answer.prompt, set()
            if count <= most:
                rows.append((answer.prompt, {}))
        seen.add(answer.adapter)
        if count <= most:
            rows[-1][1][answer.adapter] = answer.answer
    names: Sequence[str] = list(dict.fromkeys(name for _, row in rows for name in row))
    return [prompt for prompt, _ in rows], {name: [row.get(name) for _, row in rows] for name in names}, count
