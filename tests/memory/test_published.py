"""The estimate against memory figures that others measured and published, each with its source.

Peaks of LoRA and QLoRA are `torch.cuda.max_memory_allocated` in GB of 1e9 bytes, from Lightning-AI/litgpt:
config_hub/finetune/README.md (A10G, sequence 512) and tutorials/resource-tables.md (A100 40 GB, longest row 1304);
settings from the YAML files beside them. No checkpointing on one GPU, bf16 weights, AdamW, LoRA on query and value.

Left out, because another thing was measured than what this package does:
- rows with bitsandbytes before 0.43.2 and without double quantization on 13B at the limit of a T4, and tiny-llama's
  QLoRA: it kept the input of every 4-bit layer (fixed upstream; 16.24 GB is more than 16-bit LoRA for that reason);
- tiny-llama's LoRA on every layer: litgpt adapts query, key and value as one layer with one dropout, peft as three;
- llama-3.2-1b full on one GPU, 8.70 GB: weights, gradients and Adam's states alone are 9.9 GB there;
- peft's LoRA under ZeRO-3, which this package does not run; int8, which it does not offer.
"""

import pytest

import deepspeed_configs
from thriftune.config import LoraConfig, ModelConfig
from thriftune.hardware import DEVICES
from thriftune.models import architecture
from thriftune.models.quantization import FourBit
from thriftune.planning.memory import estimate
from thriftune.strategies import STRATEGIES, Machines
from thriftune.strategies.memory.activations import StepShape, measure
from thriftune.strategies.memory.adapters import split
from thriftune.strategies.zero.strategy import settings_of

GB, GIB = 1e9, 2**30
AGREEMENT = 0.15
LLAMA_7B, LLAMA_13B = "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-13b-hf"
ATTENTION = ("q_proj", "v_proj")
EVERYTHING = None
SIXTEEN_BITS, NF4, DOUBLE_NF4 = None, FourBit(double_quantization=False), FourBit()


def of(name: str) -> architecture.Architecture:
    return architecture.of(ModelConfig(source=name))


def lora(rank, targets=ATTENTION) -> LoraConfig:
    return LoraConfig(rank=rank, target_modules=targets)


@pytest.mark.parametrize(
    ("model", "rows", "tokens", "adapters", "four_bit", "peak_gb"),
    [
        (LLAMA_7B, 2, 512, lora(32), SIXTEEN_BITS, 19.77),
        (LLAMA_7B, 2, 512, lora(32), NF4, 13.68),
        ("mistralai/Mistral-7B-v0.1", 2, 512, lora(32), SIXTEEN_BITS, 20.66),
        ("google/gemma-2b", 2, 512, lora(8, EVERYTHING), SIXTEEN_BITS, 12.62),
        (LLAMA_7B, 1, 1304, lora(8), SIXTEEN_BITS, 21.30),
        (LLAMA_7B, 2, 1304, lora(8), SIXTEEN_BITS, 29.07),
        (LLAMA_7B, 1, 1304, lora(8), DOUBLE_NF4, 13.84),
        (LLAMA_13B, 1, 1304, lora(8), SIXTEEN_BITS, 38.12),
        (LLAMA_13B, 1, 1304, lora(8), NF4, 23.14),
    ],
)
def test_adapters_agree_with_litgpt(model, rows, tokens, adapters, four_bit, peak_gb):
    step_shape = StepShape(rows, tokens, False, "bf16", adapters, four_bit, masked=False)
    needed = estimate(STRATEGIES["single"], of(model), step_shape, Machines(DEVICES["A100-80GB"], 79.0, 1, 1))
    assert needed.allocated_gib * GIB / GB == pytest.approx(peak_gb, rel=AGREEMENT)


@pytest.mark.parametrize(("model", "peak_gb"), [(LLAMA_7B, 4.57), (LLAMA_13B, 8.32)])
def test_the_weights_in_nf4_agree_with_litgpt(model, peak_gb):
    """resource-tables.md, inference with bnb.nf4 (no double quantization)."""
    (share,) = split(of(model), lora(8), NF4, "bf16", 1, 0)
    assert share.weights.held_bytes(NF4, "bf16") / GB == pytest.approx(peak_gb, rel=AGREEMENT)


@pytest.mark.parametrize(
    ("model", "tokens", "checkpointing", "four_bit", "fits"),
    [
        (LLAMA_7B, 512, False, NF4, True),
        (LLAMA_7B, 1024, False, NF4, False),
        (LLAMA_7B, 1024, True, NF4, True),
        (LLAMA_13B, 512, False, NF4, False),
        (LLAMA_13B, 512, True, NF4, True),
        (LLAMA_13B, 1024, True, DOUBLE_NF4, True),
    ],
)
def test_what_fits_a_t4_agrees_with_the_blog_of_hugging_face(model, tokens, checkpointing, four_bit, fits):
    """huggingface/blog, 4bit-transformers-bitsandbytes.md: NF4 on one T4, batch 1, AdamW. It names no LoRA targets."""
    machines = Machines(DEVICES["T4"], 14.56, 1, 1)
    step_shape = StepShape(1, tokens, checkpointing, "fp16", lora(8, EVERYTHING), four_bit)
    assert (estimate(STRATEGIES["single"], of(model), step_shape, machines).device_gib < 14.56) == fits


def test_full_finetuning_without_sharding_agrees_with_torchtune():
    """pytorch/torchtune README: Llama-3.2-3B, bf16 with AdamW (8 bytes a parameter), packed, 2 x 4096: 60.0 GiB."""
    model = of("meta-llama/Llama-3.2-3B")
    activations = measure(model, StepShape(2, 4096, False, "bf16", masked=False)).whole()
    assert (8 * model.parameters + activations.all) / GIB == pytest.approx(60.0, rel=AGREEMENT)


@pytest.mark.parametrize(
    ("model", "nodes", "gib"),
    [
        (LLAMA_7B, 1, 14.6), (LLAMA_7B, 2, 7.6), (LLAMA_7B, 3, 5.2),
        (LLAMA_13B, 1, 27.9), (LLAMA_13B, 2, 14.3), (LLAMA_13B, 3, 9.7),
    ],
)  # fmt: skip
def test_model_states_agree_with_deepspeeds_estimator(model, nodes, gib):
    """`estimate_zero3_model_states_mem_needs`, deepspeed 0.19.8, 8 GPUs a node: model states, no activations."""
    shape = of(model)
    needed = of_zero(shape, nodes, deepspeed_configs.load("zero3"))
    states = needed.allocated_gib - needed.device.get("activations", 0.0)
    assert states == pytest.approx(gib, rel=AGREEMENT)


@pytest.mark.parametrize(("nodes", "gib"), [(1, 151), (2, 75), (3, 50)])
def test_an_offloaded_optimizer_agrees_with_deepspeeds_estimator_on_the_host(nodes, gib):
    """The same estimator for the host of a node, with its factor of 1.5 for buffers."""
    shape = of(LLAMA_7B)
    offload = {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu", "pin_memory": True}}}
    needed = of_zero(shape, nodes, offload)
    offloaded = sum(gib for item, gib in needed.host.items() if item.startswith("offloaded"))
    assert offloaded == pytest.approx(gib, rel=AGREEMENT)


def of_zero(shape, nodes, config):
    step_shape, machines = StepShape(1, 8, True, "fp16"), Machines(DEVICES["T4"], 14.56, nodes, 8)
    return estimate(STRATEGIES["zero"], shape, step_shape, machines, settings=settings_of("", config))
