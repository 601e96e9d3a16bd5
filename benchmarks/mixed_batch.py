"""Answers per second of three adapters: in one batch, one after the other, and in three processes at the same time.

    python benchmarks/mixed_batch.py MODEL_DIRECTORY [--prompts 8] [--tokens 32] [--threads 2]

Adapters of rank 16 on every linear layer, with random weights, are made for the model; each answers the same prompts,
greedily, all tokens. Loading is not timed. Memory is the peak of a process, added up over processes. Seconds of the
CPU say what a way costs where other programs run too, and processes at the same time get more cores than one.

    mixed      one process, one batch in which each row has its own adapter (peft's adapter_names)
    in turn    one process, three adapters on one base, a batch for each
    separate   three processes, each with a base and an adapter of its own, started together
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("one", "two", "three")
QUESTION = "What is the capital of France, and which river runs through it? Question {}."


def make_adapters(model_dir: Path, folder: Path) -> None:
    """Three adapters with random weights."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    for name in NAMES:
        config = LoraConfig(r=16, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_dir), config)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                if "lora_B" in key:
                    weight.normal_(std=0.01)
        model.save_pretrained(folder / name)


def load(options: argparse.Namespace, names: list[str]) -> tuple[Any, Any]:
    """The base with some of the adapters, and its tokenizer. No answer ends before its longest length."""
    import torch

    from thriftune import hardware
    from thriftune.models.loading import Placement, attach_adapters, load_model
    from thriftune.models.tokenizer import load_tokenizer

    torch.set_num_threads(options.threads)
    device = hardware.detect_device()
    base = load_model(options.model, Placement(device, "bf16" if device.is_gpu else "fp32"))
    model = attach_adapters(base, {name: options.folder / name for name in names}).eval()
    model.generation_config.min_new_tokens = options.tokens
    return model, load_tokenizer(options.model, padding_side="left")


def answer(options: argparse.Namespace) -> dict[str, float]:
    """What one process does: how long it took, and its peak of memory."""
    from thriftune.data.questions import encode_prompt, usual_style
    from thriftune.models.answering import Sampling, complete

    names = options.child.split(",")
    model, tokenizer = load(options, names)
    asked = [encode_prompt(QUESTION.format(n), tokenizer, usual_style(tokenizer)) for n in range(options.prompts)]
    sampling = Sampling(options.tokens)
    list(complete(model, tokenizer, asked[:1], Sampling(2), 1))  # the first pass makes what later ones find
    (options.folder / f"ready-{options.child}-{os.getpid()}").touch()
    while len(list(options.folder.glob("ready-*"))) < options.processes:
        time.sleep(0.01)
    began, worked = time.time(), time.process_time()
    if options.mixed:
        rows = [ids for ids in asked for _ in names]
        list(complete(model, tokenizer, rows, sampling, len(rows), names * len(asked)))
    else:
        for name in names:
            model.set_adapter(name)
            list(complete(model, tokenizer, asked, sampling, len(asked)))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"began": began, "ended": time.time(), "cpu": time.process_time() - worked, "gib": peak}


def measured(options: argparse.Namespace, groups: list[str], *extra: str) -> tuple[float, float, float]:
    """Seconds, seconds of the CPU, and GiB of processes that run together, one for each group of adapters."""
    for file in options.folder.glob("ready-*"):
        file.unlink()
    command = [sys.executable, __file__, str(options.model), "--prompts", str(options.prompts)]
    command += ["--tokens", str(options.tokens), "--threads", str(options.threads), "--folder", str(options.folder)]
    command += ["--processes", str(len(groups)), *extra]
    started = [
        subprocess.Popen([*command, "--child", group], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for group in groups
    ]
    found = [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]
    seconds = max(one["ended"] for one in found) - min(one["began"] for one in found)
    return seconds, sum(one["cpu"] for one in found), sum(one["gib"] for one in found)


def main() -> None:
    """Measure the three ways, and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--mixed", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(answer(options)))
        return
    with tempfile.TemporaryDirectory() as folder:
        options.folder = Path(folder)
        make_adapters(options.model, options.folder)
        every, tokens = ",".join(NAMES), len(NAMES) * options.prompts * options.tokens
        ways = {"mixed": ([every], ["--mixed"]), "in turn": ([every], []), "separate": (list(NAMES), [])}
        first = 0.0
        for way, (groups, extra) in ways.items():
            seconds, cpu, gib = measured(options, groups, *extra)
            first = first or cpu
            print(
                f"{way:10} {tokens / seconds:6.1f} tokens/s  {tokens / cpu:6.1f} per second of the CPU "
                f"({cpu / first:.2f} times the first)  {gib:5.2f} GiB",
                flush=True,
            )


if __name__ == "__main__":
    main()
