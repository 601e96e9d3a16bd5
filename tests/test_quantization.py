"""Which weights are in 4 bits: what the planner counts is what loading quantizes, whatever the architecture."""

from contextlib import nullcontext

import pytest
import torch
from test_architecture import shape_of

from thriftune.config import ModelConfig
from thriftune.errors import ConfigError
from thriftune.hardware import DEVICES
from thriftune.methods import METHODS
from thriftune.methods.adapters import prepare_four_bit
from thriftune.models import architecture, quantization
from thriftune.models.loading import Placement, load_model
from thriftune.models.quantization import FourBit

# Kinds of linear layers, by architecture: plain, transposed, a subclass, fused experts, a router that is a subclass.
TINY = {
    "llama": {},
    "llama tied": {"tie_word_embeddings": True},
    "falcon": {},
    "gpt2": {},
    "mixtral": {},
    "gemma": {"num_key_value_heads": 1, "head_dim": 16},
    "qwen2_moe": {"mlp_only_layers": [0]},
    "phimoe": {"num_key_value_heads": 2, "num_local_experts": 4},
    "gpt_oss": {},
    "deepseek_v2": {},
    "llama4_text": {},
}


def tiny(kind: str) -> architecture.Architecture:
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "n_embd": 64, "n_layer": 2} if kind == "gpt2" else {}
    return shape_of(kind.partition(" ")[0], **{"hidden_size": 64, "num_hidden_layers": 2, **sizes, **TINY[kind]})


def saved(kind: str, directory) -> architecture.Architecture:
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_config(tiny(kind).config(), dtype=torch.bfloat16).save_pretrained(directory)
    return architecture.of(ModelConfig(source=str(directory)))


@pytest.mark.parametrize("kind", TINY)
def test_what_is_counted_in_four_bits_is_what_loading_quantizes(kind, tmp_path):
    """Falcon's layers were counted at half a byte, and bitsandbytes left all of them alone."""
    shape = saved(kind, tmp_path)
    model = load_model(tmp_path, Placement(DEVICES["CPU"], "bf16", FourBit(double_quantization=False)))
    assert quantization.four_bit_layers(model) == quantization.quantized_layers(shape)
    prepared = prepare_four_bit(model, gradient_checkpointing=False)
    stored = sum(p.numel() * p.element_size() for p in prepared.parameters())  # without the constants
    counted = quantization.weights_of(shape, shape.shapes)
    assert stored == counted.quantized // 2 + 2 * counted.fused + 4 * counted.other


def test_four_bits_that_save_nothing_are_refused():
    """A QLoRA of Falcon trained with 0 % in 4 bits and all of it in fp32, twice the memory of plain LoRA."""
    with pytest.raises(ConfigError, match=r"method = qlora: 0% .*FalconLinear.*Set method: lora") as caught:
        quantization.require_savings(FourBit(), tiny("falcon"))
    assert [problem.code for problem in caught.value.problems] == ["quantization-saves-nothing"]


@pytest.mark.parametrize(("method", "is_refused"), [("qlora", True), ("lora", False)])
def test_the_method_that_quantizes_is_the_one_that_is_refused(run_config, method, is_refused):
    def check():
        METHODS[method].check(run_config(method), tiny("falcon"))

    with pytest.raises(ConfigError, match="Set method: lora") if is_refused else nullcontext():
        check()


def test_a_mixture_saves_little_and_is_not_refused():
    """Only the attention of Mixtral-8x7B is in 4 bits; the base is two GiB smaller by it."""
    mixtral = architecture.of(ModelConfig(source="mistralai/Mixtral-8x7B-v0.1"))
    quantization.require_savings(FourBit(), mixtral)
    assert "only 3% of the weights in the layers" in quantization.saves_little(FourBit(), mixtral)
    assert "fused experts" in quantization.saves_little(FourBit(), mixtral)


def test_of_a_dense_model_nothing_is_said():
    assert quantization.saves_little(FourBit(), tiny("llama")) == ""
