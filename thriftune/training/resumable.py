"""transformers' Trainer, with checkpoints for new attempts: by steps and by minutes, and before a node goes away."""

import logging
import math
import time
from collections.abc import Callable, Collection
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import SchedulerType, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import SCHEDULER_NAME

from thriftune import distributed
from thriftune.checkpoints.resumption import Checkpoints
from thriftune.data.tokenization import IGNORED
from thriftune.errors import PreemptedError, ThriftuneError
from thriftune.methods import TrainingMethod
from thriftune.methods.saving import require_all_saved, save_trained
from thriftune.strategies import StateFiles
from thriftune.strategies.zero.frozen import leave_out_frozen
from thriftune.strategies.zero.universal import separate_steps
from thriftune.training.guards.divergence import DivergenceGuard
from thriftune.training.guards.stall import StallWatch
from thriftune.training.notice import Notice
from thriftune.training.objective import LANGUAGE, Objective
from thriftune.training.row_order import ByLength, RowOrder, filler
from thriftune.training.schedule import rate_share

logger = logging.getLogger(__name__)

_SECONDS = 60.0
_BESIDE = "beside.safetensors"  # what a method has beside the weights that peft or transformers saves


class ResumableTrainer(Trainer):
    """A Trainer whose checkpoints contain what a new attempt needs, and nothing twice."""

    def __init__(
        self,
        *args: Any,
        skipped_steps: Collection[int] = (),
        state_files: StateFiles | None = None,
        objective: Objective = LANGUAGE,
        **kwargs: Any,
    ) -> None:
        """Make a Trainer.

        Args:
            *args: Arguments of the Trainer.
            skipped_steps: Optimizer steps whose batch is skipped: its rows have no effect.
            state_files: Writes and reads what trains in a checkpoint; None if the Trainer does.
            objective: What the model learns from rows.
            **kwargs: Arguments of the Trainer.
        """
        super().__init__(*args, **{"compute_loss_func": objective.loss_function, **kwargs})
        self.objective: Objective = objective
        self.skipped_steps = frozenset(skipped_steps)
        self._state_files = state_files
        self.notes: dict[str, Any] = {}  # JSON that every checkpoint contains
        self.method: TrainingMethod | None = None  # knows what else checkpoints need
        self.written: Future[None] | None = None  # done when the files of the last checkpoint are whole
        self.seconds_beside = 0.0  # of the training loop, spent on other things than training
        self.step_loss = math.nan  # of the last step, the mean over all ranks
        self.last_rows: list[torch.Tensor] = []
        self._losses: list[torch.Tensor] = []
        rows: Any = self.train_dataset
        tokenizer: Any = self.processing_class
        self._filler = filler(rows, tokenizer.pad_token_id)
        self.train_dataset = rows.add_item(self._filler)  # its index follows that of the last row

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """Compute one pass, and keep its loss and its first row until the step ends."""
        if self.state.global_step + 1 in self.skipped_steps:
            inputs = self.data_collator([self._filler])
        if not self._losses:
            self.last_rows = []
        self.last_rows.append(inputs["input_ids"][0])
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._losses.append(loss.detach())
        return loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of a pass; 0 if no row has a label, where some models would divide by zero."""
        is_labelled = (inputs["labels"] != IGNORED).any()
        loss: Any = super().compute_loss(model, inputs, *args, **kwargs)
        # Computed on the device, so that nothing waits for it.
        return torch.where(is_labelled.to(loss.device), loss, 0.0 * loss.nan_to_num())

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return float(self._get_learning_rate())

    def pop_losses(self) -> list[float]:
        """The loss of each pass since the last call; their sum is the loss of the step. Waits for the GPU once."""
        losses, self._losses = [float(loss) for loss in self._losses], []
        return losses

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Make the schedule of the learning rate, also for DeepSpeed. transformers' own schedules start at 0."""
        if self.lr_scheduler is None:
            rate = partial(
                rate_share,
                scheduler=SchedulerType(self.args.lr_scheduler_type).value,
                warmup=self.args.get_warmup_steps(num_training_steps),
                total=num_training_steps,
            )
            trained: Any = optimizer if optimizer is not None else self.optimizer
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(trained, rate)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows: Any = self.train_dataset
        count, at_once = len(rows) - 1, self.args.per_device_train_batch_size * self.args.world_size
        by_length = None
        if self.args.train_sampling_strategy == "group_by_length":
            by_length = ByLength(rows["length"][:count], at_once * self.args.gradient_accumulation_steps)
        self._order = RowOrder(count, at_once, self.args.data_seed or 0, by_length)
        return self._order

    def get_train_dataloader(self) -> Any:
        """The batches of an epoch, in an order that depends on the epoch even if the first batches are skipped."""
        loader: Any = super().get_train_dataloader()
        loader.set_sampler(self._order)
        return loader

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Run an epoch, unless the last step is done: after its checkpoint transformers 5.23 would do one more.

        Neither where a callback ended the training before it began.
        """
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint, and note that there is one at this step."""
        self.notes.setdefault("checkpoints", []).append(self.state.global_step)
        if self.is_deepspeed_enabled:
            leave_out_frozen(self.model_wrapped)
        super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save what trains.

        Where it is sharded, save nothing: the shards in the checkpoint have it, and gathering needs a model's memory.
        """
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        # Of several processes with copies one writes: another one's file could be half written when it is uploaded.
        if self.is_deepspeed_enabled or self._state_files is not None or not self.args.should_save:
            return
        model: Any = self.model
        trained = sum(parameter.requires_grad for parameter in model.parameters())
        if not hasattr(model, "peft_config"):
            is_whole = trained == sum(1 for _ in model.parameters())
            model.save_pretrained(folder) if is_whole else save_trained(model, folder)
            return
        model.save_pretrained(folder, save_embedding_layers=False)
        beside = self.method.beside(model) if self.method else {}
        if beside:
            save_file({name: tensor.contiguous() for name, tensor in beside.items()}, folder / _BESIDE)
        if not beside or (self.method and self.method.facts.merges):  # else all that trains is beside what peft saves
            require_all_saved(folder, trained)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load the weights of a checkpoint, and before them what the method has beside them."""
        folder = Path(resume_from_checkpoint)
        tensors = load_file(folder / _BESIDE) if (folder / _BESIDE).is_file() else {}
        if self.method and self.method.take(self.model, tensors):
            return
        if self._state_files is None:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._state_files.load_weights(self, folder)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if self._state_files is None:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        self.written = self._state_files.save(self, Path(output_dir))
        scheduler: Any = self.lr_scheduler
        if self.args.should_save:
            torch.save(scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if self._state_files is None or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        self._state_files.load_optimizer(self, Path(checkpoint))
        scheduler: Any = self.lr_scheduler
        scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Warn about trained weights that a checkpoint lacks: all others the model has already."""
        model: Any = self.model
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name in trained]
        super()._issue_warnings_after_load(load_result)


class CheckpointCallback(TrainerCallback):
    """Saves checkpoints when they are due: by steps or by minutes, at the last step, and before the node goes away.

    Args:
        checkpoints: Where they go.
        notice: Knows whether the node is going away.
        content: Gives the additional content of a checkpoint's manifest.
        stall: The stall watch, which must not count the time that saving takes.
        guard: Knows whether the loss is suspicious, so that nothing should be saved.
        is_wanted: Whether a step needs a checkpoint for another reason.
        written: Gives what is done when the files that the Trainer writes in the background are whole.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        notice: Notice,
        content: Callable[[], dict[str, Any]],
        stall: StallWatch,
        guard: DivergenceGuard,
        is_wanted: Callable[[int], bool],
        written: Callable[[], Future[None] | None],
    ) -> None:
        self._checkpoints, self._notice, self._content = checkpoints, notice, content
        self._is_wanted, self._written = is_wanted, written
        self._stall, self._guard = stall, guard
        self._saved_at, self._saved_step = time.monotonic(), 0
        self._preempted = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count steps and minutes from here."""
        self._saved_at, self._saved_step = time.monotonic(), state.global_step
        state.compute_steps(args, state.max_steps)  # else a checkpoint's training.log_every would replace the run's
        # For a converted checkpoint: DeepSpeed loads one count of steps for all parts of a shard.
        separate_steps(kwargs.get("optimizer"))

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Answer a notice with a checkpoint from here on."""
        self._notice.wait_for_step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint if one is due on any rank: clocks differ, and a notice reaches only one node.

        None is due while the loss is far too high: within ten steps that passes or the training ends, and until then
        newer checkpoints must not replace the last good one. All ranks have the same loss.
        """
        self._checkpoints.forget_restored()
        # Before the node goes away even a doubtful checkpoint is saved, if the one before it is kept.
        is_calm, keeps_another = not self._guard.is_suspicious, self._checkpoints.config.keep_checkpoints > 1
        # The last step too, as saving the result may be interrupted. And a validation may end the training early.
        is_last = state.global_step >= state.max_steps or control.should_training_stop
        is_due = is_last or self._is_wanted(state.global_step) or self._is_due(state.global_step)
        due, preempted = distributed.any_rank(is_due, self._notice.was_given)
        may_save = is_calm or (preempted and keeps_another)
        control.should_save = (due or preempted) and may_save
        if preempted and not is_last:
            self._preempted = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Hand the checkpoint over.

        If the last three could not be saved and more steps follow, this raises TransientError, or UserError where the
        store refused access.
        """
        self._saved_at, self._saved_step = time.monotonic(), state.global_step
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        self._stall.beat()
        try:
            self._checkpoints.save(folder, state.global_step, self._content(), self._written())
        except ThriftuneError as error:
            if state.global_step < state.max_steps and not control.should_training_stop:
                raise
            if state.global_step >= state.max_steps:
                logger.warning("The last step has no checkpoint; the result is saved without one. %s", error)
            else:  # a result follows if validations ended it, and none if the budget or a notice did
                logger.warning("Training ends at step %d, which has no checkpoint. %s", state.global_step, error)
        (preempted,) = distributed.any_rank(
            self._notice.was_given
        )  # while it was written: another step may be too long
        if preempted and state.global_step < state.max_steps and not control.should_training_stop:
            self._preempted = control.should_training_stop = True

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for the files of the last checkpoint; after a notice also for its upload, then raise PreemptedError."""
        if not self._preempted:
            self._checkpoints.wait_for_files()  # the result is then made in the memory that they were copied into
        else:
            with self._stall.paused():
                in_store = self._checkpoints.wait(self._checkpoints.grace_seconds)
            distributed.barrier()
            how = "is saved" if in_store else "could not be saved in time"
            raise PreemptedError(f"The node is going away; the training up to step {self._saved_step} {how}.")

    def _is_due(self, step: int) -> bool:
        config = self._checkpoints.config
        by_steps = config.every_steps is not None and step - self._saved_step >= config.every_steps
        return by_steps or time.monotonic() - self._saved_at >= config.every_minutes * _SECONDS
