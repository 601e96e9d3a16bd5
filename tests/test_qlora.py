"""What QLoRA does to a model before training: what is in 4 bits, what trains, and what keeps its precision."""

from dataclasses import replace

import pytest
import torch
from planning import planned
from test_architecture import shape_of

from thriftune.config import ModelConfig
from thriftune.hardware import DEVICES
from thriftune.methods import METHODS
from thriftune.methods.adapters import fused_experts
from thriftune.models import architecture as architectures
from thriftune.models.loading import Placement, load_model
from thriftune.models.quantization import FourBit
from thriftune.strategies import STRATEGIES


def loaded(config, plan, model_dir):
    """The model as a training loads it."""
    shape = architectures.of(ModelConfig(source=str(model_dir)))
    return STRATEGIES[plan.strategy].load(model_dir, METHODS[plan.method], plan, config, shape, None)


def trainable(run_config, model_dir, **lora):
    config = run_config(method="qlora", training={"precision": "bf16"}, lora={"rank": 4, "alpha": 8, **lora})
    plan = planned(config)
    return loaded(config, replace(plan, precision="bf16"), model_dir)


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


def gradients(model):
    """Of every adapter, for some rows."""
    ids = torch.arange(32).view(2, 16)
    model.train().zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad and p.grad.any()}


def test_measuring_changes_nothing_of_a_base_in_four_bits(run_config, tiny_model_dir, monkeypatch):
    """On CPUs with AVX512-BF16 no gradient went back through it after a validation, and its scales were rounded.

    A training that went on from a checkpoint was another one until its own first validation.
    """
    from bitsandbytes.nn import Linear4bit

    real = Linear4bit.__init__

    def with_avx512bf16(self, *arguments, **options):
        real(self, *arguments, **options)
        self.support_avx512bf16_for_cpu = True

    monkeypatch.setattr(Linear4bit, "__init__", with_avx512bf16)
    model = trainable(run_config, tiny_model_dir, dropout=0.0)
    before = gradients(model)
    assert before
    weights = {n: p for n, p in model.named_parameters() if type(p).__name__ == "Params4bit"}
    held = {name: (p.data.clone(), p.quant_state.absmax.clone()) for name, p in weights.items()}
    assert held
    with torch.no_grad():
        model.eval()(input_ids=torch.arange(8).view(1, 8))
    for name, (data, scales) in held.items():
        assert torch.equal(weights[name].data, data)
        assert torch.equal(weights[name].quant_state.absmax, scales)
    after = gradients(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        *((kind, "qlora") for kind in ("mixtral", "qwen2_moe", "gpt_oss", "deepseek_v2", "llama4_text")),
        ("mixtral", "lora"),
    ],
)
def test_a_mixture_of_experts_is_planned_and_trained(run_config, tmp_path, kind, method):
    """Each was refused on a CPU: its memory could not be traced, or peft refused the dropout nobody had asked for."""
    from transformers import AutoModelForCausalLM

    own = {"mlp_only_layers": [0]} if kind == "qwen2_moe" else {}
    shape = shape_of(kind, hidden_size=64, num_hidden_layers=2, **own)
    AutoModelForCausalLM.from_config(shape.config(), dtype=torch.float32).save_pretrained(tmp_path)
    config = run_config(method=method, lora={"rank": 2})
    plan = planned(config, model=tmp_path)
    model = loaded(config, plan, tmp_path).train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in trained.values()) == plan.trained_parameters
    ids = torch.arange(32).view(2, 16)
    with torch.autocast("cpu", torch.bfloat16, enabled=plan.precision == "bf16"):  # as the Trainer computes
        loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    assert all(p.grad is not None for p in trained.values())


def test_fused_experts_keep_sixteen_bits(run_config, tmp_path):
    """peft 0.21 turned the experts of Mixtral into fp32, twice the memory of most of the model."""
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=128, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4,
    )  # fmt: skip
    MixtralForCausalLM(config).to(torch.bfloat16).save_pretrained(tmp_path)
    before = load_model(tmp_path, Placement(DEVICES["CPU"], "bf16", four_bit=FourBit()))
    weights = [p.detach().clone() for p in fused_experts(before)]
    assert len(weights) == 2 * 2  # layers x (gate and up, down)
    model = trainable(run_config, tmp_path, target_modules=["q_proj", "v_proj"])
    after = fused_experts(model)
    assert [p.dtype for p in after] == [torch.bfloat16] * 4
    assert all(torch.equal(a, b) for a, b in zip(after, weights, strict=True))
    assert not any(p.requires_grad for p in after)
