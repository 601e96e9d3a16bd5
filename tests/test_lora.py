"""Where adapters attach, and how much of a model they train."""

import json

import pytest

from thriftune import architecture as architectures
from thriftune.config import LoraConfig, ModelConfig
from thriftune.errors import ConfigError
from thriftune.lora import peft_config, require_adapters, require_same_shape, require_targets, trainable_share

LLAMA_LAYERS = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


@pytest.fixture
def architecture(tiny_model_dir):
    return architectures.of(ModelConfig(source=str(tiny_model_dir)))


def test_the_linear_layers_are_all_but_the_output_head(architecture):
    names = architecture.linear_shapes
    assert len(names) == 2 * len(LLAMA_LAYERS)
    assert sorted({name.rpartition(".")[2] for name in names}) == LLAMA_LAYERS


def test_adapters_that_peft_refuses_are_refused_before_a_model_is_loaded():
    """Dropout on the fused experts of Mixtral: peft raised on the training node, with the weights in memory."""
    mixtral = architectures.of(ModelConfig(source="mistralai/Mixtral-8x7B-v0.1"))
    with pytest.raises(ConfigError, match=r"lora.dropout = 0.1: peft can do no dropout.*Set lora.dropout: 0"):
        require_adapters(LoraConfig(dropout=0.1), mixtral)
    require_adapters(LoraConfig(target_modules=("q_proj",), dropout=0.1), mixtral)
    require_adapters(LoraConfig(), mixtral)


@pytest.mark.parametrize("target", ["layers.1.self_attn.q_proj", "self_attn.q_proj", "q_proj"])
def test_a_target_may_name_part_of_the_path_to_a_layer(architecture, target):
    assert require_targets(LoraConfig(target_modules=(target,)), architecture) is None


@pytest.mark.parametrize("target", ["layers.99.self_attn.q_proj", "self_attention.q_proj", "proj"])
def test_a_target_whose_path_is_wrong_is_refused(architecture, target):
    """Only the last part of the name was looked at, and peft raised after the model was loaded."""
    with pytest.raises(ConfigError, match="lora.target_modules"):
        require_targets(LoraConfig(target_modules=(target,)), architecture)


def test_an_adapter_of_another_shape_is_not_gone_on_with(random_adapter):
    directory = random_adapter(seed=1)
    saved = json.loads((directory / "adapter_config.json").read_text())
    require_same_shape(LoraConfig(rank=saved["r"], alpha=saved["lora_alpha"]), directory)
    with pytest.raises(ConfigError) as caught:
        require_same_shape(LoraConfig(rank=saved["r"] + 1, alpha=saved["lora_alpha"] + 1), directory)
    assert [p.field for p in caught.value.problems] == ["lora.rank", "lora.alpha"]


def test_targets_that_are_not_there_are_refused_with_those_that_are(architecture):
    lora = LoraConfig(target_modules=("q_proj", "query_key_value", "c_attn"))
    with pytest.raises(ConfigError) as caught:
        require_targets(lora, architecture)
    text = str(caught.value)
    assert "lora.target_modules = query_key_value, c_attn:" in text
    assert ", ".join(LLAMA_LAYERS) in text


@pytest.mark.parametrize("names", [None, ("q_proj",), ("q_proj", "down_proj"), ("self_attn.q_proj",)])
def test_targets_that_are_there_are_accepted(architecture, names):
    assert require_targets(LoraConfig(target_modules=names), architecture) is None


def test_the_output_head_is_no_target(architecture):
    with pytest.raises(ConfigError, match="lm_head"):
        require_targets(LoraConfig(target_modules=("lm_head",)), architecture)


def test_no_target_modules_mean_all_linear_layers(tiny_model_dir):
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir), peft_config(LoraConfig(rank=2)))
    adapted = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in model.named_modules() if ".lora_A" in name}
    assert sorted(adapted) == LLAMA_LAYERS


def test_every_lora_field_reaches_peft():
    made = peft_config(LoraConfig(rank=8, alpha=24, dropout=0.25, target_modules=("q_proj",)))
    assert (made.r, made.lora_alpha, made.lora_dropout) == (8, 24, 0.25)
    assert set(made.target_modules) == {"q_proj"}
    assert made.task_type == "CAUSAL_LM"


def test_the_trainable_share_counts_two_weights_per_4_bit_byte():
    import torch

    class Params4bit(torch.nn.Parameter):
        """As bitsandbytes', whose type is known by its name."""

    model = torch.nn.Module()
    model.frozen = Params4bit(torch.zeros(45, dtype=torch.uint8), requires_grad=False)
    model.adapter = torch.nn.Parameter(torch.zeros(10))
    assert trainable_share(model) == pytest.approx(0.1)
