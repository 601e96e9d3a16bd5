"""What a prepared directory of benchmarks holds."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from thriftune import artifacts
from thriftune.config.benchmarks import ItemFormat
from thriftune.data.items import Item, load_items
from thriftune.inference.benchmarks import harness_tasks
from thriftune.inference.benchmarks.harness_tasks import Leaf

Kind = Literal["items", "held_out", "harness"]
ITEMS, TASKS = "items", "tasks"  # folders of the directory


@dataclass(frozen=True)
class PreparedLeaf:
    """One task of lm-evaluation-harness that was made local.

    Attributes:
        name: Its name in the harness.
        file: Its YAML file: relative to the harness's own tasks, or to the directory.
        is_shipped: Whether the harness ships it.
        overrides: What the group that it is a part of sets otherwise, as JSON.
        data: Parquet files by split, relative to the directory.
        items: Number of its items.
    """

    name: str
    file: str
    is_shipped: bool
    overrides: str
    data: dict[str, str]
    items: int


@dataclass(frozen=True)
class PreparedTask:
    """One benchmark that was made ready.

    Attributes:
        name: Its name in the run file.
        kind: What it is measured with.
        version: Digest of its items and of how they are asked.
        items: Number of its items; 0 for the held-out rows, which are not known here.
        few_shot: Solved examples before each question.
        limit: Use only the first items; None means all.
        format: Of items of our own.
        leaves: Of a task of lm-evaluation-harness, one or those of its group.
    """

    name: str
    kind: Kind
    version: str
    items: int
    few_shot: int = 0
    limit: int | None = None
    format: ItemFormat | None = None
    leaves: tuple[PreparedLeaf, ...] = ()


@dataclass(frozen=True)
class PreparedBenchmarks:
    """A directory with everything that a shard needs.

    Attributes:
        directory: The directory.
        tasks: The benchmarks.
    """

    directory: Path
    tasks: tuple[PreparedTask, ...]

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read what `prepare` wrote.

        Args:
            directory: The directory.
        """
        listed = artifacts.read_manifest(directory)["tasks"]
        return cls(directory, tuple(_task(entry) for entry in listed))

    def task(self, name: str) -> PreparedTask:
        """The benchmark of a name.

        Args:
            name: As in the run file.
        """
        return next(task for task in self.tasks if task.name == name)

    def items_of(self, task: PreparedTask) -> tuple[Item, ...]:
        """All items of a benchmark of our own formats, before `limit`.

        Args:
            task: The benchmark.
        """
        return load_items(self.directory / ITEMS / f"{task.name}.jsonl")

    def leaf_of(self, leaf: PreparedLeaf) -> Leaf:
        """A task of the harness, with the file that it is in here.

        Args:
            leaf: The task.
        """
        root = harness_tasks.shipped() if leaf.is_shipped else self.directory
        return Leaf(leaf.name, root / leaf.file, json.loads(leaf.overrides))

    def data_of(self, leaf: PreparedLeaf) -> dict[str, Path]:
        """The Parquet files of a task, by split.

        Args:
            leaf: The task.
        """
        return {split: self.directory / file for split, file in leaf.data.items()}


def _task(entry: dict[str, Any]) -> PreparedTask:
    leaves: Sequence[dict[str, Any]] = entry["leaves"]
    return PreparedTask(**{**entry, "leaves": tuple(PreparedLeaf(**leaf) for leaf in leaves)})
