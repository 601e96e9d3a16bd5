"""What is counted on the meta device is what a real model really keeps: the same code, with data, on the CPU."""

import json

import pytest
import torch
from planning import TINY

from thriftune.config import LoraConfig
from thriftune.models import architecture
from thriftune.strategies.memory.activations import StepShape, measure
from thriftune.strategies.memory.tracing import LiveBytes, RealDevice

MIXTURE = architecture.from_content(
    {**json.loads(TINY.content), "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2}, "mixture"
)


def saved_bytes(model, **inputs) -> int:
    """Bytes of the distinct tensors that a real forward pass keeps, without weights."""
    weights = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**inputs).loss
    assert loss.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("shape", [TINY, MIXTURE], ids=lambda shape: shape.name)
def test_a_layer_keeps_on_the_meta_device_what_it_keeps_on_the_cpu(rows, shape):
    tokens, sizes = 48, []
    for layers in (1, 2):
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(shape.config(layers), dtype=torch.float32).train()
        ids = torch.randint(0, shape.vocabulary, (rows, tokens))
        sizes.append(saved_bytes(model, input_ids=ids, labels=ids, use_cache=False))
    counted = measure(shape, StepShape(rows, tokens, False, "fp32", masked=False)).kept[-1].all
    assert counted == pytest.approx(sizes[1] - sizes[0], rel=0.05)


def test_further_layers_add_what_the_second_adds():
    step_shape = StepShape(2, 64, True, "bf16", LoraConfig(rank=4))
    activations = measure(TINY, step_shape)
    assert activations.of([0, 1], has_head=True) - activations.of([0], has_head=True) == activations.kept[1]
    assert (
        0 < activations.kept[-1].all < measure(TINY, StepShape(2, 64, False, "bf16", LoraConfig(rank=4))).kept[-1].all
    )


def test_attention_keeps_no_scores():
    """The meta device takes torch's slow path, which would keep rows x heads x tokens x tokens of them."""
    short, long = (
        measure(TINY, StepShape(1, tokens, False, "bf16", masked=False)).kept[-1].all for tokens in (256, 512)
    )
    assert long == pytest.approx(2 * short, rel=0.01)


def test_a_mask_is_a_bias_of_every_token_for_every_other():
    masked, free = (measure(TINY, StepShape(1, 512, False, "bf16", masked=m)).kept[-1].all for m in (True, False))
    assert masked - free >= 2 * 512 * 512


def test_freed_tensors_are_not_counted_and_known_ones_never():
    weight = torch.empty(100, 100, device="meta")
    with LiveBytes([weight], small=1000) as counted:
        first = weight + 1
        assert counted.live == 40_000
        second = torch.empty(10, device="meta") + 1
        assert counted.live == 40_040
        del first
        assert counted.live == 40
    assert (counted.peak, counted.small_peak) == (40_080, 80)
    del second


def test_autocast_casts_a_trained_weight_once_and_products_only():
    weight = torch.empty(8, 8, device="meta", requires_grad=True)
    inputs = torch.empty(4, 8, device="meta")
    with RealDevice(torch.bfloat16), LiveBytes([weight, inputs], small=1) as counted:
        first = torch.nn.functional.linear(inputs, weight)
        live = counted.live
        second = torch.nn.functional.linear(inputs, weight)
        assert first.dtype == second.dtype == torch.bfloat16
        assert (inputs + 1).dtype == torch.float32
        assert counted.live - live < live
