"""Memory and time of merging an adapter into a model of several files, beside peft's own way.

    python benchmarks/merging.py [--layers 29] [--files 8] [--rank 16]

Makes a random Llama (1.5B parameters by default) in bf16 and a LoRA adapter on every linear layer, and merges them once
per way, each in a fresh process on one thread:

    thriftune   thriftune.models.merging.merge
    compared    the same, with the losses of the base, of the adapter on it and of the merged model on 4 rows, and with
                the next tokens of the last two
    peft        from_pretrained, merge_and_unload, save_pretrained

Reported: peak resident memory of the process (VmHWM in /proc/self/status, which counts mapped file pages too), of which
the idle process with its libraries takes the first column; and seconds.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WAYS = ("thriftune", "compared", "peft")
VOCABULARY = 32000


class Rows:
    """Random rows, all of whose tokens count."""

    def __init__(self) -> None:
        import torch

        self.tokens = torch.randint(4, VOCABULARY, (4, 64), generator=torch.Generator().manual_seed(0))

    def first_tokens(self, _: float) -> "Rows":
        """The same rows."""
        return self

    def loss(self, model: Any, seen: Any = None) -> float:
        """Mean loss per token."""
        import torch

        with torch.inference_mode():
            made = model(input_ids=self.tokens, labels=self.tokens)
        for row in made.logits if seen else ():
            seen(row, torch.arange(len(row) - 1))
        return float(made.loss)

    def __len__(self) -> int:
        return len(self.tokens)


def peak_mib() -> float:
    """The most memory that this process has had, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def worker(way: str, model: Path, adapter: Path, output: Path) -> dict[str, float]:
    """Merge in this process."""
    import torch
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    from thriftune.models import merging

    idle, start = peak_mib(), time.monotonic()
    if way == "peft":
        base = LlamaForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        merged: Any = PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
        merged.save_pretrained(output)
    else:
        merging.merge(model, adapter, output, held_out=Rows() if way == "compared" else None)
    return {"idle": idle, "peak": peak_mib(), "seconds": time.monotonic() - start}


def make(directory: Path, layers: int, files: int, rank: int) -> tuple[int, int]:
    """A random base model and an adapter, in little memory; returns parameters of the model and of its largest file."""
    import torch
    from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    from thriftune.models.weight_writer import Entry, write_file, write_index

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=2048, intermediate_size=5632, num_hidden_layers=layers,
        num_attention_heads=16, num_key_value_heads=8, architectures=["LlamaForCausalLM"], dtype="bfloat16",
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    config.save_pretrained(directory / "model")
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    total, names, placed = sum(map(math.prod, shapes.values())), list(shapes), {}
    for number in range(1, files + 1):
        part: dict[str, Entry] = {}
        while names and (sum(e.size for e in part.values()) < 2 * total / files or number == files):
            name = names.pop(0)
            part[name] = Entry(torch.bfloat16, shapes[name])
        placed[f"model-{number:05}-of-{files:05}.safetensors"] = part
    for file, part in placed.items():
        write_file(directory / "model" / file, part, lambda name: (0.02 * torch.randn(shapes[name])).bfloat16())
    write_index(directory / "model", placed)
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear", task_type="CAUSAL_LM")
    adapted: Any = get_peft_model(model, lora)
    parts = get_peft_model_state_dict(adapted)
    lora.save_pretrained(str(directory / "adapter"))
    made = {name: 0.02 * torch.randn(weight.shape) for name, weight in parts.items()}
    save_file(made, directory / "adapter" / "adapter_model.safetensors", metadata={"format": "pt"})
    return total, max(sum(e.size for e in part.values()) for part in placed.values()) // 2


def add_tokenizer(directory: Path) -> None:
    """A tokenizer of single characters, which a model directory needs."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {"<s>": 0, "</s>": 1, "<pad>": 2, **{chr(code): code for code in range(3, 128)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    fast.save_pretrained(directory)


def measure(way: str, directory: Path) -> dict[str, float]:
    """One way in a process of its own."""
    command = [sys.executable, __file__, "--worker", way, "--directory", str(directory)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{way} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> None:
    """Measure every way and print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=29, help="29 layers make 1.5B parameters")
    parser.add_argument("--files", type=int, default=8)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        place = options.directory
        print(json.dumps(worker(options.worker, place / "model", place / "adapter", place / options.worker)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        parameters, largest = make(Path(scratch), options.layers, options.files, options.rank)
        add_tokenizer(Path(scratch) / "model")
        print(
            f"{parameters / 1e9:.2f}B parameters, {2 * parameters / 2**20:.0f} MiB in {options.files} files of at most "
            f"{2 * largest / 2**20:.0f} MiB; memory in MiB\n"
        )
        print("| way | idle | peak | above idle | seconds |")
        print("|---|---|---|---|---|")
        for way in WAYS:
            found = measure(way, Path(scratch))
            above = found["peak"] - found["idle"]
            print(
                f"| {way} | {found['idle']:.0f} | {found['peak']:.0f} | {above:.0f} | {found['seconds']:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
