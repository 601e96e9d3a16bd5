"""A large file of prompts in parts: split, each answered and kept by itself, and joined again, in bounded memory."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from thriftune.errors import ConfigError
from thriftune.inference.answers import Answer, read_answers
from thriftune.inference.asking import BASE, known
from thriftune.inference.prompts import ADAPTER_COLUMN, Prompt
from thriftune.models.answering import Sampling

# Parts of one file. Flyte refuses map tasks of some thousands, and shows each.
MOST_PARTS = 1000
ROWS = "rows_per_part"
_ANSWERS = "answers.jsonl"


@dataclass(frozen=True)
class Part:
    """A part of a file of prompts.

    Attributes:
        file: JSON Lines of questions, each with who answers it.
        questions: Number of them.
        digest: Checksum of them.
        adapters: Who answers in it, in order of their names.
    """

    file: Path
    questions: int
    digest: str
    adapters: tuple[str, ...]


def split(prompts: Iterable[Prompt], adapters: Sequence[str], rows: int, folder: Path) -> list[Part]:
    """Write prompts to files of a number of questions each, one at a time.

    A prompt that names nobody becomes one question for each adapter, or for the base if there is none.

    Args:
        prompts: The prompts.
        adapters: Names of the adapters.
        rows: Questions of a part.
        folder: Existing directory to write to.

    Returns:
        The parts, in order.

    Raises:
        ConfigError: A part has no questions, or there are too many parts.
        DataError: A prompt names an adapter that there is not.
    """
    if rows < 1:
        raise ConfigError.single(ROWS, rows, "is less than one question.", "Use at least 1.")
    questions = _questions(prompts, adapters)
    parts: list[Part] = []
    asked = 0
    while part := _written(questions, rows, folder / f"part-{len(parts):05}.jsonl"):
        parts.append(part)
        asked += part.questions
        if len(parts) > MOST_PARTS:
            asked += sum(1 for _ in questions)
            message = f"makes more than {MOST_PARTS:,} parts of {asked:,} questions."
            raise ConfigError.single(ROWS, rows, message, f"Use at least {-(-asked // MOST_PARTS):,}.")
    return parts


def _questions(prompts: Iterable[Prompt], adapters: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Each question, and who answers it."""
    everybody = list(adapters) or [BASE]
    for prompt in known(prompts, adapters):
        yield from ((prompt.text, name) for name in ([prompt.adapter] if prompt.adapter else everybody))


def _written(questions: Iterator[tuple[str, str]], rows: int, file: Path) -> Part | None:
    """Write the next questions to a file; None if there are none."""
    digest, names, count = hashlib.sha256(), set(), 0
    with file.open("wb") as stream:
        for text, name in questions:
            line = json.dumps({"prompt": text, ADAPTER_COLUMN: name}, ensure_ascii=False).encode() + b"\n"
            stream.write(line)
            digest.update(line)
            names.add(name)
            count += 1
            if count == rows:
                break
    if not count:
        file.unlink()
        return None
    return Part(file, count, digest.hexdigest(), tuple(sorted(names)))


def key_parts(part: Part, versions: dict[str, str], sampling: Sampling, held: str) -> list[str]:
    """What the answers to a part depend on, as texts: nothing of adapters that it does not ask.

    Args:
        part: The part.
        versions: Version of the model, as `BASE`, and of each adapter by name.
        sampling: How answers are generated. Without drawing, the seed is left out.
        held: How the model is held, and on what.
    """
    drawn = asdict(sampling) if sampling.temperature > 0 else {"max_new_tokens": sampling.max_new_tokens}
    asked = {name: versions[name] for name in {BASE, *part.adapters}}
    return [part.digest, json.dumps(asked, sort_keys=True), json.dumps(drawn, sort_keys=True), held]


def answers_in(directories: Iterable[Path]) -> Iterator[Answer]:
    """The answers to parts, one at a time.

    Args:
        directories: What each part was answered in, in order.
    """
    for directory in directories:
        yield from read_answers(answers_file(directory))


def answers_file(directory: Path) -> Path:
    """The file with the answers to a part.

    Args:
        directory: What the part was answered in.
    """
    return directory / _ANSWERS
