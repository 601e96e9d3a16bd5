"""Items of our own formats: asked as training asked, and scored."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from thriftune import artifacts
from thriftune.config import DataFormat
from thriftune.config.benchmarks import ItemFormat
from thriftune.data.items import Item
from thriftune.data.questions import encode_text, prompt_text
from thriftune.inference.benchmarks.results import ItemResult
from thriftune.models.answering import Continuation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ACCURACY, ACCURACY_SUM, EXACT_MATCH = "accuracy", "accuracy_sum", "exact_match"
METRICS: dict[ItemFormat, tuple[str, ...]] = {
    "multiple_choice": (ACCURACY, ACCURACY_SUM),
    "exact_answer": (EXACT_MATCH,),
}  # of each, the first is the main one; more is better


@dataclass(frozen=True)
class Question:
    """An item as a model is asked it.

    Attributes:
        item: The item.
        text: The prompt.
        prompt: Its tokens, as far as they do not depend on the choice that follows.
        choices: Tokens of each choice after that; empty where the answer is written.
    """

    item: Item
    text: str
    prompt: list[int]
    choices: tuple[list[int], ...]

    def length(self, max_new_tokens: int) -> int:
        """Tokens of the prompt and of the longest choice, or of the longest written answer."""
        return len(self.prompt) + max(map(len, self.choices), default=max_new_tokens)


def solved_examples(item: Item, items: Sequence[Item], count: int) -> tuple[tuple[str, str], ...]:
    """Examples to show before a question: the first other items of its group, with their answers.

    The same whichever part of the items is measured.

    Args:
        item: The item to be asked.
        items: All items of the benchmark.
        count: Number of examples; fewer where the group has fewer.
    """
    others = (other for other in items if other.group == item.group and other.id != item.id)
    return tuple((other.question, other.accepted[0].strip()) for other in islice(others, count))


def asked(
    item: Item, solved: Sequence[tuple[str, str]], tokenizer: "PreTrainedTokenizerBase", style: DataFormat
) -> Question:
    """An item in the form that training used before an answer.

    Each choice is tokenized together with the prompt, as in training: a tokenizer may join the end of one and the start
    of the other. Tokens that differ between choices for that reason count for the choice.

    Args:
        item: The item.
        solved: Questions with their answers, to show before it.
        tokenizer: The model's tokenizer.
        style: The format of the questions.

    Raises:
        DataError: The model's chat template cannot render it.
    """
    text = prompt_text(item.question, tokenizer, style, solved)
    prompt = encode_text(text, tokenizer, style)
    answers = [prompt_text(item.question, tokenizer, style, solved, choice.strip()) for choice in item.choices]
    wholes = [encode_text(answer, tokenizer, style) for answer in answers]
    shared = max(1, min((_shared(prompt, whole) for whole in wholes), default=len(prompt)))
    return Question(item, text, prompt[:shared], tuple(whole[shared:] for whole in wholes))


def chosen(task: str, question: Question, log_likelihoods: Sequence[float]) -> ItemResult:
    """The result of a multiple choice.

    Args:
        task: Name of the benchmark.
        question: What was asked.
        log_likelihoods: Of each choice, in nats.
    """
    item = question.item
    sizes = [len(choice.strip().encode()) for choice in item.choices]
    by_byte = [value / size for value, size in zip(log_likelihoods, sizes, strict=True)]
    best, best_sum = by_byte.index(max(by_byte)), log_likelihoods.index(max(log_likelihoods))
    scores = {ACCURACY: float(best == item.answer), ACCURACY_SUM: float(best_sum == item.answer)}
    return _result(task, question, item.choices[best], scores, log_likelihoods=tuple(log_likelihoods))


def written(task: str, question: Question, said: Continuation) -> ItemResult:
    """The result of a written answer.

    Args:
        task: Name of the benchmark.
        question: What was asked.
        said: What the model wrote.
    """
    is_right = folded(said.text) in {folded(text) for text in question.item.accepted}
    scores = {EXACT_MATCH: float(is_right)}
    return _result(task, question, said.text, scores, tokens=said.tokens, stopped=said.stopped)


def folded(text: str) -> str:
    """A text without case, repeated white space, and punctuation around it; of punctuation alone, all is kept.

    Args:
        text: Any text.
    """
    plain = unicodedata.normalize("NFKC", text).casefold()
    return " ".join((_bare(plain) or plain).split())


def _bare(text: str) -> str:
    """A text without white space and punctuation around it; signs such as - before a number are kept."""
    start, end = 0, len(text)
    while start < end and _is_outer(text[start]) and not (text[start] == "-" and text[start + 1 : start + 2].isdigit()):
        start += 1
    while end > start and _is_outer(text[end - 1]):
        end -= 1
    return text[start:end]


def _is_outer(character: str) -> bool:
    return character.isspace() or unicodedata.category(character).startswith("P")


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Number of tokens that two rows start with together."""
    pairs: Iterator[Any] = zip(first, second, strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(first), len(second)))


def _result(task: str, question: Question, answer: str, scores: dict[str, float], **more: Any) -> ItemResult:
    item = question.item
    return ItemResult(
        task=task,
        item=item.id,
        group=item.group,
        prompt=question.text,
        prompt_hash=artifacts.key_of(question.text, *item.choices),
        expected=item.accepted[0],
        answer=answer,
        scores=scores,
        correct=next(iter(scores.values())) == 1,
        **more,
    )
