"""One item of a benchmark of our own formats."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """A question with a known answer.

    Attributes:
        id: Its name, unique in the benchmark.
        question: What the model is asked.
        choices: The answers to choose from; empty where the answer is written freely.
        answer: Index of the right choice; None where the answer is written freely.
        accepted: The answers that count as right; of a choice, only that one.
        group: The group that it is counted in; empty if there is none.
    """

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int | None
    accepted: tuple[str, ...]
    group: str = ""
