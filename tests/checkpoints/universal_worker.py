"""Trainings that are saved, converted and resumed with other ranks, for the tests: real DeepSpeed over gloo.

Usage: python tests/checkpoints/universal_worker.py JOBS.json, a list of `Job` that are done one after the other. Each
writes `<output>.json` with what its ranks saw. The ranks of a job are forked from this process: the libraries are
imported once, which takes longer than all the training.
"""

import json
import os
import random
import socket
import sys
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

os.environ["DS_ACCELERATOR"] = "cpu"
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.checkpoint import ds_to_universal  # noqa: F401  (in memory before the fork)
from transformers import Trainer, TrainerCallback, TrainingArguments

from thriftune import artifacts, distributed
from thriftune.batching import Batch
from thriftune.hardware import torch_dtype
from thriftune.strategies.mapped import map_model
from thriftune.strategies.zero import configuration as zero
from thriftune.strategies.zero import loading as zero_loading
from thriftune.strategies.zero import universal

GLOBAL_BATCH = 12


@dataclass(frozen=True)
class Job:
    """One training. `section` is its `zero_optimization`; `save_at` the step of its checkpoint in `output`.

    `resume` is the checkpoint to go on from, `converts` whether other ranks wrote it, `separate_steps` whether that is
    called.
    """

    model: str
    output: str
    ranks: int
    section: dict
    micro_batch: int = 2
    rows: int = 120
    steps: int = 8
    save_at: int | None = None
    resume: str | None = None
    converts: bool = False
    precision: str = "fp32"
    separate_steps: bool = True
    sampling: str = "random"


class Rows(torch.utils.data.Dataset):
    """Rows of very different lengths, that can be learnt: each counts upwards from a number of its own."""

    def __init__(self, count: int) -> None:
        chance = random.Random(0)
        self.rows = []
        for _ in range(count):
            start, length = chance.randrange(4, 60), chance.randrange(4, 28)
            self.rows.append([start + i for i in range(length)])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return {"input_ids": self.rows[index], "row": index}


def padded(rows: list[dict]) -> dict[str, torch.Tensor]:
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for place, row in enumerate(rows):
        ids[place, : len(row["input_ids"])] = labels[place, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
    return {
        "input_ids": ids, "labels": labels, "attention_mask": (labels != -100).long(),
        "rows": torch.tensor([row["row"] for row in rows]),
    }  # fmt: skip


class RecordingTrainer(Trainer):
    """Notes the rows of every micro batch, and writes DeepSpeed's shards alone into checkpoints."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.seen = []

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.seen.append(inputs.pop("rows").tolist())
        return super().training_step(model, inputs, num_items_in_batch)

    def save_model(self, output_dir=None, _internal_call=False):
        Path(output_dir).mkdir(parents=True, exist_ok=True)


class SeparateSteps(TrainerCallback):
    """What a trainer has to call, where it has to call it."""

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        universal.separate_steps(optimizer)


class SaveOnce(TrainerCallback):
    def __init__(self, step: int | None) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step == self.step


def trainer_of(job: Job) -> RecordingTrainer:
    model = map_model(Path(job.model))
    accumulation, rest = divmod(GLOBAL_BATCH, job.micro_batch * job.ranks)
    assert rest == 0, job
    config = zero.complete(
        {"zero_optimization": job.section},
        Batch(GLOBAL_BATCH, job.micro_batch, accumulation, job.ranks),
        job.precision,
        zero.Optimization(1e-2, 0.01, 1.0),
        model.config.hidden_size,
        is_gpu=False,
    )
    if job.precision == "fp16":
        # The scale moves within these few steps, but not to where it would overflow with some numbers of ranks.
        config["fp16"].update(initial_scale_power=8, loss_scale_window=3)
        get_accelerator().is_fp16_supported = lambda: True  # slow on the CPU, but right
    if job.resume and artifacts.is_whole(Path(job.resume)):
        config = universal.universal_config(config)
    arguments = TrainingArguments(
        output_dir=job.output, per_device_train_batch_size=job.micro_batch, gradient_accumulation_steps=accumulation,
        max_steps=job.steps, learning_rate=1e-2, weight_decay=0.01, lr_scheduler_type="cosine", warmup_steps=2,
        max_grad_norm=1.0, optim="adamw_torch", fp16=job.precision == "fp16", bf16=job.precision == "bf16",
        use_cpu=True, deepspeed=config, seed=0, data_seed=0, logging_steps=1, save_strategy="no", report_to="none",
        disable_tqdm=True, remove_unused_columns=False, train_sampling_strategy=job.sampling,
        include_num_input_tokens_seen="non_padding",
    )  # fmt: skip
    dtype, device = torch_dtype(job.precision), torch.device("cpu")
    if job.section["stage"] == 3:
        zero_loading.Partitioning(config, dtype, device).rest_of(model)
    else:
        zero_loading.move_to_device(model, dtype, device)
    callbacks = [SaveOnce(job.save_at), *([SeparateSteps()] if job.separate_steps else [])]
    return RecordingTrainer(model, arguments, padded, train_dataset=Rows(job.rows), callbacks=callbacks)


def train(job: Job) -> None:
    rank = distributed.join("gloo")
    if job.resume and job.converts:
        checkpoint, converted = Path(job.resume), Path(job.output, "universal")
        distributed.once_per_node(lambda: universal.to_universal(checkpoint, converted) and None)
        job = replace(job, resume=str(converted))
    trainer = trainer_of(job)
    trainer.train(resume_from_checkpoint=job.resume)
    seen = [None] * job.ranks
    torch.distributed.all_gather_object(seen, trainer.seen)
    base = trainer.deepspeed.optimizer
    inner = getattr(base, "optimizer", base)
    result = {
        "losses": {e["step"]: e["loss"] for e in trainer.state.log_history if "loss" in e},
        "learning_rates": {e["step"]: e["learning_rate"] for e in trainer.state.log_history if "loss" in e},
        "tokens": trainer.state.num_input_tokens_seen,
        "rows": batches_of(seen, GLOBAL_BATCH // (job.micro_batch * job.ranks)),
        "adam_steps": [int(state["step"]) for state in inner.state.values() if "step" in state],
        "loss_scale": getattr(base, "cur_scale", getattr(base, "loss_scale", None)),
    }
    if rank.is_main:
        Path(f"{job.output}.json").write_text(json.dumps(result))
    distributed.leave()


def batches_of(seen: list[list[list[int]]], accumulation: int) -> list[list[int]]:
    """The rows of every global batch: micro batches of one rank after the other's, `accumulation` of them a step."""
    steps = range(0, len(seen[0]), accumulation)
    return [sorted(r for rank in seen for micro in rank[at : at + accumulation] for r in micro) for at in steps]


def run(job: Job) -> bool:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for index in range(job.ranks):
        child = os.fork()
        if child == 0:
            numbers = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": job.ranks, "LOCAL_WORLD_SIZE": job.ranks}
            os.environ.update({k: str(v) for k, v in {**numbers, "MASTER_PORT": port}.items()}, MASTER_ADDR="127.0.0.1")
            code = 1
            try:
                train(job)
                code = 0
            except BaseException:  # noqa: BLE001
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
        children.append(child)
    return all([os.waitpid(child, 0)[1] == 0 for child in children])  # noqa: C419  (wait for every one)


def main() -> None:
    torch.set_num_threads(1)
    distributed.use_cpu_accelerator()
    for content in json.loads(Path(sys.argv[1]).read_text()):
        if not run(Job(**content)):
            sys.stderr.write(f"failed {content}\n")


if __name__ == "__main__":
    main()
