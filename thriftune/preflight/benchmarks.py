"""Benchmarks: each is there, whole, short enough for the model, and not among the rows to train on."""

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from thriftune.config import RunConfig
from thriftune.config.benchmarks import BenchmarkTask
from thriftune.data.conversion import formats
from thriftune.data.examples import Conversation, RowError
from thriftune.data.items import Item
from thriftune.data.readers import decode
from thriftune.data.report import percent
from thriftune.errors import ConfigError, DataError, Problem
from thriftune.inference.benchmarks import harness_data, harness_metrics, harness_scoring, harness_tasks, preparing
from thriftune.inference.benchmarks.contamination import Contamination, in_texts, items_of_harness
from thriftune.inference.benchmarks.own_items import asked, solved_examples
from thriftune.inference.benchmarks.room import require_room, too_long
from thriftune.preflight import measured
from thriftune.preflight.base_model import BaseModel
from thriftune.preflight.measured import Measured
from thriftune.preflight.outcome import attempt
from thriftune.preflight.sampling import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_SHOWN_EXAMPLES = 3
_SHOWN = 80  # characters of a question in a message


@dataclass(frozen=True)
class CheckedBenchmarks:
    """The benchmarks of a run.

    Attributes:
        version: Version of each by its name, as JSON; empty if there are none, or one cannot be measured.
        findings: Their problems.
    """

    version: str = ""
    findings: tuple[Problem, ...] = ()


@dataclass(frozen=True)
class _Checking:
    """What the checks of a benchmark need besides it. What could not be had is None."""

    config: RunConfig
    tokenizer: "PreTrainedTokenizerBase | None"
    positions: int | None
    token: str | None
    held_out: int | None

    @property
    def max_new_tokens(self) -> int:
        """Longest written answer."""
        assert self.config.benchmarks is not None
        return self.config.benchmarks.max_new_tokens


def check(
    config: RunConfig,
    base: BaseModel,
    tokenizer: "PreTrainedTokenizerBase | None",
    sample: Sample | None,
    token: str | None,
    held_out: int | None = None,
) -> CheckedBenchmarks:
    """Check the benchmarks of a run, and whether its gate can be decided by them.

    Args:
        config: The run.
        base: Its base model.
        tokenizer: Its tokenizer, if it can be used.
        sample: The first rows to train on, if they could be read.
        token: Hub token.
        held_out: Number of its held-out rows; None if it is not known.

    Returns:
        Their versions, and what was found.
    """
    if config.benchmarks is None:
        return CheckedBenchmarks()
    logger.info("Preflight: benchmarks")
    positions = base.architecture.longest_input if base.architecture is not None else None
    checking = _Checking(config, tokenizer, positions, token, held_out)
    findings: list[Problem] = []
    versions: dict[str, str] = {}
    items: dict[str, Sequence[Item]] = {}
    known: list[Measured] = []
    for number, task in enumerate(config.benchmarks.tasks):
        field = f"benchmarks.tasks.{number}"
        place = (f"{field}.name", task.name) if task.file is None else (f"{field}.file", task.file)
        version = attempt(partial(_version, task, field, token, trust=config.model.trust_remote_code), *place)
        findings += version.findings
        if version.value is not None:
            versions[task.name] = version.value
            checked = attempt(partial(_items, task, field, checking), *place)
            findings += checked.findings
            items[task.name] = checked.value or ()
        # Where the hub does not answer, what a task measures is known all the same; other findings are those above.
        known.append(attempt(partial(_measured, task, field, checking), *place).value or measured.unknown(task))
    if config.publish is not None and config.publish.gate is not None:
        findings += measured.check(config.publish.gate, known)
    if sample is not None and any(items.values()):
        found = in_texts(items, _texts(sample, config))
        findings += (_contaminated(name, each, sample) for name, each in found.items() if each.folded)
    is_known = len(versions) == len(config.benchmarks.tasks)
    return CheckedBenchmarks(json.dumps(versions, sort_keys=True) if is_known else "", tuple(findings))


def _version(task: BenchmarkTask, field: str, token: str | None, *, trust: bool) -> str:
    """The version of a benchmark; finding it reads or asks for everything that it is made of.

    Raises:
        UserError: It is not there, or cannot be measured.
        TransientError: The hub did not answer.
    """
    if task.file is not None and harness_tasks.is_shipped(task.name):
        message = "is a task of lm-evaluation-harness too, so results would be confused."
        raise ConfigError.single(f"{field}.name", task.name, message, "Give yours another name.")
    return preparing.version_of(task, field, token, trust=trust)


def _items(task: BenchmarkTask, field: str, checking: _Checking) -> Sequence[Item]:
    """The items of a benchmark that are on this disk, none of them too long for the model.

    Raises:
        UserError: One is too long, or there are too few to show examples.
    """
    kind = preparing.kind_of(task)
    if kind == "items":
        items, _ = preparing.own_items(task, field)
        _require_examples(task, items, field)
        if checking.tokenizer is not None:
            _require_short(task, items, field, checking)
        return items[: task.limit]
    return _items_of_harness(task, field, checking) if kind == "harness" and task.file is not None else ()


def _measured(task: BenchmarkTask, field: str, checking: _Checking) -> Measured:
    """What a benchmark measures, of how many items.

    Raises:
        UserError: There is no such benchmark, or it cannot be measured.
        TransientError: The store did not answer.
    """
    kind = preparing.kind_of(task)
    if kind == "held_out":
        most = task.limit or checking.config.evaluation.max_rows
        return measured.of_held_out(task, None if checking.held_out is None else min(checking.held_out, most))
    if kind == "items":
        items, item_format = preparing.own_items(task, field)
        return measured.of_items(task, items[: task.limit], item_format)
    with tempfile.TemporaryDirectory() as folder:
        leaves = preparing.leaves_of(task, field, Path(folder), trust=checking.config.model.trust_remote_code)
        return measured.of_harness(task, [harness_tasks.config_of(leaf, task.few_shot, field) for leaf in leaves])


def _require_examples(task: BenchmarkTask, items: Sequence[Item], field: str) -> None:
    lacking = next((i for i in items if len(solved_examples(i, items, task.few_shot)) < task.few_shot), None)
    if lacking is not None:
        where = f"group {lacking.group}" if lacking.group else "the benchmark"
        message = f"{where} has too few items for so many examples before each."
        raise DataError.single(f"{field}.few_shot", task.few_shot, message, "Use fewer.", code="benchmark-item")


def _require_short(task: BenchmarkTask, items: Sequence[Item], field: str, checking: _Checking) -> None:
    assert checking.tokenizer is not None
    style = checking.config.data.prompt_format
    questions = (
        asked(item, solved_examples(item, items, task.few_shot), checking.tokenizer, style)
        for item in items[: task.limit]
    )
    with harness_data.named(field):
        require_room(task.name, questions, checking.positions, checking.max_new_tokens)


def _items_of_harness(task: BenchmarkTask, field: str, checking: _Checking) -> list[Item]:
    """The items of a YAML task whose data are files: those on the hub are not downloaded for this."""
    found: list[Item] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        trust = checking.config.model.trust_remote_code
        for leaf in preparing.leaves_of(task, field, scratch, trust=trust):
            config = harness_tasks.config_of(leaf, task.few_shot, field)
            if harness_data.hub_dataset(config) is not None:
                continue
            version = harness_data.data_version(config, leaf.file.parent, checking.token)
            files = harness_data.write_data(config, version, leaf.file.parent, scratch, scratch, checking.token)
            built = harness_data.built(config, {split: scratch / file for split, file in files.items()}, scratch)
            found += items_of_harness(built, leaf.name, task.limit)
            if checking.tokenizer is None or checking.positions is None:
                continue
            for number, needed in harness_scoring.lengths(
                built, checking.tokenizer, task.limit, checking.max_new_tokens
            ):
                if needed > checking.positions:
                    writes = harness_metrics.writes(config)
                    raise too_long(f"{task.name}/{number}", needed, checking.positions, writes=writes)
    return found


def _texts(sample: Sample, config: RunConfig) -> Iterator[str]:
    """The sampled rows as text; those that cannot be read are named elsewhere."""
    for source, row_format in zip(sample.sources, formats(config.data, config.labels), strict=True):
        for row in source.rows:
            try:
                examples = [each for each in row_format.read(decode(row.raw)) if not isinstance(each, RowError)]
            except RowError:
                continue
            for example in examples:
                if isinstance(example, Conversation):
                    yield "\n".join(str(message.get("content") or "") for message in example.messages)
                else:
                    yield example.text


def _contaminated(name: str, found: Contamination, sample: Sample) -> Problem:
    rows = "the rows to train on" if sample.is_whole else f"the first {sample.count} rows to train on"
    shown = "; ".join(example[:_SHOWN] for example in found.examples[:_SHOWN_EXAMPLES])
    message = (
        f"{len(found.folded)} of its {found.items} items ({percent(found.share)}) are in {rows}, "
        f"{len(found.exact)} of them letter by letter, {len(found.answered)} with their answer: {shown}."
    )
    remedy = "Remove them from the data or from the benchmark; what it shows of them is memory."
    return Problem.coded("benchmark-contaminated", "benchmarks.tasks", name, message, remedy)
