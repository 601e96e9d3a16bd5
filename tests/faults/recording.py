"""What a process of a training does besides training: it writes down each step, and lets planted faults happen."""

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from faults.job import Job, Plant
from thriftune.stores.store import Store
from thriftune.training import fit
from thriftune.training.resumable import ResumableTrainer
from thriftune.training.validation import Validator

# Longer than it takes until a test has seen it, and told the process to end.
_PAUSE_S = 3.0


class Events:
    """A file of one JSON object a line, which all processes of an attempt write to."""

    def __init__(self, file: str) -> None:
        self._file = Path(file)

    def add(self, what: str, **values: Any) -> None:
        """Write one line, with the time and who wrote it."""
        who = {"rank": int(os.environ.get("RANK", "0")), "pid": os.getpid(), "time": time.time()}
        with self._file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({"event": what, **who, **values}) + "\n")


class Recorder(TrainerCallback):
    """Writes down the beginning, every step and every loss of a training, and lets each step take longer."""

    def __init__(self, job: Job) -> None:
        self._job, self._events = job, Events(job.events)
        self._rank = int(os.environ.get("RANK", "0"))
        self._step = 0
        self._seen: list[str] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._events.add("begin", step=state.global_step, micro_batch=args.per_device_train_batch_size)
        self._step = state.global_step
        # The first argument of the inner model is there under DeepSpeed too.
        model.register_forward_hook(self._after_forward, with_kwargs=True)

    def on_step_begin(self, args, state, control, **kwargs):
        self._step, self._seen = state.global_step, []
        time.sleep(self._job.pause)
        if self._due("stall"):
            self._events.add("stall")
            time.sleep(3600)

    def on_step_end(self, args, state, control, **kwargs):
        self._events.add("step", step=state.global_step, batch=self._seen)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in (logs or {}):
            self._events.add("loss", step=state.global_step, loss=logs["loss"])

    def _after_forward(self, model: Any, arguments: Any, keywords: dict[str, Any], output: Any) -> Any:
        if not model.training or "input_ids" not in keywords:
            return output
        rows = keywords["input_ids"]
        fingerprint = hashlib.sha256(rows.cpu().numpy().tobytes()).hexdigest()[:16]
        self._seen.append(fingerprint)
        if self._due("memory", lambda plant: len(rows) >= plant.size):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        if output.loss is not None and self._due("nan", lambda plant: fingerprint == plant.file, at_any_step=True):
            output.loss = output.loss * float("nan")
        if output.loss is not None and any(p.kind == "uphill" and self._step + 1 >= p.step for p in self._job.plants):
            output.loss = -output.loss
        if output.loss is not None and self._due("overflow", at_any_step=True):
            output.loss.register_hook(lambda gradient: gradient * float("inf"))
        return output

    def _due(self, kind: str, fits=lambda _: True, *, at_any_step: bool = False) -> bool:
        """Whether a planted fault happens now; notes that it did."""
        for plant in self._job.plants:
            now = at_any_step or plant.step == self._step + 1
            if plant.kind == kind and plant.rank == self._rank and now and fits(plant) and not happened(plant):
                return True
        return False


def happened(plant: Plant) -> bool:
    """Whether a fault that happens once has happened; from now on it has."""
    if not plant.once:
        return False
    if Path(plant.once).exists():
        return True
    Path(plant.once).touch()
    return False


# What an attempt does, by the function that does it, and by the Trainer's or the validator's step if there is one.
PARTS: dict[str, tuple[Any, str, Callable[[Any], int]]] = {
    "loading": (fit, "load_tokenizer", lambda _: 0),
    "step": (ResumableTrainer, "training_step", lambda trainer: trainer.state.global_step + 1),
    "validation": (Validator, "losses", lambda validator: validator._trainer.state.global_step),
    "saving": (ResumableTrainer, "_save_checkpoint", lambda trainer: trainer.state.global_step),
    "uploading": (Store, "upload", lambda _: 0),
    "result": (fit, "_save", lambda _: 0),
}


def _pause(plant: Plant) -> None:
    """Stand still for some seconds when a part of the attempt begins, so that something can happen there."""
    place, name, step_of = PARTS[plant.file]
    function = getattr(place, name)

    def paused(first: Any, *arguments: Any, **options: Any) -> Any:
        if step_of(first) == plant.step and not happened(plant):
            time.sleep(_PAUSE_S)
        return function(first, *arguments, **options)

    setattr(place, name, paused)


def plant_in_process(job: Job) -> None:
    """Let happen what has nothing to do with a step: kills at a file, and pauses."""
    for plant in job.plants:
        if plant.kind == "pause" and plant.rank == int(os.environ.get("RANK", "0")):
            _pause(plant)
        if plant.kind == "kill" and plant.rank == int(os.environ.get("RANK", "0")):
            sys.addaudithook(_killer(plant))


def _killer(plant: Plant) -> Any:
    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        writes = isinstance(arguments[1], str) and arguments[1][0] in "wxa"
        if writes and plant.file in os.fsdecode(arguments[0]) and not happened(plant):
            os.kill(os.getpid(), signal.SIGKILL)

    return hook
