"""What the cached steps of a run are known by, and whether what Flyte's cache would serve for them is still there."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from flytekit.types.directory import FlyteDirectory

from tasks import settings
from tasks.declaring import FETCH_CACHE, PREPARE_CACHE, TRAIN_CACHE
from tasks.transfer import transient_errors_retried, uri_of
from thriftune import artifacts
from thriftune.checkpoints import known_by
from thriftune.config import ModelConfig, RunConfig
from thriftune.config.choices import METHODS
from thriftune.data import prepare
from thriftune.errors import Problem, ResultError, UserError
from thriftune.stores import index
from thriftune.training.result import Asked
from thriftune.training_plan import TrainingPlan

logger = logging.getLogger("thriftune.tasks.results")


@dataclass(frozen=True)
class Step:
    """A cached step of a run.

    Attributes:
        cache_key: What Flyte's cache knows it by.
        record: URL of its record in the index; empty in a local run.
        is_made: Whether its result is in the store, and whole.
        facts: What the task that made it said about it.
        results: URLs of the directories that it made.
    """

    cache_key: str
    record: str = ""
    is_made: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    results: tuple[str, ...] = ()

    @property
    def inputs(self) -> dict[str, str]:
        """The inputs that its task has for this."""
        return {"cache_key": self.cache_key, "record": self.record}


@dataclass(frozen=True)
class Steps:
    """The cached steps of a run.

    Attributes:
        model: The fetched base model and its tokenizer.
        dataset: The prepared rows.
        training: The trained model or adapter.
        merged: The merged model; None where nothing is merged.
        begun: What the model before the first step is known by: the base, whichever generation of it is in the store,
            and the adapter that the training continues.
        rows: Fingerprint of the prepared rows.
    """

    model: Step
    dataset: Step
    training: Step
    merged: Step | None
    begun: str
    rows: str


@dataclass(frozen=True)
class Versions:
    """Present versions, as the preflight found them.

    Attributes:
        model: Of the base model's source.
        tokenizer: Fingerprint of its tokenizer.
        data: Of the data's sources.
        start: Of the adapter that the training continues; empty if there is none.
        benchmarks: Of each benchmark by name, as JSON; empty if there are none.
    """

    model: str
    tokenizer: str
    data: str
    start: str = ""
    benchmarks: str = ""

    @property
    def benchmarks_by_name(self) -> dict[str, str]:
        """Versions of the benchmarks."""
        found: dict[str, str] = json.loads(self.benchmarks or "{}")
        return found


def steps_of(config: RunConfig, plan: TrainingPlan, versions: Versions) -> Steps:
    """The cached steps of a run, each looked up in the index: what is not whole there gets another key, and is said.

    Args:
        config: The run.
        plan: Its plan.
        versions: Present versions of what it reads.

    Raises:
        ResultError: The index may not be read or written.
    """
    base, model = step_of_model(config.model, versions.model)
    rows = prepare.fingerprint(config.data, config.seed, versions.data, versions.tokenizer, config.labels)
    trained = known_by.training(config, plan, base=base, dataset=rows, start=versions.start)
    kind = METHODS[config.method].result
    dataset = step("dataset", PREPARE_CACHE, rows, "the prepared dataset")
    training = step("training", TRAIN_CACHE, trained, f"the trained {kind}")
    merged = None
    if config.merges:
        merged = step("merged", TRAIN_CACHE, known_by.merging(config, training.cache_key), "the merged model")
    if training.is_made and config.training.report_to == "wandb":
        logger.warning(
            "An earlier run has trained this: unless it is trained anew, nothing is reported to Weights & Biases."
        )
    return Steps(model, dataset, training, merged, artifacts.key_of(base, versions.start), rows)


def step_of_model(model: ModelConfig, version: str) -> tuple[str, Step]:
    """What a base model is known by, and the step that fetches it.

    Args:
        model: The model section of a run.
        version: Present version of the model's source.

    Raises:
        ResultError: The index may not be read or written.
    """
    base = known_by.model(model, version)
    return base, step("model", FETCH_CACHE, base, "the fetched base model")


def remember(record: str, *results: FlyteDirectory, facts: Mapping[str, Any] | None = None) -> None:
    """Write down what a task made, once it is uploaded.

    Args:
        record: URL of the record; empty in a local run, where nothing is written.
        *results: What it made.
        facts: What a later run has to know of it.
    """
    if record:
        with _in_the_index(record):
            index.remember(record, [uri_of(result) for result in results], facts or {})


def made_by(record: str) -> index.Made | None:
    """What a task made, by its record; None if it made nothing yet, or what it made is no longer whole.

    Args:
        record: URL of the record.

    Raises:
        ResultError: The index may not be read.
    """
    with _in_the_index(record):
        return index.made_by(record)


def require_there(places: Mapping[str, str]) -> None:
    """Refuse to end a run well whose results are not in the store.

    Args:
        places: URLs of the results, by kind; empty where there is none.

    Raises:
        ResultError: One is not there, not whole, or may not be read.
    """
    if settings.is_local():
        return
    problems = []
    for kind, place in places.items():
        if not place:  # held back by the gate
            continue
        try:
            with transient_errors_retried():
                found = index.damages(place)
        except UserError as error:
            refused = error.problems[0]
            problems.append(Problem(kind, place, f"cannot be looked at: {refused.message}", refused.remedy))
            continue
        if found:
            remedy = "Start the run again: what is gone is made anew (with --overwrite-cache everything is)."
            problems.append(Problem(kind, place, f"is not whole in the store. {' '.join(found[:3])}", remedy))
    if problems:
        raise ResultError(problems)


def was_asked_otherwise(training: Step, config: RunConfig) -> bool:
    """Whether a training that the cache will serve answered other prompts than a run has.

    Args:
        training: The training.
        config: The run.
    """
    return training.is_made and training.facts != Asked.of(config).facts


def step(kind: str, version: str, key: str, what: str) -> Step:
    """A cached step, as the index has it: what is not whole in the store gets another key, and is said.

    Args:
        kind: What it makes, in a word.
        version: Version of its cache.
        key: What its result is known by.
        what: What it makes, for the log.

    Raises:
        ResultError: The index may not be read or written.
    """
    root = settings.results_root()
    name = f"{kind}-{artifacts.key_of(version, key)}"
    if not root:
        return Step(name)
    with _in_the_index(root):
        entry = index.look_up(root, name, what)
    key = f"{name}-{entry.generation}"
    if entry.made is None:
        return Step(key, entry.record)
    return Step(key, entry.record, is_made=True, facts=entry.made.facts, results=entry.made.results)


@contextmanager
def _in_the_index(place: str) -> Iterator[None]:
    """Say where a store refused the index, and what to do: a cache that cannot be looked through is not served."""
    try:
        with transient_errors_retried():
            yield
    except UserError as error:
        cause = error.problems[0]
        message = f"what earlier runs made cannot be looked up or written down. {cause.message}"
        raise ResultError.single("results", place, message, cause.remedy, code="output-not-writable") from error
