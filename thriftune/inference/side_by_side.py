"""Answers of several models side by side, for pages and logs: not too many, and none too long to read."""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from thriftune import pages
from thriftune.models.answering import Sampling

# What a page shows; a browser is slow with more, and nobody reads it there.
MOST_PROMPTS, LONGEST = 100, 4000
# What a log shows of it.
_LOGGED_PROMPTS, _LONGEST_LOGGED = 20, 300


@dataclass(frozen=True)
class Excerpt:
    """A text, or its beginning.

    Attributes:
        text: What is shown.
        left_out: Number of characters that are not shown.
    """

    text: str
    left_out: int


@dataclass(frozen=True)
class SideBySide:
    """Prompts in rows, and what each of several models answered in columns.

    Attributes:
        columns: Names of the models.
        rows: Each prompt with its answers, one per column; None of a model that was not asked.
        left_out: Number of prompts that are not shown.
    """

    columns: list[str]
    rows: list[tuple[Excerpt, list[Excerpt | None]]]
    left_out: int

    @property
    def is_cut(self) -> bool:
        """Whether anything is not shown."""
        texts = (text for prompt, answers in self.rows for text in (prompt, *answers))
        return bool(self.left_out) or any(text.left_out for text in texts if text)


def side_by_side(
    prompts: Sequence[str],
    answers: Mapping[str, Sequence[str | None]],
    most_prompts: int = MOST_PROMPTS,
    longest: int = LONGEST,
    count: int | None = None,
) -> SideBySide:
    """Put the answers to each prompt beside one another.

    Args:
        prompts: The prompts, or the first of them.
        answers: By name of the model, its answers in the order of the prompts; None where it was not asked.
        most_prompts: Largest number of prompts to show.
        longest: Largest number of characters to show of a text.
        count: Number of prompts in all; None for those given.
    """
    rows: list[tuple[Excerpt, list[Excerpt | None]]] = []
    for number, prompt in enumerate(prompts[:most_prompts]):
        row = [texts[number] for texts in answers.values()]
        rows.append((_excerpt(prompt, longest), [None if text is None else _excerpt(text, longest) for text in row]))
    return SideBySide(list(answers), rows, (len(prompts) if count is None else count) - len(rows))


def page_of(
    prompts: Sequence[str],
    answers: Mapping[str, Sequence[str | None]],
    models: Mapping[str, str],
    sampling: Sampling,
    place: str,
    count: int | None = None,
) -> str:
    """Answers as one HTML page.

    Args:
        prompts: The prompts, or the first of them.
        answers: By name of the model, its answers in the order of the prompts; None where it was not asked.
        models: Where the model and its adapters are, by name.
        sampling: How the answers were made.
        place: Where all of them are, in full.
        count: Number of prompts in all; None for those given.
    """
    drawn = f"drawn at temperature {sampling.temperature:g} with seed {sampling.seed}"
    how = drawn if sampling.temperature else "the likeliest token each time"
    return pages.render(
        "inference/answers.html.jinja",
        {},
        count=len(prompts) if count is None else count,
        asked=f"answered in at most {sampling.max_new_tokens:,} tokens each, {how}",
        answers=side_by_side(prompts, answers, count=count),
        models=models,
        place=place,
    )


def as_text(
    prompts: Sequence[str], answers: Mapping[str, Sequence[str | None]], place: str, count: int | None = None
) -> str:
    """Answers for a log: the first prompts, each with the beginning of every answer.

    Args:
        prompts: The prompts, or the first of them.
        answers: By name of the model, its answers in the order of the prompts; None where it was not asked.
        place: Where all of them are, in full.
        count: Number of prompts in all; None for those given.
    """
    shown = side_by_side(prompts, answers, _LOGGED_PROMPTS, _LONGEST_LOGGED, count)
    lines = [line for row in shown.rows for line in _lines(shown.columns, *row)]
    if shown.left_out:
        lines.append(f"... and {shown.left_out:,} more prompts")
    lines.append(f"All answers{', in full' if shown.is_cut else ''}: {place}")
    return "\n".join(lines)


def _lines(columns: Sequence[str], prompt: Excerpt, answers: Sequence[Excerpt | None]) -> Iterator[str]:
    """The lines of one prompt; a text's own lines are indented, so that none looks like another entry."""
    yield f"> {_said(prompt)}"
    for column, answer in zip(columns, answers, strict=True):
        if answer is not None:
            yield f"  {column}: {_said(answer)}"


def _said(excerpt: Excerpt) -> str:
    more = f" [... {excerpt.left_out:,} more characters]" if excerpt.left_out else ""
    return "\n    ".join(_printable(excerpt.text).splitlines()) + more


def _printable(text: str) -> str:  # a terminal would execute control characters
    return "".join(" " if letter == "\t" else "?" if _is_control(letter) else letter for letter in text)


def _is_control(letter: str) -> bool:
    return letter != "\n" and unicodedata.category(letter) == "Cc"


def _excerpt(text: str, longest: int) -> Excerpt:
    return Excerpt(text[:longest], max(0, len(text) - longest))
