"""The results of a model on benchmarks, item by item, and as Parquet."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import pyarrow as pa

# The metric of which the mean is over tokens, not over items.
LOSS = "loss"
FILE = "items.parquet"
_FACTS = b"benchmarks"  # key in the metadata of the file


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
        written: Number of tokens of a written answer, where `tokens` is of the loss; else None.
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
    written: int | None = None


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
        facts: dict[str, TaskFacts] = {}
        for task in (task for part in parts for task in part.tasks):
            known = facts.setdefault(task.name, task)
            if known.version != task.version:
                raise ValueError(f"{task.name} was measured in two versions, {known.version} and {task.version}.")
            # A part without any item of a group does not know the metrics of that group.
            facts[task.name] = replace(known, metrics={**known.metrics, **task.metrics}, main=known.main or task.main)
        items = {(item.task, item.item): item for part in parts for item in part.items}
        if len(items) < sum(len(part.items) for part in parts):
            found = Counter((item.task, item.item) for part in parts for item in part.items)
            task_name, twice = next(key for key, count in found.items() if count > 1)
            raise ValueError(f"Item {twice} of {task_name} was measured twice.")
        return cls(tuple(facts[name] for name in sorted(facts)), tuple(items[key] for key in sorted(items)))

    def write(self, directory: Path) -> None:
        """Write them as items.parquet, with what is known of the benchmarks in its metadata.

        Args:
            directory: An existing directory.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {each.name: [getattr(item, each.name) for item in self.items] for each in fields(ItemResult)}
        columns["scores"] = [list(item.scores.items()) for item in self.items]
        facts = json.dumps([asdict(task) for task in self.tasks])
        pq.write_table(pa.table(columns, _schema().with_metadata({_FACTS: facts})), directory / FILE)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read what `write` wrote.

        Args:
            directory: The directory.
        """
        import pyarrow.parquet as pq

        table = pq.read_table(directory / FILE)
        facts = json.loads(table.schema.metadata[_FACTS])
        return cls(tuple(TaskFacts(**task) for task in facts), tuple(_item(row) for row in table.to_pylist()))


def _item(row: dict[str, Any]) -> ItemResult:
    return ItemResult(**{**row, "scores": dict(row["scores"]), "log_likelihoods": tuple(row["log_likelihoods"])})


def _schema() -> "pa.Schema":
    """The columns of the file."""
    import pyarrow as pa

    text, number = pa.string(), pa.float64()
    types = {
        **dict.fromkeys(("task", "item", "group", "prompt", "prompt_hash", "expected", "answer"), text),
        "scores": pa.map_(text, number),
        "log_likelihoods": pa.list_(number),
        "tokens": pa.int64(),
        "correct": pa.bool_(),
        "stopped": pa.bool_(),
        "written": pa.int64(),
    }
    return pa.schema([(each.name, types[each.name]) for each in fields(ItemResult)])
