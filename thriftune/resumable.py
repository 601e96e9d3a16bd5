"""transformers' Trainer, saving for a new attempt: shards alone, by steps and by minutes, and before a node goes."""

import logging
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from thriftune import distributed
from thriftune.checkpoints.universal import separate_steps
from thriftune.errors import PreemptedError
from thriftune.guards.stall import StallWatch
from thriftune.notice import Notice
from thriftune.resumption import Checkpoints

logger = logging.getLogger(__name__)

_SECONDS = 60.0


class ResumableTrainer(Trainer):
    """A Trainer whose checkpoints hold what a new attempt needs, and nothing twice."""

    def __init__(self, *args: Any, skipped_steps: Collection[int] = (), **kwargs: Any) -> None:
        """A Trainer.

        Args:
            args: The Trainer's.
            skipped_steps: Optimizer steps whose batch is left out: that of the step before is trained on again.
            kwargs: The Trainer's.
        """
        super().__init__(*args, **kwargs)
        self._skipped_steps = frozenset(skipped_steps)
        self._losses: list[torch.Tensor] = []
        self._spare: list[dict[str, Any]] = []
        self._order: LengthGrouped | None = None
        self.last_rows: list[torch.Tensor] = []

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One pass, whose loss and rows are remembered until the step ends."""
        if self.state.global_step + 1 in self._skipped_steps and self._spare:
            inputs = self._spare[min(len(self._losses), len(self._spare) - 1)]
            num_items_in_batch = None
        elif not self._losses:
            self._spare = []
        if self.state.global_step + 1 not in self._skipped_steps:
            self._spare.append(dict(inputs))
        if not self._losses:
            self.last_rows = []
        self.last_rows.append(inputs["input_ids"][0])
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._losses.append(loss.detach())
        return loss

    def take_losses(self) -> list[float]:
        """The loss of each pass since the last call; their sum is that of the step. Waits for the GPU once."""
        losses, self._losses = [float(loss) for loss in self._losses], []
        return losses

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        rows: Any = train_dataset if train_dataset is not None else self.train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(rows)
        lengths = list(rows["length"])
        passes = self.args.gradient_accumulation_steps * self.args.world_size
        self._order = LengthGrouped(lengths, self.args.per_device_train_batch_size * passes, self.args.data_seed or 0)
        return self._order

    def get_train_dataloader(self) -> Any:
        """The batches of an epoch, whose order knows the epoch where rows are grouped."""
        loader: Any = super().get_train_dataloader()
        if self._order is not None:
            loader.set_sampler(self._order)
        return loader

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save adapters; under DeepSpeed nothing: its shards say it all, and gathering the model takes its memory."""
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        if not self.is_deepspeed_enabled:
            model: Any = self.model
            model.save_pretrained(folder, save_embedding_layers=False)


class LengthGrouped(Sampler[int]):
    """Rows of like length together, in an order that depends on seed, epoch and global batch alone.

    transformers' own draws from the random numbers of the process: a training that goes on in a later epoch, or on
    another number of GPUs, would take other rows than it would have, some twice and some never (transformers 5.23).

    Args:
        lengths: Tokens of each row.
        global_batch: Rows per optimizer step.
        seed: Of the run.
    """

    def __init__(self, lengths: list[int], global_batch: int, seed: int) -> None:
        self._lengths, self._global_batch, self._seed, self._epoch = lengths, global_batch, seed, 0

    def __len__(self) -> int:
        return len(self._lengths)

    def set_epoch(self, epoch: int) -> None:
        """Another pass has another order."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(get_length_grouped_indices(self._lengths, self._global_batch, generator=generator))


class KeepCheckpoints(TrainerCallback):
    """Has checkpoints saved when they are due, by steps or by minutes, and one before the node goes.

    Args:
        checkpoints: Where they go.
        notice: Hears that the node goes.
        content: What a checkpoint's manifest says besides.
        stall: Does not count the time that saving takes.
    """

    def __init__(
        self, checkpoints: Checkpoints, notice: Notice, content: Callable[[], dict[str, Any]], stall: StallWatch
    ) -> None:
        self._checkpoints, self._notice, self._content, self._stall = checkpoints, notice, content, stall
        self._saved_at, self._saved_step = time.monotonic(), 0
        self._preempted = False

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count from here."""
        self._saved_at, self._saved_step = time.monotonic(), state.global_step
        # Of a checkpoint of another number of ranks: what DeepSpeed loads is one count of steps for all of them.
        separate_steps(kwargs.get("optimizer"))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask for a checkpoint if one is due to any rank: clocks differ, and a notice reaches one node."""
        self._checkpoints.forget_restored()
        due, preempted = distributed.any_rank(self._is_due(state.global_step), self._notice.was_given)
        is_last = state.global_step >= state.max_steps
        control.should_save = (due or preempted) and not is_last
        if preempted and not is_last:
            self._preempted = control.should_training_stop = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Hand the checkpoint over."""
        self._saved_at, self._saved_step = time.monotonic(), state.global_step
        folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
        self._stall.beat()
        self._checkpoints.save(folder, state.global_step, self._content())

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
            raise PreemptedError(f"The node goes away; what was trained to step {state.global_step} {how}.")

    def _is_due(self, step: int) -> bool:
        config = self._checkpoints.config
        by_steps = config.every_steps is not None and step - self._saved_step >= config.every_steps
        return by_steps or time.monotonic() - self._saved_at >= config.every_minutes * _SECONDS
