"""Measure the peak memory of every rank of real fine-tuning runs, to compare the planner's predictions with it.

    python benchmarks/memory_runs.py RESULTS.jsonl [--only zero3] [--list]

Trains random Llamas of 42M, 135M and 381M parameters, and a Falcon, a GPT-2 and a Mixtral, on the CPU through
`thriftune.training.fit.fit`, two optimizer steps of two micro batches each, every row exactly as long as the run
allows. Runs under ZeRO, FSDP and DDP have two gloo ranks, the others one process; every process is a fresh one. Each
result is appended to RESULTS.jsonl as soon as it is there, and runs that the file already holds are skipped: delete a
line to repeat it. All of them take about an hour on two cores and at most 20 GB. Linux only: it reads /proc.

What is measured of each rank, from /proc/self/status, until the last step (saving is not part of it):

    start    memory right before the training function is called, with torch, transformers and (ZeRO) deepspeed imported
    peak     highest memory after that
    phases   the same for every phase: load, prepare (Trainer and engine), forward, backward, optimizer, and validate:
             one row, before the first step and after the last one

Resident memory is exact, because the kernel keeps its high-water mark; the anonymous part of it (private memory: no
pages of files or of shared memory) is sampled every 20 ms.
"""

import argparse
import functools
import json
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from thriftune.config import RunConfig
    from thriftune.planning.ledger import Record
    from thriftune.training_plan import TrainingPlan

ModelName = Literal["42M", "135M", "381M", "falcon", "gpt2", "mixtral"]
STEPS, ACCUMULATION, ZERO_RANKS = 2, 2, 2
MIB = 2**20
_SAMPLING_SECONDS = 0.02
_TIMEOUT_SECONDS = 1800
_CLOSE_RANKS_SECONDS = 30  # a rank whose peer has failed waits for it for hours
_NO_LIMIT_GIB = 1e6
_FIRST_TEXT_TOKEN = 4  # tokens before it are special
_STATUS_KEYS = ("VmRSS", "VmHWM", "RssAnon")

# One with separate embeddings, one that is nearly all embeddings (SmolLM-135M's shape), one that is nearly all layers.
# What has no model_type is a Llama; the others have shapes that predictions were once too low for.
MODELS: dict[ModelName, dict[str, Any]] = {
    "42M": {
        "vocab_size": 16000, "hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 8, "tie_word_embeddings": False,
    },
    "135M": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
    },
    "381M": {
        "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
    "falcon": {  # Falcon-7B's kind of layer: attention and feed-forward side by side, one head of keys
        "model_type": "falcon", "vocab_size": 65024, "hidden_size": 768, "num_hidden_layers": 12,
        "num_attention_heads": 12, "multi_query": True, "parallel_attn": True, "alibi": False, "bias": False,
    },
    "gpt2": {"model_type": "gpt2", "vocab_size": 50257, "n_embd": 768, "n_layer": 12, "n_head": 12},
    "mixtral": {
        "model_type": "mixtral", "vocab_size": 32000, "hidden_size": 512, "intermediate_size": 1024,
        "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "num_local_experts": 8,
        "num_experts_per_tok": 2, "tie_word_embeddings": False,
    },
}  # fmt: skip

# As in a run file: the name of a DeepSpeed configuration, or the configuration itself.
ZERO: dict[str, str | dict[str, Any]] = {
    "zero0": {"zero_optimization": {"stage": 0}},
    "zero1": "zero1",
    "zero2": "zero2",
    "zero3": "zero3",
    "zero2_offload_optimizer": "zero2_offload",
    "zero3_offload_optimizer": {
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "offload_optimizer": {"device": "cpu", "pin_memory": True},
        }
    },
    "zero3_offload_all": "zero3_offload",
}
ADAPTERS = ("lora", "qlora")
# What trains in the runs under a named strategy; what is not here is full fine-tuning.
SECTIONS: dict[str, dict[str, Any]] = {
    "partial": {"partial": {"train": [{"last_layers": 2}, "norms", "head"]}},
    "prefix": {"prefix": {"virtual_tokens": 30}},
    "llama_adapter": {"llama_adapter": {"tokens": 10}},
}


@dataclass(frozen=True)
class Run:
    """One run to measure.

    Attributes:
        method: Key of `ZERO` or `ADAPTERS`; a method of a run file where there is a strategy.
        model: Key of `MODELS`.
        length: Tokens of every row.
        micro_batch: Rows per rank and forward pass.
        checkpointing: Whether activations are recomputed.
        precision: fp32 or bf16; fp16 on a GPU.
        optimizer: As in `TrainingConfig`.
        lora_rank: Rank of the adapters; 0 without any.
        strategy: A strategy, or a file of ZeRO; empty for full fine-tuning under ZeRO, and adapters in one process.
        steps: Optimizer steps.
    """

    method: str
    model: ModelName
    length: int
    micro_batch: int
    checkpointing: bool
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    optimizer: str = "adamw"
    lora_rank: int = 0
    strategy: str = ""
    steps: int = STEPS

    @property
    def name(self) -> str:
        """All fields in one line, which identifies a result."""
        parts = [
            self.method,
            *([f"under {self.strategy}"] if self.strategy else []),
            self.model,
            f"{self.micro_batch}x{self.length}",
            self.precision,
        ]
        parts += ["checkpointing"] * self.checkpointing
        parts += [f"rank {self.lora_rank}", self.optimizer] if self.lora_rank else []
        return " ".join(parts)

    @property
    def ranks(self) -> int:
        """Number of processes that train."""
        return ZERO_RANKS if self.method in ZERO or self.strategy not in ("", "single") else 1


def _grid() -> Iterator[Run]:
    """Every method with each model and length, with and without checkpointing; then special cases."""
    for method in ZERO:
        yield Run(method, "42M", 256, 4, checkpointing=False)
        yield Run(method, "42M", 1024, 1, checkpointing=True, precision="fp32")
        yield Run(method, "135M", 256, 2, checkpointing=True)
        yield Run(method, "135M", 1024, 1, checkpointing=False)
        yield Run(method, "381M", 256, 1, checkpointing=True)
    for method in ("zero1", "zero2", "zero3", "zero3_offload_all"):
        yield Run(method, "381M", 256, 2, checkpointing=False)
    yield Run("zero0", "381M", 256, 1, checkpointing=True, precision="fp32")
    yield Run("zero3", "381M", 256, 1, checkpointing=True, precision="fp32")
    yield Run("zero3", "381M", 1024, 1, checkpointing=True)
    yield Run("zero2", "42M", 1024, 4, checkpointing=False)
    for method, optimizer in (("lora", "adamw"), ("qlora", "paged_adamw_8bit")):
        yield Run(method, "42M", 256, 4, checkpointing=False, optimizer=optimizer, lora_rank=64)
        yield Run(method, "42M", 1024, 1, checkpointing=True, precision="fp32", optimizer="adamw", lora_rank=16)
        yield Run(method, "135M", 256, 2, checkpointing=True, optimizer="adamw", lora_rank=16)
        yield Run(method, "135M", 1024, 1, checkpointing=False, optimizer=optimizer, lora_rank=16)
        yield Run(method, "381M", 256, 1, checkpointing=True, optimizer=optimizer, lora_rank=64)
        yield Run(method, "381M", 256, 2, checkpointing=False, optimizer="adamw", lora_rank=16)
    for method in ADAPTERS:
        yield Run(method, "381M", 1024, 1, checkpointing=True, optimizer="paged_adamw_8bit", lora_rank=64)
    yield from _pairs()
    yield from _unusual()


def _unusual() -> Iterator[Run]:
    """Models other than Llama that predictions were once 7 to 19 % too low for: in the two shapes of the pairs."""
    methods: dict[ModelName, tuple[str, ...]] = {"falcon": ("lora", "zero3"), "gpt2": ("qlora",), "mixtral": ("zero3",)}
    for model, names in methods.items():
        for method in names:
            rank = 16 if method in ADAPTERS else 0
            large = Run(method, model, 256, 2, checkpointing=True, precision="fp32", lora_rank=rank)
            yield large
            yield replace(large, length=64, checkpointing=False, precision="bf16")


def _pairs() -> Iterator[Run]:
    """The pairs of a method and a strategy beside those above: each large in fp32, and small in bf16.

    Few tokens in bf16, because a CPU without instructions for it takes many times as long as in fp32.
    """
    strategies = {
        "full": ("fsdp", "ddp", "single"),
        "partial": ("fsdp", "zero3", "ddp", "single"),
        "lora": ("fsdp", "zero3", "ddp"),
        "qlora": ("fsdp", "zero3", "ddp"),
        "prefix": ("ddp", "single"),
        "llama_adapter": ("ddp", "single"),
    }
    for method, names in strategies.items():
        rank = 16 if method in ADAPTERS else 0
        for name in names:
            large = Run(method, "381M", 256, 1, checkpointing=True, precision="fp32", lora_rank=rank, strategy=name)
            yield large
            yield replace(large, model="135M", length=64, checkpointing=False, precision="bf16")


RUNS = tuple(_grid())


@dataclass
class Phase:
    """One phase of a rank, and the memory it used.

    Attributes:
        name: load, prepare, forward, backward, optimizer, validate, or save.
        second: When it began, in seconds after the start.
        rss: Resident memory at its beginning, in bytes.
        peak_rss: Highest resident memory, in bytes; exact.
        peak_anonymous: Highest anonymous memory, in bytes; sampled.
    """

    name: str
    second: float
    rss: int
    peak_rss: int
    peak_anonymous: int


@dataclass(frozen=True)
class RankMemory:
    """The memory that one rank used.

    Attributes:
        start_rss: Resident memory before training, with the libraries imported, in bytes.
        start_anonymous: Anonymous part of it, in bytes.
        peak_rss: Highest resident memory from then to the last step, in bytes.
        peak_anonymous: Highest anonymous memory, in bytes.
        peak_phase: Phase that held the highest resident memory first.
        phases: All phases in order, the one after the last step included.
    """

    start_rss: int
    start_anonymous: int
    peak_rss: int
    peak_anonymous: int
    peak_phase: str
    phases: list[Phase]


@dataclass(frozen=True)
class Measurement:
    """One run and the memory it used.

    Attributes:
        run: The run.
        config: Its complete run file, as `RunConfig` dumps it.
        model: The model's config.json.
        parameters: Number of parameters of the model; tied ones count once.
        training: The `TrainingResult`.
        ranks: Memory of each rank.
        seconds: Wall-clock time of the processes.
        threads: Threads that each rank computed with.
        versions: Of the libraries.
        commit: Commit of thriftune.
    """

    run: Run
    config: dict[str, Any]
    model: dict[str, Any]
    parameters: int
    training: dict[str, Any]
    ranks: list[RankMemory]
    seconds: float
    threads: int
    versions: dict[str, str]
    commit: str | None

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Measurement":
        """A measurement from a line of a results file."""
        ranks = [RankMemory(**{**rank, "phases": [Phase(**p) for p in rank["phases"]]}) for rank in content["ranks"]]
        return cls(**{**content, "run": Run(**content["run"]), "ranks": ranks})


@dataclass
class PhaseWatch:
    """Memory of this process, phase by phase.

    Attributes:
        phases: The phases until now; the last one is going on.
    """

    phases: list[Phase] = field(default_factory=list)
    _began: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.enter("start")
        threading.Thread(target=self._sample, daemon=True).start()

    def enter(self, name: str) -> None:
        """End the current phase and start another, unless it is the same."""
        with self._lock:
            if self.phases and self.phases[-1].name == name:
                return
            memory = _status()
            self._record(memory)
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM, the high-water mark, to what is there now
            second = round(time.monotonic() - self._began, 2)
            self.phases.append(Phase(name, second, memory["VmRSS"], memory["VmRSS"], memory["RssAnon"]))

    def result(self) -> RankMemory:
        """The measurements between the phase `start` and the phase `save`."""
        with self._lock:
            self._record(_status())
            start, *phases = self.phases
        trained = [phase for phase in phases if phase.name != "save"]
        highest = max(trained, key=lambda phase: phase.peak_rss)
        return RankMemory(
            start_rss=start.rss,
            start_anonymous=start.peak_anonymous,
            peak_rss=highest.peak_rss,
            peak_anonymous=max(phase.peak_anonymous for phase in trained),
            peak_phase=highest.name,
            phases=phases,
        )

    def _sample(self) -> None:
        while True:
            time.sleep(_SAMPLING_SECONDS)
            with self._lock:
                self._record(_status())

    def _record(self, memory: dict[str, int]) -> None:
        if self.phases:
            phase = self.phases[-1]
            phase.peak_rss = max(phase.peak_rss, memory["VmHWM"])
            phase.peak_anonymous = max(phase.peak_anonymous, memory["RssAnon"])


def _status() -> dict[str, int]:
    """The kernel's present numbers for this process, in bytes."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0][:-1]: int(words[1]) * 1024 for words in lines if words[0][:-1] in _STATUS_KEYS}


def make_model(name: ModelName, directory: Path) -> int:
    """Write a random model in bf16 with a tokenizer of four tokens.

    Args:
        name: Which one.
        directory: Where to; left as it is if it holds the model already.

    Returns:
        Its number of parameters.
    """
    import torch
    from tokenizers import Tokenizer, models
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    shape = {"model_type": "llama", "max_position_embeddings": 2048, "dtype": "bfloat16", **MODELS[name]}
    config = AutoConfig.for_model(**shape, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    if not directory.is_dir():
        special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
        words = models.WordLevel({token: i for i, token in enumerate(special.values())}, unk_token="<unk>")
        AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(directory)
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), **special).save_pretrained(directory)
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())


def make_dataset(run: Run, directory: Path) -> None:
    """Write the rows of a run as a prepared dataset: random tokens, every row exactly as long as the run allows."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    from thriftune import artifacts
    from thriftune.data.prepared import TRAIN, VALIDATION
    from thriftune.data.tokenization import IGNORED

    vocabulary = MODELS[run.model]["vocab_size"]
    count = run.steps * ACCUMULATION * run.micro_batch * run.ranks
    rows = np.random.default_rng(0).integers(_FIRST_TEXT_TOKEN, vocabulary, (count, run.length)).tolist()
    labels = [[IGNORED, *row[1:]] for row in rows]
    lists = pa.list_(pa.int32())
    columns = [pa.array(rows, lists), pa.array(labels, lists), pa.array([run.length] * count, pa.int32())]
    table = pa.table(columns, names=["input_ids", "labels", "length"])
    with artifacts.writing(directory, "preparing rows") as place:
        pq.write_table(table, place / TRAIN)
        pq.write_table(table.slice(0, 1), place / VALIDATION)
        artifacts.write_manifest(place, "dataset", {"fingerprint": run.name})


def run_file(run: Run) -> dict[str, Any]:
    """The content of a run's YAML file."""
    return {
        **_method_of(run),
        "name": "memory-run",
        "model": {"source": "random/llama"},
        "data": {"source": "rows.jsonl", "format": "text", "max_length": run.length},
        "hardware": {"device": "CPU", "devices_per_node": run.ranks},
        "training": {
            "global_batch": run.micro_batch * ACCUMULATION * run.ranks,
            "micro_batch": run.micro_batch,
            "max_steps": run.steps,
            "precision": run.precision,
            "optimizer": run.optimizer,
            "gradient_checkpointing": run.checkpointing,
            "save_dtype": "fp32",  # so that the effect of rounding is not measured
        },
        "evaluation": {"every_steps": run.steps, "prompts": ["any"], "max_new_tokens": 1},
    }


def _method_of(run: Run) -> dict[str, Any]:
    """What trains, and the strategy."""
    if run.method in ZERO:
        return {"method": "full", "zero": {"config": ZERO[run.method]}}
    of_lora = {"lora": {"rank": run.lora_rank, "merge": False}} if run.method in ADAPTERS else {}
    content = {"method": run.method, **of_lora, **SECTIONS.get(run.method, {})}
    if run.strategy in ZERO:
        return {**content, "strategy": "zero", "zero": {"config": ZERO[run.strategy]}}
    return {**content, "strategy": run.strategy} if run.strategy else content


def measure(run: Run, work: Path) -> Measurement:
    """Train once in fresh processes and return what was measured.

    Args:
        run: What to train.
        work: Folder for the models, which stay there for the next run, and for what the run writes, which does not.

    Returns:
        The measurement.

    Raises:
        RuntimeError: A process failed or took too long; the message ends with what it logged last.
    """
    from thriftune import artifacts
    from thriftune.config import RunConfig

    model_dir = work / run.model
    parameters = make_model(run.model, model_dir)
    config = RunConfig.model_validate(run_file(run))
    threads = max(1, (os.cpu_count() or 1) // run.ranks)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        scratch = Path(folder)
        make_dataset(run, scratch / "dataset")
        (scratch / "run.json").write_text(config.model_dump_json())
        (scratch / "plan.pickle").write_bytes(pickle.dumps(plan_of(config, model_dir)))
        started = time.monotonic()
        _run_ranks(run.ranks, threads, [str(model_dir), str(scratch)], scratch)
        seconds = time.monotonic() - started
        reports = [json.loads((scratch / f"rank{rank}.json").read_text()) for rank in range(run.ranks)]
    return Measurement.from_dict(
        {
            "run": asdict(run),
            "config": config.model_dump(mode="json"),
            "model": json.loads((model_dir / "config.json").read_text()),
            "parameters": parameters,
            "training": reports[0]["training"],
            "ranks": [report["memory"] for report in reports],
            "seconds": round(seconds, 1),
            "threads": threads,
            "versions": artifacts.versions(),
            "commit": artifacts.git_commit(),
        }
    )


def plan_of(config: "RunConfig", model_dir: Path, records: Sequence["Record"] = ()) -> "TrainingPlan":
    """The plan of a run on this machine, as if its memory were unlimited: here memory is measured, not predicted.

    Args:
        config: The run.
        model_dir: Its model.
        records: Of earlier runs, which correct the time of a step.
    """
    from thriftune.config import ModelConfig
    from thriftune.models import architecture
    from thriftune.planning import catalogue, offers, planner

    shape = architecture.of(ModelConfig(source=str(model_dir)))
    here = replace(offers.this_machine(), host_gib=_NO_LIMIT_GIB)
    return planner.plan(config, catalogue.load(), architecture=shape, here=here, records=records)


def _run_ranks(count: int, threads: int, arguments: list[str], logs: Path) -> None:
    """Run this file as a worker in `count` processes, with the environment that torchrun gives them; one without it.

    With that environment a process alone would train as one of several, with torch's DistributedDataParallel.
    """
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    shared = {
        "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "OMP_NUM_THREADS": threads,
    }  # fmt: skip
    processes = []
    for rank in range(count):
        own = {**shared, "RANK": rank, "LOCAL_RANK": rank} if count > 1 else {"OMP_NUM_THREADS": threads}
        with (logs / f"rank{rank}.log").open("w") as log:
            command = [sys.executable, str(Path(__file__).resolve()), "--worker", *arguments]
            environment = {**os.environ, **{key: str(value) for key, value in own.items()}}
            processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment))
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if any(process.poll() for process in processes):
                deadline = min(deadline, time.monotonic() + _CLOSE_RANKS_SECONDS)
            time.sleep(0.2)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    failed = [rank for rank, process in enumerate(processes) if process.returncode]
    if failed:
        tail = (logs / f"rank{failed[0]}.log").read_text()[-4000:]
        raise RuntimeError(f"Ranks {failed} of {count} failed:\n{tail}")


def _work_as_rank(model_dir: Path, scratch: Path) -> None:
    """Train in one rank, and write what was measured."""
    import logging

    from thriftune import distributed
    from thriftune.config import RunConfig
    from thriftune.training.fit import Inputs, fit

    logging.basicConfig(level=logging.INFO)
    config = RunConfig.model_validate_json((scratch / "run.json").read_text())
    plan = pickle.loads((scratch / "plan.pickle").read_bytes())
    is_zero = plan.strategy == "zero"
    if is_zero:
        distributed.use_cpu_accelerator()
    watch = _watch_training(is_zero=is_zero)
    result = fit(Inputs(config, plan, model_dir, scratch / "dataset"), scratch / "trained")
    rank = distributed.current_rank()
    report = {"training": asdict(result), "memory": asdict(watch.result())}
    (scratch / f"rank{rank.index}.json").write_text(json.dumps(report))
    distributed.leave()


def _watch_training(*, is_zero: bool) -> PhaseWatch:
    """Import what training imports, and start to watch; the Trainer and the libraries below it mark the phases."""
    from accelerate import Accelerator
    from transformers import AutoModelForCausalLM, TrainerCallback, trainer  # noqa: F401

    if is_zero:
        from deepspeed import DeepSpeedEngine

    watch = PhaseWatch()

    class Marks(TrainerCallback):
        """Tells the watch which phase the Trainer is in."""

        def on_init_end(self, *_: Any, **__: Any) -> None:
            watch.enter("prepare")

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            watch.enter("validate")

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            watch.enter("forward")

        def on_substep_end(self, *_: Any, **__: Any) -> None:
            watch.enter("forward")

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            watch.enter("optimizer")

        def on_step_end(self, *_: Any, **__: Any) -> None:
            watch.enter("validate")

        def on_train_end(self, *_: Any, **__: Any) -> None:
            watch.enter("save")

    trainer.DEFAULT_CALLBACKS.append(Marks)
    _mark_calls(Accelerator, "backward", lambda: watch.enter("backward"))
    if is_zero:  # its optimizer step happens inside accelerate's backward
        _mark_calls(DeepSpeedEngine, "step", lambda: watch.enter("optimizer"))
    watch.enter("load")
    return watch


def _mark_calls(owner: type, method: str, mark: Callable[[], None]) -> None:
    """Make every call of a method start a phase first."""
    original = getattr(owner, method)

    @functools.wraps(original)
    def marked(*args: Any, **kwargs: Any) -> Any:
        mark()
        return original(*args, **kwargs)

    setattr(owner, method, marked)


def load_measurements(file: Path) -> list[Measurement]:
    """The results in a file that `main` wrote; none if there is no file yet."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [Measurement.from_dict(json.loads(line)) for line in lines]


def table_row(measured: Measurement) -> str:
    """One line of Markdown about a measurement, in MiB of the rank with the highest peak."""
    rank = max(measured.ranks, key=lambda r: r.peak_rss)
    cells = [f"{value / MIB:.0f}" for value in (rank.start_rss, rank.peak_rss, rank.peak_anonymous)]
    return f"| {measured.run.name} | {' | '.join(cells)} | {rank.peak_phase} | {measured.seconds:.0f} |"


def main() -> None:
    """Measure the runs that are not in the file yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", help="file of results, a JSON object per line")
    parser.add_argument("--only", default="", help="measure only runs with this text in their name")
    parser.add_argument("--list", action="store_true", help="name the runs and end")
    parser.add_argument("--worker", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work_as_rank(*options.worker)
        return
    runs = [run for run in RUNS if options.only in run.name]
    if options.list:
        print("\n".join(run.name for run in runs))
        return
    if options.results is None:
        parser.error("name the file of results")
    known = load_measurements(options.results)
    done = {measured.run for measured in known}
    failed = []
    print("| run | start RSS, MiB | peak RSS | peak anonymous | peak in | seconds |\n|---|---|---|---|---|---|")
    for measured in known:
        print(table_row(measured))
    with tempfile.TemporaryDirectory() as work:
        for run in runs:
            if run in done:
                continue
            try:
                measured = measure(run, Path(work))
            except RuntimeError as error:
                failed.append(run.name)
                print(f"{run.name}: {error}", file=sys.stderr, flush=True)
                continue
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(measured)) + "\n")
            print(table_row(measured), flush=True)
    if failed:
        sys.exit(f"{len(failed)} runs failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
