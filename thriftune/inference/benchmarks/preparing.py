"""Benchmarks made ready where there is a hub, so that a model is measured where there is none."""

import json
import logging
import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from thriftune import artifacts, urls
from thriftune.config.benchmarks import GENERAL_MINI, HELD_OUT, BenchmarksConfig, BenchmarkTask, ItemFormat
from thriftune.data import sources
from thriftune.data.items import Item, in_turn, read_items, write_items
from thriftune.digests import sha256_of
from thriftune.errors import DataError, Problem, UserError
from thriftune.inference.benchmarks import harness_data, harness_tasks
from thriftune.inference.benchmarks.harness_tasks import Leaf
from thriftune.inference.benchmarks.prepared import ITEMS, TASKS, Kind, PreparedBenchmarks, PreparedLeaf, PreparedTask
from thriftune.stores import failures, remote

logger = logging.getLogger(__name__)

# Of the way in which benchmarks are asked and scored: raised when the same items would give other results.
VERSION = "1"


def prepare(
    section: BenchmarksConfig, directory: Path, token: str | None = None, *, trust_remote_code: bool = False
) -> PreparedBenchmarks:
    """Read and check every benchmark, and write all that measuring needs. Needs the hub, and no model.

    Args:
        section: The benchmarks of a run.
        directory: Directory to write.
        token: Hub token.
        trust_remote_code: Whether YAML files of a person's own may run Python code.

    Returns:
        What was written.

    Raises:
        UserError: With every problem of every benchmark.
        TransientError: The hub did not answer.
    """
    found = versions(section, token, trust_remote_code=trust_remote_code)
    problems: list[Problem] = []
    tasks: list[PreparedTask] = []
    with artifacts.writing(directory, "preparing benchmarks") as place:
        for number, task in enumerate(section.tasks):
            field = f"benchmarks.tasks.{number}"
            try:
                tasks.append(_prepared(task, field, found[task.name], place, token, trust=trust_remote_code))
            except UserError as error:
                problems += error.problems
                continue
            logger.info("Prepared %s: %d items", task.name, tasks[-1].items)
        if problems:
            raise DataError(problems)
        artifacts.write_manifest(place, "benchmarks", {"tasks": [asdict(task) for task in tasks]})
    return PreparedBenchmarks(directory, tuple(tasks))


def versions(section: BenchmarksConfig, token: str | None = None, *, trust_remote_code: bool = False) -> dict[str, str]:
    """The present version of each benchmark: what cached results are known by. No data are downloaded.

    Args:
        section: The benchmarks of a run.
        token: Hub token.
        trust_remote_code: Whether YAML files of a person's own may run Python code.

    Returns:
        By name, a digest of its items or of the commits of its datasets, of its settings, of the harness's version and
        of the way in which items are asked here. That of held_out says nothing about the rows.

    Raises:
        UserError: With every problem of every benchmark.
        TransientError: The hub did not answer.
    """
    problems: list[Problem] = []
    found: dict[str, str] = {}
    for number, task in enumerate(section.tasks):
        field = f"benchmarks.tasks.{number}"
        try:
            found[task.name] = version_of(task, field, token, trust=trust_remote_code)
        except UserError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return found


def version_of(task: BenchmarkTask, field: str, token: str | None = None, *, trust: bool = False) -> str:
    """The present version of one benchmark, as `versions` has it.

    Args:
        task: The benchmark.
        field: Its key in the run file.
        token: Hub token.
        trust: Whether a YAML file of a person's own may run Python code.

    Raises:
        UserError: There is no such benchmark, or it cannot be measured here.
        TransientError: The hub did not answer.
    """
    content = _content_version(task, field, token, trust=trust)
    return artifacts.key_of(VERSION, content, str(task.format), str(task.few_shot), str(task.limit))


def kind_of(task: BenchmarkTask) -> Kind:
    """What a benchmark is measured with.

    Args:
        task: The benchmark.
    """
    if task.file is not None:
        return "items" if task.format is not None else "harness"
    if task.name == HELD_OUT:
        return "held_out"
    return "items" if task.name == GENERAL_MINI else "harness"


def own_items(task: BenchmarkTask, field: str) -> tuple[tuple[Item, ...], ItemFormat]:
    """The items of a benchmark in a format of ours, those of its groups in turn, and that format.

    Args:
        task: The benchmark.
        field: Its key in the run file.

    Raises:
        DataError: The file is missing or damaged; names each line.
        TransientError: The store did not answer.
    """
    if task.file is None:
        from thriftune.data.general import general_items

        return in_turn(general_items()), "multiple_choice"
    assert task.format is not None
    with tempfile.TemporaryDirectory() as scratch:
        items = read_items(_brought(task.file, field, Path(scratch)), task.format, task.file)
    return in_turn(items), task.format


def leaves_of(task: BenchmarkTask, field: str, scratch: Path, *, trust: bool) -> list[Leaf]:
    """The tasks of the harness that a benchmark stands for.

    Args:
        task: The benchmark.
        field: Its key in the run file.
        scratch: Folder to download to.
        trust: Whether a YAML file of a person's own may run Python code.

    Raises:
        UserError: There is no such task or file, or it cannot be measured here.
        TransientError: The store did not answer.
    """
    brought = None if task.file is None else _brought(task.file, field, scratch)
    return harness_tasks.leaves_of(task, field, brought, trust=trust)


def _content_version(task: BenchmarkTask, field: str, token: str | None, *, trust: bool) -> str:
    kind = kind_of(task)
    if kind == "held_out":
        return kind
    if kind == "items":
        items, _ = own_items(task, field)
        return artifacts.key_of(*(repr(item) for item in items))
    found = [metadata.version("lm_eval"), metadata.version("datasets")]
    with tempfile.TemporaryDirectory() as scratch:
        for leaf in leaves_of(task, field, Path(scratch), trust=trust):
            config = harness_tasks.config_of(leaf, task.few_shot, field)
            found += [leaf.name, json.dumps(dict(leaf.overrides), default=str)]
            found += [sha256_of(file) for file in _own_files(leaf, task)]
            with harness_data.named(*_key(task, field)):
                found.append(harness_data.data_version(config, leaf.file.parent, token))
    return artifacts.key_of(*found)


def _key(task: BenchmarkTask, field: str) -> tuple[str, str]:
    """The key that says what a benchmark is made of, and its value."""
    return (f"{field}.name", task.name) if task.file is None else (f"{field}.file", task.file)


def _own_files(leaf: Leaf, task: BenchmarkTask) -> list[Path]:
    """The files of a task of a person's own: its YAML files, and the Python files beside them, which they may use."""
    if task.file is None:
        return []
    files = harness_tasks.files_of(leaf.file)
    return sorted({*files, *(code for file in files for code in file.parent.glob("*.py"))})


def _prepared(
    task: BenchmarkTask, field: str, version: str, place: Path, token: str | None, *, trust: bool
) -> PreparedTask:
    kind, settings = kind_of(task), {"few_shot": task.few_shot, "limit": task.limit}
    if kind == "held_out":
        return PreparedTask(task.name, kind, version, 0, **settings)  # type: ignore[arg-type]
    if kind == "items":
        items, item_format = own_items(task, field)
        (place / ITEMS).mkdir(exist_ok=True)
        write_items(items, place / ITEMS / f"{task.name}.jsonl")
        return PreparedTask(task.name, kind, version, len(items[: task.limit]), format=item_format, **settings)  # type: ignore[arg-type]
    folder = place / TASKS / task.name
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        leaves = leaves_of(task, field, Path(scratch), trust=trust)
        made = tuple(
            _local(leaf, task, folder / str(number), place, Path(scratch), token) for number, leaf in enumerate(leaves)
        )
    count = sum(min(leaf.items, task.limit or leaf.items) for leaf in made)
    return PreparedTask(task.name, kind, version, count, leaves=made, **settings)  # type: ignore[arg-type]


def _local(
    leaf: Leaf, task: BenchmarkTask, folder: Path, place: Path, scratch: Path, token: str | None
) -> PreparedLeaf:
    """Write the data of a task of the harness, and its own files if the harness does not ship them."""
    config = harness_tasks.config_of(leaf, task.few_shot, task.name)
    version = harness_data.data_version(config, leaf.file.parent, token)
    folder.mkdir()
    logger.info("Fetching the data of %s at %s", leaf.name, version)
    files = harness_data.write_data(config, version, leaf.file.parent, folder, scratch, token)
    data = {split: folder / file for split, file in files.items()}
    count = len(harness_data.built(config, data, scratch).eval_docs)
    own = _own_files(leaf, task)
    for file in own:
        (folder / file.name).write_bytes(file.read_bytes())
    where = (folder / leaf.file.name).relative_to(place) if own else leaf.file.relative_to(harness_tasks.shipped())
    local = {split: file.relative_to(place).as_posix() for split, file in data.items()}
    overrides = json.dumps(dict(leaf.overrides))
    return PreparedLeaf(leaf.name, where.as_posix(), not own, overrides, local, count)


def _brought(file: str, field: str, scratch: Path) -> Path:
    """A file of a benchmark on this disk."""
    with harness_data.named(f"{field}.file"):
        if not urls.is_remote(file):
            path = Path(file).expanduser()
            if not path.is_file():
                message = "no such file."
                raise DataError.single("data.source", file, message, "Check the path.", code=DataError.missing)
            return path
        with failures.explained("data.source", file, DataError):
            remote.stamp(file)  # says at once what is wrong; fetching asks several times
        return sources.brought(file, file, scratch)[0]
