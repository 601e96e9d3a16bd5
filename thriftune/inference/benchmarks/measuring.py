"""Measuring a model on a part of a benchmark: the base is loaded once, and every adapter on it measured in turn."""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from thriftune import artifacts
from thriftune.config import DataFormat
from thriftune.config.benchmarks import HELD_OUT
from thriftune.data.questions import prompt_style
from thriftune.inference.asking import BASE
from thriftune.inference.benchmarks import harness_data, harness_scoring, harness_tasks, held_out
from thriftune.inference.benchmarks.own_items import METRICS, Question, asked, chosen, solved_examples, written
from thriftune.inference.benchmarks.prepared import PreparedBenchmarks, PreparedTask
from thriftune.inference.benchmarks.results import LOSS, ItemResult, Results, TaskFacts
from thriftune.inference.benchmarks.room import positions_left, require_room
from thriftune.models.answering import Continuation, continue_batch
from thriftune.models.drawing import choosing, seed_of
from thriftune.models.loading import Placement, attach_adapters, load_model
from thriftune.models.tokenizer import load_tokenizer
from thriftune.progress import progress

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from thriftune.inference.benchmarks.harness_model import MeasuredModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shard:
    """A part of a benchmark: every `parts`-th item, in the order of the benchmark.

    Attributes:
        task: Name of the benchmark.
        part: Number of the part, from 0.
        parts: Number of all parts.
    """

    task: str
    part: int = 0
    parts: int = 1

    def holds(self, number: int) -> bool:
        """Whether an item is in the part.

        Args:
            number: Its number in the benchmark, from 0.
        """
        return number % self.parts == self.part


@dataclass(frozen=True)
class Settings:
    """How a model is asked.

    Attributes:
        batch: Most rows per forward pass.
        max_new_tokens: Longest answer, in tokens, of a task that does not say.
        temperature: Of items of our own and of held-out rows: 0 takes the likeliest token, above 0 tokens are drawn.
        seed: Of the draws.
        style: Format of the questions; None asks as the adapter, or the model, says that it was trained.
        trust_remote_code: Run code that the model ships.
        max_rows: Most held-out rows, where the benchmark has no limit.
    """

    batch: int = 8
    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    style: DataFormat | None = None
    trust_remote_code: bool = False
    max_rows: int = 1000

    def of(self, task: str) -> Self:
        """What counts for a benchmark: the number of held-out rows is nothing to the others.

        Args:
            task: Name of the benchmark.
        """
        return self if task == HELD_OUT else replace(self, max_rows=0)


@dataclass(frozen=True)
class _Loaded:
    """A model that is ready to be measured."""

    model: Any
    tokenizer: "PreTrainedTokenizerBase"
    style: DataFormat
    positions: int | None
    settings: Settings

    def for_harness(self) -> "MeasuredModel":
        from thriftune.inference.benchmarks.harness_model import MeasuredModel

        return MeasuredModel(
            self.model,
            self.tokenizer,
            batch=self.settings.batch,
            max_new_tokens=self.settings.max_new_tokens,
            seed=self.settings.seed,
            positions=self.positions,
        )

    def write(self, prompts: Sequence[tuple[str, list[int]]]) -> list[Continuation]:
        """Answers to prompts, each with its name; long ones first, so that those of a batch are alike."""
        settings = self.settings
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number][1]))
        found: dict[int, Continuation] = {}
        with progress(len(prompts), "Answering") as bar:
            for start in range(0, len(order), settings.batch):
                numbers = order[start : start + settings.batch]
                seeds = [seed_of(settings.seed, prompts[number][0]) for number in numbers]
                ids = [prompts[number][1] for number in numbers]
                drawing = choosing(seeds, settings.temperature)
                said = continue_batch(self.model, self.tokenizer, ids, settings.max_new_tokens, drawing)
                found |= dict(zip(numbers, said, strict=True))
                bar.update(len(numbers))
        return [found[number] for number in range(len(prompts))]


def measure(
    prepared: Path,
    shard: Shard,
    model_dir: Path,
    placement: Placement,
    adapters: Mapping[str, Path],
    settings: Settings,
    dataset_dir: Path | None = None,
) -> dict[str, Results]:
    """Measure a model, or adapters on it, on a part of a benchmark. Needs no hub.

    Args:
        prepared: A directory that `prepare` wrote.
        shard: The part.
        model_dir: The base model, or a whole model.
        placement: How to hold it.
        adapters: Directories by name; each is measured on the base. If empty, the base itself is.
        settings: How it is asked.
        dataset_dir: The prepared dataset, for held_out.

    Returns:
        The results by name of the adapter, or of `base`.

    Raises:
        DataError: An item needs more tokens than the model has positions, or the model gives no number for it.
        UserError: The model or an adapter cannot be used.
    """
    benchmarks = PreparedBenchmarks.read(prepared)
    task = benchmarks.task(shard.task)
    trust = settings.trust_remote_code
    tokenizer = load_tokenizer(model_dir, padding_side="left", trust_remote_code=trust)
    style = settings.style or prompt_style(next(iter(adapters.values()), model_dir), tokenizer)
    base = load_model(model_dir, placement, trust_remote_code=trust)
    # torch allows no dot in a module's name, and adapters may be named by their paths.
    internal = {name: f"adapter_{number}" for number, name in enumerate(adapters)}
    model = attach_adapters(base, {internal[name]: path for name, path in adapters.items()})
    model.eval()
    loaded = _Loaded(model, tokenizer, style, positions_left(model), settings)
    found = {}
    for name in list(adapters) or [BASE]:
        if name in adapters:
            model.set_adapter(internal[name])
        shown = name if name in adapters else "the model"  # base or tuned: only the caller knows
        logger.info("Measuring %s on %s, part %d of %d", shown, task.name, shard.part + 1, shard.parts)
        items, metrics = _measured(loaded, benchmarks, task, shard, dataset_dir)
        facts = TaskFacts(task.name, _version(task, loaded, dataset_dir), metrics, next(iter(metrics), ""))
        found[name] = Results.joined([Results((facts,), tuple(items))])
    return found


def _measured(
    loaded: _Loaded, benchmarks: PreparedBenchmarks, task: PreparedTask, shard: Shard, dataset_dir: Path | None
) -> tuple[list[ItemResult], dict[str, bool]]:
    """The results of a part, and its metrics, the main one first."""
    if task.kind == "harness":
        return _by_harness(loaded, benchmarks, task, shard)
    if task.kind == "held_out":
        if dataset_dir is None:
            raise ValueError("held_out needs the prepared dataset.")
        return _held_out(loaded, dataset_dir, task.limit or loaded.settings.max_rows, shard), {LOSS: False}
    assert task.format is not None
    everything = benchmarks.items_of(task)
    mine = [item for number, item in enumerate(everything[: task.limit]) if shard.holds(number)]
    questions = [
        asked(item, solved_examples(item, everything, task.few_shot), loaded.tokenizer, loaded.style) for item in mine
    ]
    require_room(task.name, questions, loaded.positions, loaded.settings.max_new_tokens)
    ask = _choose if task.format == "multiple_choice" else _write
    return ask(loaded, task.name, questions), dict.fromkeys(METRICS[task.format], True)


def _choose(loaded: _Loaded, task: str, questions: Sequence[Question]) -> list[ItemResult]:
    pairs = [(question.prompt, choice) for question in questions for choice in question.choices]
    names = [f"{task}/{question.item.id}" for question in questions for _ in question.choices]
    scored = iter(loaded.for_harness().score(names, pairs) if pairs else ())
    return [chosen(task, question, [next(scored)[0] for _ in question.choices]) for question in questions]


def _write(loaded: _Loaded, task: str, questions: Sequence[Question]) -> list[ItemResult]:
    said = loaded.write([(question.item.id, question.prompt) for question in questions])
    return [written(task, question, answer) for question, answer in zip(questions, said, strict=True)]


def _held_out(loaded: _Loaded, dataset_dir: Path, limit: int, shard: Shard) -> list[ItemResult]:
    rows = held_out.rows_of(dataset_dir, limit)
    numbers = [number for number in range(len(rows)) if shard.holds(number)]
    prompts = {}
    for number in (number for number in numbers if number < held_out.ANSWERED):
        row = rows[number]
        prompt = row["input_ids"][: held_out.answer_start(row)]
        if loaded.positions is None or len(prompt) + loaded.settings.max_new_tokens <= loaded.positions:
            prompts[number] = prompt  # the others have their loss, and no room for an answer
    said = loaded.write([(f"{number:06}", prompt) for number, prompt in prompts.items()])
    answers = dict(zip(prompts, said, strict=True))
    return list(held_out.measure(loaded.model, loaded.tokenizer, rows, numbers, loaded.settings.batch, answers))


def _by_harness(
    loaded: _Loaded, benchmarks: PreparedBenchmarks, task: PreparedTask, shard: Shard
) -> tuple[list[ItemResult], dict[str, bool]]:
    model = loaded.for_harness()
    items: list[ItemResult] = []
    metrics: dict[str, bool] = {}
    before = 0
    for leaf in task.leaves:
        group = leaf.name if len(task.leaves) > 1 else ""
        with tempfile.TemporaryDirectory() as scratch:
            config = harness_tasks.config_of(benchmarks.leaf_of(leaf), task.few_shot, task.name)
            built = harness_data.built(config, benchmarks.data_of(leaf), Path(scratch))
            scored = harness_scoring.measure(model, built, task.name, group, partial(_holds, shard, before), task.limit)
        before += min(leaf.items, task.limit or leaf.items)
        items += scored.items
        metrics |= scored.metrics
    return items, metrics


def _holds(shard: Shard, before: int, number: int) -> bool:
    """Whether an item of a task of a group is in a part, with `before` items in the tasks before it."""
    return shard.holds(before + number)


def _version(task: PreparedTask, loaded: _Loaded, dataset_dir: Path | None) -> str:
    """Digest of the items and of everything about how they are asked, except the seed."""
    settings = replace(loaded.settings.of(task.name), seed=0, batch=0, style=loaded.style)
    rows = artifacts.digests_of(dataset_dir) if task.kind == "held_out" and dataset_dir else {}
    return artifacts.key_of(task.version, repr(settings), repr(sorted(rows.items())))
