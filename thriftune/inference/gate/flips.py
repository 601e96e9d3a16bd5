"""Items that became better or worse: some of each, to read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from thriftune.inference.gate.statistics import Values

# Items to keep of each direction: of a benchmark, of a way to answer, and of all benchmarks. A comparison is an output
# of a task, of which Flyte's engine takes 10 MB: many benchmarks keep fewer of each.
OF_BENCHMARK, OF_BEHAVIOUR, _OF_ALL = 20, 5, 200
# Most characters of a text. Of a prompt the end is kept, where the question is; examples stand before it.
_LONGEST = 1500


@dataclass(frozen=True)
class Question:
    """An item with the answers of both models.

    Attributes:
        task: Its benchmark.
        item: Its id.
        group: Its group; empty if there is none.
        prompt: What was asked.
        expected: The right answer.
        base: The answer of the base.
        tuned: The answer of the result.
    """

    task: str
    item: str
    group: str
    prompt: str
    expected: str
    base: str
    tuned: str


@dataclass(frozen=True)
class Flip:
    """An item of which a metric changed.

    Attributes:
        metric: The metric: task.metric, or answers.stops.
        became: Whether it became better or worse.
        question: The item.
    """

    metric: str
    became: Literal["better", "worse"]
    question: Question


def most_of(benchmarks: int) -> int:
    """The number of items to keep of each direction and benchmark.

    Args:
        benchmarks: Number of benchmarks.
    """
    return max(1, min(OF_BENCHMARK, _OF_ALL // max(1, benchmarks)))


def flips_of(metric: str, questions: Sequence[Question], improvements: Values, most: int) -> list[Flip]:
    """Items of which a metric changed: the largest changes, and of equal ones some from everywhere.

    Args:
        metric: The metric.
        questions: The items.
        improvements: By how much each became better; negative where it became worse.
        most: Largest number of items of each direction.
    """
    better, worse = _largest(improvements, most), _largest(-improvements, most)
    return [
        *(Flip(metric, "better", _shortened(questions[number])) for number in better),
        *(Flip(metric, "worse", _shortened(questions[number])) for number in worse),
    ]


def _largest(sizes: Values, most: int) -> list[int]:
    """The places of the largest values above zero."""
    changed = np.flatnonzero(sizes > 0)
    if len(changed) and np.ptp(sizes[changed]) > 0:
        return [int(number) for number in changed[np.argsort(-sizes[changed], kind="stable")][:most]]
    # Evenly over all of them: the first ones would be of one group.
    places = np.unique(np.linspace(0, len(changed) - 1, min(most, len(changed))).astype(int))
    return [int(number) for number in changed[places]]


def _shortened(question: Question) -> Question:
    prompt = question.prompt if len(question.prompt) <= _LONGEST else "... " + question.prompt[-_LONGEST:]
    texts = (_beginning(text) for text in (question.expected, question.base, question.tuned))
    return Question(question.task, question.item, question.group, prompt, *texts)


def _beginning(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
