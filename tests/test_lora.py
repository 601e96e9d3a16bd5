"""Where adapters attach, and how much of a model they train."""

import json

import pytest
import torch
from peft import get_peft_model
from test_architecture import shape_of

from thriftune.config import LoraConfig, ModelConfig
from thriftune.errors import ConfigError
from thriftune.methods.adapter_checks import require_adapters, require_targets
from thriftune.methods.adapters import (
    DROPOUT,
    adapter_parameters,
    peft_config,
    resolved,
    trainable_share,
)
from thriftune.models import architecture as architectures
from thriftune.models.adapter_resumption import require_same_shape
from thriftune.preflight import adapters
from thriftune.preflight.base_model import BaseModel

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
    with pytest.raises(ConfigError, match=r"lora.dropout = 0.1: peft has no dropout.*Set lora.dropout: 0"):
        require_adapters(LoraConfig(dropout=0.1), mixtral)
    require_adapters(LoraConfig(target_modules=("q_proj",), dropout=0.1), mixtral)
    require_adapters(LoraConfig(), mixtral)


def test_dropout_is_refused_on_experts_that_begin_after_the_first_layer():
    """DeepSeek's first layer is dense: one layer was tried, peft took it, and the memory could not be traced."""
    deepseek = shape_of("deepseek_v2")
    with pytest.raises(ConfigError, match=r"lora.dropout = 0.05: .*Set lora.dropout: 0"):
        require_adapters(LoraConfig(dropout=0.05), deepseek)
    require_adapters(LoraConfig(dropout=0.0), deepseek)


@pytest.mark.parametrize(
    ("kind", "lora", "dropout"),
    [
        ("llama", LoraConfig(), DROPOUT),
        ("llama", LoraConfig(dropout=0.2), 0.2),
        ("mixtral", LoraConfig(), 0.0),
        ("deepseek_v2", LoraConfig(), 0.0),
        ("mixtral", LoraConfig(target_modules=("q_proj",)), DROPOUT),
        ("gpt_oss", LoraConfig(), DROPOUT),
    ],
)
def test_dropout_is_left_out_where_peft_can_do_none_and_nobody_asked_for_it(kind, lora, dropout):
    """The defaults of this package were refused on every mixture."""
    assert resolved(lora, shape_of(kind)).dropout == dropout


@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("llama", None),
        ("llama", ("layers.1.self_attn.q_proj", "down_proj")),
        ("gpt2", None),
        ("mixtral", None),
        ("qwen2_moe", None),
        ("qwen2_moe", ("q_proj", "gate_proj", "up_proj", "down_proj")),
        ("deepseek_v2", None),
        ("llama4_text", None),
    ],
)
def test_as_many_parameters_are_counted_as_peft_trains(kind, targets):
    """Of Mixtral 55 million were counted where peft trains 1.4 billion: it puts adapters on the experts as well."""
    shape, lora = shape_of(kind), LoraConfig(rank=2, target_modules=targets)
    model = get_peft_model(shape.on_meta(torch.float32), peft_config(resolved(lora, shape)))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(adapter_parameters(shape, lora).values()) == trained


def test_a_router_that_is_a_linear_layer_by_its_class_gets_no_adapter():
    """Llama 4's gives two tensors: peft wrapped it, and the first forward pass failed."""
    shape = shape_of("llama4_text")
    assert all("router" not in name for name in adapter_parameters(shape, LoraConfig()))
    with pytest.raises(ConfigError, match="lora.target_modules = router"):
        require_targets(LoraConfig(target_modules=("router",)), shape)


def test_the_preflight_says_what_is_in_four_bits_and_on_experts(run_config):
    def found(kind, method="qlora", **lora):
        config = run_config(method=method, lora=lora)
        return {f.code: f.message for f in adapters.check(config, BaseModel(architecture=shape_of(kind)))}

    assert list(found("falcon")) == ["quantization-saves-nothing"]
    assert found("falcon", "lora") == found("llama") == {}
    assert list(found("mixtral", target_modules=["q_proj"])) == ["quantization-saves-little"]
    deepseek = found("deepseek_v2", "lora")
    assert "The layers down_proj, gate_proj, up_proj beside them get none" in deepseek["lora-on-fused-experts"]


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
