"""The effect of rounding to 16 bits on the held-out loss of a short full fine-tuning, by type and rounding mode.

    python benchmarks/saved_weights.py MODEL ROWS.jsonl [--steps 6] [--learning_rate 2e-5] [--max_length 256]

MODEL is a directory or a .gguf file. Trains every weight in fp32 on the CPU with torch's AdamW, two packed rows a step
(a stand-in for the master weights of a mixed-precision training), then measures the held-out rows in fp32, with the
weights as they were, as trained, and rounded. "kept" is the share of the improvement that is left, "changed" the share
of the weights that differ from the base model.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

ROWS_A_STEP = 2


def fetched(options: argparse.Namespace, folder: Path) -> tuple[Path, Path]:
    """The fetched model in 16 bits, and the dataset prepared for it."""
    from thriftune.config import DataConfig
    from thriftune.data.prepare import prepare
    from thriftune.models import fetching as models

    models.fetch(options.model, models.version(options.model), folder / "model")
    data = DataConfig(source=str(options.rows), format="chat", max_length=options.max_length, packing=True,
                      validation_share=0.1)  # fmt: skip
    prepare(data, seed=0, tokenizer_dir=folder / "model", destination=folder / "dataset")
    return folder / "model", folder / "dataset"


def train(model: Any, rows: Any, tokenizer: Any, options: argparse.Namespace) -> None:
    """Train every weight for a few steps, with a warmup over the first two."""
    import torch

    from thriftune.training.collation import PackedCollator

    collate = PackedCollator(tokenizer, 8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=0.0)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(1.0, (step + 1) / 3)
        loss = model(**collate([rows[i] for i in order[step * ROWS_A_STEP : (step + 1) * ROWS_A_STEP]])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step + 1}: loss {loss.item():.4f}", flush=True)


def main() -> None:
    """Train, round, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--learning_rate", type=float, default=2e-5)
    parser.add_argument("--max_length", type=int, default=256)
    options = parser.parse_args()

    import torch
    from transformers import AutoModelForCausalLM

    from thriftune.data.prepared import TRAIN, load_split
    from thriftune.models.rounding import rounded
    from thriftune.models.tokenizer import load_tokenizer
    from thriftune.training.held_out import held_out_loss, held_out_rows

    with tempfile.TemporaryDirectory() as folder:
        model_dir, dataset = fetched(options, Path(folder))
        tokenizer, held_out = load_tokenizer(model_dir), held_out_rows(dataset, 500)
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        model.config.use_cache = False
        base = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        train(model, load_split(dataset, TRAIN), tokenizer, options)
        trained = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        model.eval()

        def measure(weights: dict[str, Any]) -> tuple[float, float]:
            for name, parameter in model.named_parameters():
                parameter.data = weights[name]
            changed = sum(int((weights[name] != base[name]).sum()) for name in base)
            return held_out_loss(model, tokenizer, held_out, 8)[0], changed / sum(w.numel() for w in base.values())

        before, after = measure(base)[0], measure(trained)[0]
        print(f"\n{len(held_out)} held-out rows: {before:.4f} before training, {after:.4f} after it, in fp32\n")
        print(f"| {'type':4} | {'rounding':10} | loss   | kept  | changed |")
        print("|---|---|---|---|---|")
        for dtype, label in ((torch.bfloat16, "bf16"), (torch.float16, "fp16")):
            for way in ("nearest", "stochastic"):
                loss, changed = measure({n: rounded(w, dtype, way, n, seed=0).float() for n, w in trained.items()})
                kept = (before - loss) / (before - after)
                print(f"| {label} | {way:10} | {loss:.4f} | {kept:4.0%} | {changed:.1%} |", flush=True)


if __name__ == "__main__":
    main()
