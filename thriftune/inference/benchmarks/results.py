"""The results of a model on benchmarks, item by item, and as Parquet."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

# The metric of which the mean is over tokens, not over items.
LOSS = "loss"


@dataclass(frozen=True)
class ItemResult:
    """What a model did with one item.

    Attributes:
        task: Name of the benchmark.
        item: Id of the item, unique in the benchmark.
        group: Group of the item in the benchmark; empty if there is none.
        prompt: What the model was given, as text.
        prompt_hash: Digest of that and of the choices: results with different ones are of different items.
        expected: The right answer, as text; of held-out rows the row's own.
        answer: The choice that it took, or what it wrote; empty where it was not asked to.
        scores: By metric: 1 or 0 for right or wrong, a share, or for `loss` the summed negative log-likelihood in nats.
        log_likelihoods: Of each choice, in nats; empty where there are none.
        tokens: Number of tokens that the loss is a sum of; else of the written answer. 0 where neither was measured.
        correct: Whether it was right; None where there is no right or wrong.
        stopped: Whether a written answer ended by itself, and not by its longest length; None where none was written.
    """

    task: str
    item: str
    group: str
    prompt: str
    prompt_hash: str
    expected: str
    answer: str
    scores: Mapping[str, float]
    log_likelihoods: tuple[float, ...] = ()
    tokens: int = 0
    correct: bool | None = None
    stopped: bool | None = None


@dataclass(frozen=True)
class TaskFacts:
    """What is known of a benchmark.

    Attributes:
        name: Its name.
        version: Digest of its items and of how they are asked.
        metrics: By metric, whether higher is better.
        main: The metric to look at first.
    """

    name: str
    version: str
    metrics: Mapping[str, bool]
    main: str


@dataclass(frozen=True)
class Results:
    """The results of one model.

    Attributes:
        tasks: The benchmarks.
        items: The items of all of them.
    """

    tasks: tuple[TaskFacts, ...] = ()
    items: tuple[ItemResult, ...] = field(default=(), repr=False)

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The results of several parts as one, ordered by task and item.

        Args:
            parts: Results of one model on different items.

        Raises:
            ValueError: Two parts have the same item, or one benchmark in two versions.
        """
        raise NotImplementedError

    def write(self, directory: Path) -> None:
        """Write them as items.parquet, with what is known of the benchmarks in its metadata.

        Args:
            directory: An existing directory.
        """
        raise NotImplementedError

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read what `write` wrote.

        Args:
            directory: The directory.
        """
        raise NotImplementedError
