"""Adapters that the tests of a module share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def module_adapters(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three adapters of the tiny model, with other answers each."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    made = {}
    for seed in (1, 2, 3):
        base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype="float32")
        model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
        made[f"a{seed}"] = tmp_path_factory.mktemp("adapter") / f"a{seed}"
        model.save_pretrained(made[f"a{seed}"])
    return made
