"""transformers' Trainer, saving for a new attempt: shards alone, by steps and by minutes, and before a node goes."""

import logging
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import SchedulerType, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from thriftune import distributed
from thriftune.checkpoints.resumption import Checkpoints
from thriftune.data.tokenization import IGNORED
from thriftune.errors import PreemptedError, ThriftuneError
from thriftune.strategies.zero.universal import separate_steps
from thriftune.training.guards.divergence import DivergenceGuard
from thriftune.training.guards.stall import StallWatch
from thriftune.training.notice import Notice
from thriftune.training.row_order import ByLength, RowOrder, filler
from thriftune.training.schedule import rate_share

logger = logging.getLogger(__name__)

_SECONDS = 60.0


class ResumableTrainer(Trainer):
    """A Trainer whose checkpoints hold what a new attempt needs, and nothing twice."""

    def __init__(self, *args: Any, skipped_steps: Collection[int] = (), **kwargs: Any) -> None:
        """A Trainer.

        Args:
            args: The Trainer's.
            skipped_steps: Optimizer steps whose batch is left out: its rows have no effect.
            kwargs: The Trainer's.
        """
        super().__init__(*args, **kwargs)
        self.skipped_steps = frozenset(skipped_steps)
        self.notes: dict[str, Any] = {}  # what each of its checkpoints says besides; JSON
        self.seconds_beside = 0.0  # of the training loop, spent on something else than training
        self.last_rows: list[torch.Tensor] = []
        self._losses: list[torch.Tensor] = []
        rows: Any = self.train_dataset
        tokenizer: Any = self.processing_class
        self._filler = filler(rows, tokenizer.pad_token_id)
        self.train_dataset = rows.add_item(self._filler)  # its index is the one after the last row

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One pass, whose loss and rows are remembered until the step ends."""
        if self.state.global_step + 1 in self.skipped_steps:
            inputs = self.data_collator([self._filler])
        if not self._losses:
            self.last_rows = []
        self.last_rows.append(inputs["input_ids"][0])
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._losses.append(loss.detach())
        return loss

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The loss of a pass: 0 where no row has a label, also of a model that would divide by their number."""
        is_labelled = (inputs["labels"] != IGNORED).any()
        loss: Any = super().compute_loss(model, inputs, *args, **kwargs)
        # On the device, so that nothing waits for it.
        return torch.where(is_labelled.to(loss.device), loss, 0.0 * loss.nan_to_num())

    def pop_losses(self) -> list[float]:
        """The loss of each pass since the last call; their sum is that of the step. Waits for the GPU once."""
        losses, self._losses = [float(loss) for loss in self._losses], []
        return losses

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The learning rate of every step: not transformers' own, which begins at 0. DeepSpeed is given it too."""
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
        """The batches of an epoch, whose order is told the epoch, also where the first of them are skipped."""
        loader: Any = super().get_train_dataloader()
        loader.set_sampler(self._order)
        return loader

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """An epoch; nothing where the last step is done: after its checkpoint transformers 5.23 would do one more.

        As it would where a callback had ended the training before it began.
        """
        if self.state.global_step >= self.state.max_steps or self.control.should_training_stop:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint, and note that there is one at this step."""
        self.notes.setdefault("checkpoints", []).append(self.state.global_step)
        super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save what trains; under DeepSpeed nothing: its shards say it all, and gathering a model takes its memory."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        if not self.is_deepspeed_enabled:
            model: Any = self.model
            adapter_only = {"save_embedding_layers": False} if hasattr(model, "peft_config") else {}
            model.save_pretrained(folder, **adapter_only)


class CheckpointCallback(TrainerCallback):
    """Has checkpoints saved when they are due, by steps or by minutes, at the last step, and before the node goes.

    Args:
        checkpoints: Where they go.
        notice: Hears that the node goes.
        content: What a checkpoint's manifest says besides.
        stall: Does not count the time that saving takes.
        guard: Knows whether the loss is one to save.
        is_wanted: Says of a step whether its checkpoint is wanted besides.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        notice: Notice,
        content: Callable[[], dict[str, Any]],
        stall: StallWatch,
        guard: DivergenceGuard,
        is_wanted: Callable[[int], bool],
    ) -> None:
        self._checkpoints, self._notice, self._content = checkpoints, notice, content
        self._is_wanted = is_wanted
        self._stall, self._guard = stall, guard
        self._saved_at, self._saved_step = time.monotonic(), 0
        self._preempted = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count from here."""
        self._saved_at, self._saved_step = time.monotonic(), state.global_step
        state.compute_steps(args, state.max_steps)  # the checkpoint's would hold: another training.log_every
        # Of a checkpoint of another number of ranks: what DeepSpeed loads is one count of steps for all of them.
        separate_steps(kwargs.get("optimizer"))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint if one is due to any rank: clocks differ, and a notice reaches one node.

        While the loss is far off, none is due: within ten steps that is over or the training is, and by then the last
        good checkpoint would have made way for others. All ranks have the same loss.
        """
        self._checkpoints.forget_restored()
        # Before the node goes even a doubtful one is saved, if the one before stays.
        is_calm, keeps_another = not self._guard.is_suspicious, self._checkpoints.config.keep_checkpoints > 1
        # What saves the result may be cut off, too. And training may end early, as its validation asks.
        is_last = state.global_step >= state.max_steps or control.should_training_stop
        is_due = is_last or self._is_wanted(state.global_step) or self._is_due(state.global_step)
        due, preempted = distributed.any_rank(is_due, self._notice.was_given)
        may_save = is_calm or (preempted and keeps_another)
        control.should_save = (due or preempted) and may_save
        if preempted and not is_last:
            self._preempted = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Hand the checkpoint over.

        Raises:
            TransientError: The last three could not be saved, and there is more to train.
            UserError: The same, and the store refused access.
        """
        self._saved_at, self._saved_step = time.monotonic(), state.global_step
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        self._stall.beat()
        try:
            self._checkpoints.save(folder, state.global_step, self._content())
        except ThriftuneError as error:
            if state.global_step < state.max_steps and not control.should_training_stop:
                raise
            logger.warning("No checkpoint of the last step; the result is saved without one. %s", error)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Wait for the last checkpoint of a training that was cut short.

        Raises:
            PreemptedError: It was.
        """
        if self._preempted:
            with self._stall.paused():
                in_store = self._checkpoints.wait(self._checkpoints.grace_seconds)
            distributed.barrier()
            how = "is saved" if in_store else "could not be saved in time"
            raise PreemptedError(f"The node goes away; what was trained to step {self._saved_step} {how}.")

    def _is_due(self, step: int) -> bool:
        config = self._checkpoints.config
        by_steps = config.every_steps is not None and step - self._saved_step >= config.every_steps
        return by_steps or time.monotonic() - self._saved_at >= config.every_minutes * _SECONDS
