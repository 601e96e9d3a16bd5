"""Memory per rank while a model is loaded for ZeRO-3 and does its first step: three ways of loading compared.

    python benchmarks/zero3_loading.py [--ranks 2 4] [--layers 14]

Makes a random Llama (495M parameters by default) in bf16 and trains one step of it with DeepSpeed ZeRO-3 on the CPU,
once per way of loading and number of ranks, each in fresh processes:

    zero.Init   from_pretrained under transformers' zero.Init (TrainingArguments made before the model)
    mapped      from_pretrained before TrainingArguments; DeepSpeed partitions the memory-mapped weights
    streamed    what thriftune does (thriftune/strategies/zero/loading.py)

Reported per rank, as the highest of all ranks and above the idle process: peak anonymous memory (Anonymous in
/proc/self/smaps_rollup: private, not in the page cache) and peak proportional memory (Pss: that, plus the rank's share
of mapped file pages). The goal is 1.3 x what must be there plus the largest parameter: 2 bytes per parameter over the
ranks after loading; 16 bytes (bf16 weights and gradients, fp32 weights and two moments) over the ranks after a step.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

MODES = ("zero.Init", "mapped", "streamed")
MIB = 2**20
STATE_BYTES = 16  # per parameter: bf16 weight and gradient, fp32 weight, two fp32 moments


class RollupPeak:
    """Peaks of this process's Anonymous and Pss, in MiB above what they were at the start."""

    def __init__(self) -> None:
        self.base = self.read()
        self.peak = dict(self.base)
        threading.Thread(target=self.sample, daemon=True).start()

    @staticmethod
    def read() -> dict[str, float]:
        """The kernel's present values, in MiB."""
        lines = (line.split() for line in Path("/proc/self/smaps_rollup").read_text().splitlines())
        return {p[0][:-1]: int(p[1]) / 1024 for p in lines if p[0] in ("Anonymous:", "Pss:")}

    def sample(self) -> None:
        """Update the peaks forever."""
        while True:
            for key, value in self.read().items():
                self.peak[key] = max(self.peak[key], value)
            time.sleep(0.02)

    def above_idle(self) -> dict[str, float]:
        """The peaks until now, in MiB above the start."""
        time.sleep(0.05)
        return {key: value - self.base[key] for key, value in self.peak.items()}


def worker(mode: str, model_dir: Path, output: Path) -> None:
    """Load and train one step in one rank, and write the peaks."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    import deepspeed_configs
    from thriftune import distributed
    from thriftune.batching import split_batch
    from thriftune.strategies.mapped import map_model
    from thriftune.strategies.zero import configuration as zero
    from thriftune.strategies.zero import loading as zero_loading

    distributed.use_cpu_accelerator()
    import deepspeed  # here, so that it counts as part of the idle process

    rank = distributed.join("gloo")
    deepspeed.init_distributed()
    width = json.loads((model_dir / "config.json").read_text())["hidden_size"]
    batch = split_batch(rank.world_size, 1, rank.world_size)
    optimization = zero.Optimization(1e-4, 0.0, 1.0)
    config = zero.complete(deepspeed_configs.load("zero3"), batch, "bf16", optimization, width, is_gpu=False)
    peaks = RollupPeak()

    def arguments() -> TrainingArguments:
        return TrainingArguments(
            output_dir=str(output.parent), deepspeed=config, bf16=True, use_cpu=True, max_steps=1, learning_rate=1e-4,
            per_device_train_batch_size=1, activation_checkpointing=True, save_strategy="no", report_to="none",
            disable_tqdm=True,
        )  # fmt: skip

    if mode == "zero.Init":
        args = arguments()
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.bfloat16)
    else:
        model = map_model(model_dir)
        args = arguments()
        if mode == "streamed":
            zero_loading.Partitioning(config, torch.bfloat16, torch.device("cpu")).rest_of(model)
    loaded = peaks.above_idle()
    rows = Dataset.from_list([{"input_ids": list(range(64)), "labels": list(range(64))}] * rank.world_size)
    trainer = Trainer(model=model, args=args, train_dataset=rows)
    trainer.train()
    output.with_name(f"rank{rank.index}.json").write_text(json.dumps({"loaded": loaded, "stepped": peaks.above_idle()}))
    distributed.leave()


def make_model(directory: Path, layers: int) -> tuple[int, int]:
    """A random Llama in bf16; returns its number of parameters and that of its largest one."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000, hidden_size=1536, intermediate_size=4096, num_hidden_layers=layers, num_attention_heads=12,
        num_key_value_heads=12,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(directory)
    sizes = [p.numel() for p in model.parameters()]
    return sum(sizes), max(sizes)


def measure(mode: str, ranks: int, model_dir: Path) -> dict[str, dict[str, float]]:
    """The highest peaks of all ranks of one run, in MiB."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(ranks), __file__,
            "--worker", mode, "--model", str(model_dir), "--output", f"{scratch}/out",
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"{mode} on {ranks} ranks failed:\n{done.stderr[-4000:]}")
        results = [json.loads(file.read_text()) for file in Path(scratch).glob("rank*.json")]
    assert len(results) == ranks
    return {
        phase: {key: max(r[phase][key] for r in results) for key in ("Anonymous", "Pss")}
        for phase in ("loaded", "stepped")
    }


def main() -> None:
    """Measure every combination and print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--layers", type=int, default=14, help="14 layers make 495M parameters")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.model, options.output)
        return
    with tempfile.TemporaryDirectory() as scratch:
        parameters, largest = make_model(Path(scratch), options.layers)
        print(f"{parameters / 1e6:.0f}M parameters, {2 * parameters / MIB:.0f} MiB in bf16; peaks in MiB per rank\n")
        print("| ranks | loading | loaded: anonymous | proportional | goal | 1 step: anonymous | proportional | goal |")
        print("|---|---|---|---|---|---|---|---|")
        for ranks in options.ranks:
            goals = [(1.3 * size * parameters / ranks + 2 * largest) / MIB for size in (2, STATE_BYTES)]
            for mode in MODES:
                peaks = measure(mode, ranks, Path(scratch))
                cells = [
                    *(f"{peaks['loaded'][key]:.0f}" for key in ("Anonymous", "Pss")), f"{goals[0]:.0f}",
                    *(f"{peaks['stepped'][key]:.0f}" for key in ("Anonymous", "Pss")), f"{goals[1]:.0f}",
                ]  # fmt: skip
                print(f"| {ranks} | {mode} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
