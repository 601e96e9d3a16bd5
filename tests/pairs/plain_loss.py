"""The held-out loss of what a training made, by transformers and peft alone: nothing of thriftune is imported.

Usage: python tests/pairs/plain_loss.py BASE RESULT DATASET KIND, where KIND is model, adapter or adapter4 (on a base in
4 bits). Prints the mean loss per token.
"""

import sys
from pathlib import Path

import datasets
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

IGNORED = -100


def loaded(base: str, result: str, kind: str) -> torch.nn.Module:
    """The model, as its files say."""
    if kind == "model":
        return AutoModelForCausalLM.from_pretrained(result, dtype=torch.float32)
    quantized = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="float32"
    )
    options = {"quantization_config": quantized} if kind == "adapter4" else {}
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **options), result)


def main() -> None:
    base, result, dataset, kind = sys.argv[1:]
    model = loaded(base, result, kind).eval()
    total, count = 0.0, 0
    for file in sorted(Path(dataset).rglob("*validation*.parquet")):
        for row in datasets.Dataset.from_parquet(str(file)):
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0, -len(ids[0]) : -1]
            total += float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"))
            count += int((labels != IGNORED).sum())
    assert "thriftune" not in sys.modules
    sys.stdout.write(f"{total / count}\n")


if __name__ == "__main__":
    main()
