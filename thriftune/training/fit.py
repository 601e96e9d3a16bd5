"""Train by any method under any strategy: the one training path, run in each process of a job."""

import logging
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from thriftune import artifacts
from thriftune.checkpoints.location import CheckpointLocation
from thriftune.checkpoints.resumed import Resumed
from thriftune.config import ModelConfig, RunConfig
from thriftune.data.conversion import formats
from thriftune.data.prepared import TRAIN, load_split
from thriftune.errors import StartAgainError
from thriftune.methods import METHODS, Trained
from thriftune.models import architecture as architectures
from thriftune.models import saving
from thriftune.models.lineage import lineage_of
from thriftune.models.tokenizer import load_tokenizer
from thriftune.strategies import STRATEGIES
from thriftune.training.attempt import Attempt, Loaded
from thriftune.training.first_batches import first_batches
from thriftune.training.lines import Journal, journal_in, told
from thriftune.training.measuring import Measuring
from thriftune.training.memory_watch import MemoryUse
from thriftune.training.objective import objective_of
from thriftune.training.result import (
    Asked,
    GoesOn,
    Pace,
    Spent,
    TrainingResult,
    logged_losses,
    logged_validations,
)
from thriftune.training.run_record import RunRecord
from thriftune.training.trainer import make_trainer, seed_by_rank, training_arguments
from thriftune.training.validation import Validator
from thriftune.training_plan import TrainingPlan

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Inputs:
    """The inputs of a training.

    Attributes:
        config: The run.
        plan: Its plan.
        model_dir: Base model, on this node.
        dataset_dir: Prepared dataset, on this node.
        start: Adapter to continue training, on this node; None if there is none.
        checkpoints: Where checkpoints are; None if none are saved.
        fetching_seconds: Seconds that this process took to fetch them.
        lines: Folder for the lines that the training tells of itself; None for none.
        goes_on: Told of each validation, it says whether the training goes on; None to be told of none.
    """

    config: RunConfig
    plan: TrainingPlan
    model_dir: Path
    dataset_dir: Path
    start: Path | None = None
    checkpoints: CheckpointLocation | None = None
    fetching_seconds: float = 0.0
    lines: Path | None = None
    goes_on: GoesOn | None = None


def fit(inputs: Inputs, destination: Path) -> TrainingResult:
    """Train, and write the result. Runs in each process of the job.

    Args:
        inputs: The inputs of the training.
        destination: Model or adapter directory to create; only global rank 0 writes it.

    Returns:
        What was measured; the same on every rank.

    Raises:
        ConfigError: The model cannot be trained in this way.
        AdapterError: The adapter to continue was not made for this model.
        DivergedError: The loss diverged.
        BudgetError: Going on would cost more than the run may cost.
        LeaseError: Another execution trains the same at this moment.
        StartAgainError: The training was changed so that it can continue: its agent starts all processes again.
        TransientError: Another attempt may succeed.
    """
    strategy = STRATEGIES[inputs.plan.strategy]
    strategy.join(inputs.plan)
    journal = journal_in(inputs.lines)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as ended:
        attempt, loaded, spent = _attempts(inputs, journal, Path(scratch), ended)
        with told(journal), attempt.ending():
            kept_step = attempt.take_best(loaded)
            result = _result(inputs, attempt, loaded, spent, kept_step)
            _save(inputs, loaded, result, destination)
            attempt.finish()
    return result


@dataclass(frozen=True)
class TriedOut:
    """What a few steps of a training took.

    Attributes:
        updates: Steps that changed weights.
        memory: Peak memory of all ranks, with the plan's prediction.
        pace: How fast they were.
    """

    updates: int
    memory: MemoryUse
    pace: Pace


def try_out(inputs: Inputs, updates: int) -> TriedOut:
    """Train some steps to measure them, and write nothing. Runs in each process of the job.

    Args:
        inputs: The inputs of the training; its checkpoints are None.
        updates: Steps that change weights, after which the training ends, if it does not end before.

    Returns:
        What was measured; the same on every rank.

    Raises:
        ConfigError: The model cannot be trained in this way.
        TransientError: Another attempt may succeed.
    """
    from thriftune.training.callbacks import EndAfterUpdates

    counts: list[EndAfterUpdates] = []

    def load(inputs: Inputs, attempt: Attempt, journal: Journal, resumed: Resumed | None) -> Loaded:
        loaded = _load(inputs, attempt, journal, resumed)
        accelerator = loaded.trainer.accelerator
        counts.append(EndAfterUpdates(lambda: bool(accelerator.optimizer_step_was_skipped), updates))
        loaded.trainer.add_callback(counts[-1])
        return loaded

    STRATEGIES[inputs.plan.strategy].join(inputs.plan)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as ended:
        _, loaded, spent = _attempts(inputs, journal_in(inputs.lines), Path(scratch), ended, load)
    return TriedOut(counts[-1].done, spent.memory, loaded.clock.pace)


Load = Callable[[Inputs, Attempt, Journal, Resumed | None], Loaded]


def _attempts(
    inputs: Inputs, journal: Journal, scratch: Path, ended: ExitStack, load: Load | None = None
) -> tuple[Attempt, Loaded, Spent]:
    """Train to the end. After a change, a training without an agent starts again in this process.

    Whatever ends it, others may then train the same: `ended` gets what has to be done for that.
    """
    strategy = STRATEGIES[inputs.plan.strategy]
    fetching_seconds = inputs.fetching_seconds
    while True:
        given = (inputs.config, inputs.plan, inputs.model_dir, inputs.dataset_dir, inputs.checkpoints)
        journal.write("loading")
        with told(journal):
            attempt = Attempt.begin(*given, scratch, fetching_seconds)
        ended.callback(attempt.leave)
        try:
            with told(journal):
                loaded, spent = attempt.train(partial(load or _load, inputs, attempt, journal))
        except StartAgainError as again:
            if strategy.facts.is_distributed:  # its agent starts all processes again
                raise
            logger.warning("%s", again)
            attempt.stop()
            fetching_seconds = 0.0
        else:
            return attempt, loaded, spent
        _free_memory()


def _load(inputs: Inputs, attempt: Attempt, journal: Journal, resumed: Resumed | None) -> Loaded:
    """The trainer of an attempt, with the model loaded and its callbacks."""
    from thriftune.training.callbacks import StepClock, ValidationCallback
    from thriftune.training.telling import Telling

    clock = StepClock()
    config, plan = inputs.config, attempt.plan
    telling = Telling(journal, clock, plan)
    method, strategy = METHODS[plan.method], STRATEGIES[plan.strategy]
    trust = config.model.trust_remote_code
    source = ModelConfig(source=str(inputs.model_dir), trust_remote_code=trust)
    shape = architectures.of(source, labels=config.labels)
    method.check(config, shape, inputs.start)
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(inputs.model_dir, trust_remote_code=trust)
    rows: Dataset = load_split(inputs.dataset_dir, TRAIN)
    model = strategy.load(inputs.model_dir, method, plan, config, shape, inputs.start)
    is_converted = resumed is not None and resumed.is_converted
    of_strategy = strategy.trainer_arguments(plan, config, model, is_converted=is_converted)
    arguments = training_arguments(config, plan, attempt.folder, of_strategy)
    skipped, objective = attempt.adjustments.skipped_steps, objective_of(config.labels)
    trainer = make_trainer(model, arguments, tokenizer, rows, skipped, strategy.state_files, objective)
    trainer.method = method
    if resumed is None:
        with trainer.accelerator.autocast():
            method.begin(model, config, partial(first_batches, trainer, rows, config.seed))
    seed_by_rank(config.seed)
    validator = Validator(trainer, config, inputs.dataset_dir, attempt.stall.beat)

    def begin() -> None:
        losses = validator.begin()
        if method.facts.trains_weights and config.training.save_dtype != "fp32":
            with attempt.stall.paused():
                known = losses.first(saving.ROWS).mean if plan.precision == "fp32" else None
                _measuring(inputs, loaded).note_base_loss(known)

    validating = ValidationCallback(validator, begin, config.training.patience)
    loaded = Loaded(trainer, validating, clock, telling, inputs.goes_on)
    return loaded


def _measuring(inputs: Inputs, loaded: Loaded) -> Measuring:
    """The measurement of what rounding does to the weights, on the first of the held-out rows."""
    rows = loaded.validation.validator.rows
    few = rows.select(range(min(saving.ROWS, len(rows))))
    return Measuring(loaded.trainer, few, STRATEGIES[inputs.plan.strategy])


def _result(inputs: Inputs, attempt: Attempt, loaded: Loaded, spent: Spent, kept_step: int) -> TrainingResult:
    """The result of the training, with answers by the weights that are kept. Collective: every rank calls it."""
    trainer, validator, config = loaded.trainer, loaded.validation.validator, inputs.config
    steps, losses, tokens = logged_losses(trainer.state, config.training.learning_rate)
    after = validator.report(validator.measured(kept_step) or validator.losses(is_logged=False))
    trains_weights = METHODS[inputs.plan.method].facts.trains_weights
    saved = _measuring(inputs, loaded).decide(config, inputs.plan, inputs.model_dir) if trains_weights else None
    effort = spent.effort
    return TrainingResult(
        steps=trainer.state.global_step,
        seconds=effort.seconds,
        tokens_per_second=effort.tokens / effort.seconds if effort.seconds else 0.0,
        loss_steps=steps,
        losses=losses,
        loss_tokens=tokens,
        validations=logged_validations(trainer.state),
        before=validator.before(),
        after=after,
        kept_step=kept_step,
        checkpoint_steps=list(trainer.notes.get("checkpoints", [])),
        memory=spent.memory,
        resumed_at=spent.resumed_at,
        remarks=spent.remarks,
        halvings=attempt.adjustments.record(inputs.plan.micro_batch),
        skipped_steps=list(attempt.adjustments.skipped_steps),
        resources=spent.resources.samples(),
        warnings=list(spent.resources.warnings),
        saved=saved,
        asked=Asked.of(config),
        pace=loaded.clock.pace,
    )


def _save(inputs: Inputs, loaded: Loaded, result: TrainingResult, destination: Path) -> None:
    """Let the method write what was trained. Collective: every rank calls it."""
    strategy, config, trainer = STRATEGIES[inputs.plan.strategy], inputs.config, loaded.trainer
    version = artifacts.source_version(inputs.model_dir)
    fingerprint = artifacts.read_manifest(inputs.dataset_dir)["fingerprint"]
    is_chat = any(row_format.is_chat for row_format in formats(config.data))
    lineage = lineage_of(inputs.model_dir, inputs.start, uses_template=is_chat)
    record = RunRecord(config, inputs.plan, version, fingerprint, result, lineage).as_json()
    trained = Trained(
        trainer.model,
        inputs.model_dir,
        lambda dtype, rounding: strategy.gathered_state(trainer, dtype, rounding, config.seed),
        result.saved,
        {**record, **strategy.record(trainer)},
    )
    METHODS[inputs.plan.method].save(trained, config, destination)


def _free_memory() -> None:
    """Free the memory of a model whose training starts again."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
