"""What QLoRA does to a model before training: what is in 4 bits, what trains, and what keeps its precision."""

from dataclasses import replace

import pytest
import torch
from planning import planned
from test_architecture import shape_of
from thriftune.training.qlora import _load_trainable

from thriftune.hardware import DEVICES
from thriftune.methods.adapters import fused_experts
from thriftune.models.loading import Placement, load_model


def trainable(run_config, model_dir, **lora):
    config = run_config(method="qlora", training={"precision": "bf16"}, lora={"rank": 4, "alpha": 8, **lora})
    plan = planned(config)
    return _load_trainable(config, replace(plan, precision="bf16"), model_dir, None)


def test_only_adapters_train_and_linear_layers_are_in_four_bits(run_config, tiny_model_dir):
    model = trainable(run_config, tiny_model_dir)
    training = [name for name, p in model.named_parameters() if p.requires_grad]
    assert training
    assert all("lora_" in name for name in training)
    four_bit = [n for n, p in model.named_parameters() if type(p).__name__ == "Params4bit"]
    assert len(four_bit) == 2 * 7  # layers x projections; the output head stays out
    state = model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight.quant_state
    assert state.quant_type == "nf4"
    assert state.nested, "the quantization constants are quantized too"


@pytest.mark.parametrize(
    ("kind", "four_bit"),
    [*((kind, True) for kind in ("mixtral", "qwen2_moe", "gpt_oss", "deepseek_v2", "llama4_text")), ("mixtral", False)],
)
def test_a_mixture_of_experts_is_planned_and_trained(run_config, tmp_path, kind, four_bit):
    """Each was refused on a CPU: its memory could not be traced, or peft refused the dropout nobody had asked for."""
    from transformers import AutoModelForCausalLM

    own = {"mlp_only_layers": [0]} if kind == "qwen2_moe" else {}
    shape = shape_of(kind, hidden_size=64, num_hidden_layers=2, **own)
    AutoModelForCausalLM.from_config(shape.config(), dtype=torch.float32).save_pretrained(tmp_path)
    config = run_config(method="qlora", lora={"rank": 2, "four_bit": four_bit})
    plan = planned(config, model=tmp_path)
    model = _load_trainable(config, plan, tmp_path, None).train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == plan.trained_parameters
    ids = torch.arange(32).view(2, 16)
    model(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None for p in trained.values())


def test_fused_experts_keep_sixteen_bits(run_config, tmp_path):
    """peft 0.21 turned the experts of Mixtral into fp32, twice the memory of most of the model."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    before = load_model(tmp_path, Placement(DEVICES["CPU"], "bf16", four_bit=True))
    weights = [p.detach().clone() for p in fused_experts(before)]
    assert len(weights) == 2 * 2  # layers x (gate and up, down)
    model = trainable(run_config, tmp_path, target_modules=["q_proj", "v_proj"])
    after = fused_experts(model)
    assert [p.dtype for p in after] == [torch.bfloat16] * 4
    assert all(torch.equal(a, b) for a, b in zip(after, weights, strict=True))
    assert not any(p.requires_grad for p in after)
