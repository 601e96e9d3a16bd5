"""Items of benchmarks that are also in the training rows: a model that has seen them proves nothing with them."""

import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.data.items import Item
from thriftune.data.prepared import TRAIN
from thriftune.inference.benchmarks import harness_data, harness_tasks
from thriftune.inference.benchmarks.prepared import PreparedBenchmarks, PreparedTask

if TYPE_CHECKING:
    from lm_eval.api.task import ConfigurableTask
    from transformers import PreTrainedTokenizerBase

_EXAMPLES = 5
_READ_ROWS = 500  # rows of tokens in memory at once
# Chinese, Japanese and Korean are written without spaces: there, a character counts as a word.
_ALONE = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(f"[{_ALONE}]|[^\\W_{_ALONE}]+")
# Shorter questions are found in rows that have nothing to do with them.
_LEAST_WORDS = 4
_KEY_WORDS = 4  # an index by the first words finds which questions may start at a word of a row


@dataclass(frozen=True)
class Contamination:
    """What a benchmark and the training rows share.

    Attributes:
        items: Number of items that were looked for: those with enough words.
        exact: Ids of items whose question is in a row, letter by letter.
        folded: Ids of those whose question is there after folding case, white space and punctuation; with the exact.
        answered: Ids of those of which a right answer stands in the row too, after the question.
        examples: Questions of the first of them.
    """

    items: int
    exact: tuple[str, ...] = ()
    folded: tuple[str, ...] = ()
    answered: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()

    @property
    def share(self) -> float:
        """Share of the items that are in the training rows, exactly or after folding."""
        return len(self.folded) / self.items if self.items else 0.0


@dataclass
class _Sought:
    """An item that is looked for."""

    task: str
    id: str
    question: str
    words: tuple[str, ...]
    answers: tuple[str, ...]
    found: set[str] = field(default_factory=set)


def contamination(prepared_dir: Path, dataset_dir: Path, tokenizer_dir: Path) -> dict[str, Contamination]:
    """Look for the items of prepared benchmarks in the training rows of a prepared dataset.

    Args:
        prepared_dir: What `thriftune.inference.benchmarks.preparing.prepare` wrote.
        dataset_dir: A prepared dataset.
        tokenizer_dir: The tokenizer that it was made with.

    Returns:
        By name of the benchmark. held_out is not among them: its rows are kept apart when data are prepared.
    """
    from thriftune.models.tokenizer import load_tokenizer

    benchmarks = PreparedBenchmarks.read(prepared_dir)
    items = {task.name: _items(benchmarks, task) for task in benchmarks.tasks if task.kind != "held_out"}
    return in_texts(items, training_texts(dataset_dir, load_tokenizer(tokenizer_dir)))


def in_texts(items: Mapping[str, Sequence[Item]], texts: Iterable[str]) -> dict[str, Contamination]:
    """Look for items in texts. Memory is that of the items, and of one text at a time.

    Args:
        items: By name of the benchmark.
        texts: The rows, as text.
    """
    sought = [found for task, listed in items.items() for item in listed if (found := _sought(task, item))]
    by_start: dict[tuple[str, ...], list[_Sought]] = {}
    for each in sought:
        by_start.setdefault(each.words[:_KEY_WORDS], []).append(each)
    for text in texts:
        _look(text, by_start)
    return {task: _summed([each for each in sought if each.task == task]) for task in items}


def training_texts(dataset_dir: Path, tokenizer: "PreTrainedTokenizerBase") -> Iterator[str]:
    """The training rows of a prepared dataset as text, a few at a time.

    Args:
        dataset_dir: A prepared dataset.
        tokenizer: The tokenizer that it was made with.
    """
    import pyarrow.parquet as pq

    with pq.ParquetFile(dataset_dir / TRAIN) as file:
        for batch in file.iter_batches(_READ_ROWS, columns=["input_ids"]):
            for (ids,) in zip(batch.column(0).to_pylist(), strict=True):
                yield str(tokenizer.decode(ids, skip_special_tokens=True))


def words_of(text: str) -> tuple[str, ...]:
    """The words of a text without case, white space and punctuation.

    Args:
        text: Any text.
    """
    return tuple(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def _sought(task: str, item: Item) -> _Sought | None:
    words = words_of(item.question)
    return _Sought(task, item.id, item.question, words, item.accepted) if len(words) >= _LEAST_WORDS else None


def _look(text: str, by_start: Mapping[tuple[str, ...], list[_Sought]]) -> None:
    """Note which items are in a text."""
    words = words_of(text)
    for start in range(len(words) - _LEAST_WORDS + 1):
        for each in by_start.get(words[start : start + _KEY_WORDS], ()):
            end = start + len(each.words)
            if words[start:end] != each.words:
                continue
            each.found.add("folded")
            if each.question.strip() in text:
                each.found.add("exact")
            rest = f" {' '.join(words[end:])} "
            if any(f" {' '.join(said)} " in rest for answer in each.answers if (said := words_of(answer))):
                each.found.add("answered")


def _summed(sought: Sequence[_Sought]) -> Contamination:
    found = {kind: [each for each in sought if kind in each.found] for kind in ("exact", "folded", "answered")}
    ids = {kind: tuple(each.id for each in listed) for kind, listed in found.items()}
    examples = tuple(each.question for each in found["folded"][:_EXAMPLES])
    return Contamination(len(sought), ids["exact"], ids["folded"], ids["answered"], examples)


def _items(benchmarks: PreparedBenchmarks, task: PreparedTask) -> list[Item]:
    if task.kind == "items":
        return list(benchmarks.items_of(task)[: task.limit])
    found = []
    for leaf in task.leaves:
        with tempfile.TemporaryDirectory() as scratch:
            config = harness_tasks.config_of(benchmarks.leaf_of(leaf), task.few_shot, task.name)
            built = harness_data.built(config, benchmarks.data_of(leaf), Path(scratch))
            found += items_of_harness(built, leaf.name, task.limit)
    return found


def items_of_harness(task: "ConfigurableTask", name: str, limit: int | None) -> list[Item]:
    """The items of a task of the harness, to look for them.

    Args:
        task: The task.
        name: What to call it.
        limit: Most items; None means all.
    """
    found = []
    for number, doc in task.doc_iterator(limit=limit):
        target = task.doc_to_target(doc)
        choices = task.doc_to_choice(doc) if task.config.doc_to_choice is not None else ()
        answer = choices[target] if isinstance(target, int) and target < len(choices) else target
        found.append(Item(f"{name}/{number:06}", _question(doc, str(task.doc_to_text(doc))), (), None, (str(answer),)))
    return found


def _question(doc: Mapping[str, Any], prompt: str) -> str:
    """The longest text of a row that is in its prompt: around it, prompts have words such as Question and Answer."""
    inside = [text for text in doc.values() if isinstance(text, str) and len(words_of(text)) >= _LEAST_WORDS]
    return max((text for text in inside if text in prompt), key=len, default=prompt)
