"""Quantizing weight by weight gives the model that transformers quantizes as a whole, in any storage type."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from thriftune.models.quantization import FourBit, configuration
from thriftune.strategies.mapped import map_model
from thriftune.strategies.quantized_loading import packed, with_four_bit_layers
from thriftune.strategies.zero.loading import move_to_device

CPU = torch.device("cpu")
SMALL = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2}
KINDS = {
    "qwen2": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4,
              "num_key_value_heads": 2},  # with biases
    "gpt2": {"n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 32},  # with Conv1D, whose weights are transposed
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def directory(request, tmp_path_factory):
    from transformers import AutoConfig

    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **SMALL, **KINDS[request.param]))
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def by_weight(directory, dtype, four_bit):
    """The mapped model, with its layers quantized one at a time."""
    model = map_model(directory)
    layers = with_four_bit_layers(model, dtype, four_bit)
    assert layers
    for each in packed(layers, dtype, CPU):
        each.put_in_place()
    return model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_packed_bytes_are_those_of_loading_on_one_device(directory, dtype):
    four_bit = FourBit(double_quantization=dtype != torch.bfloat16)
    model = by_weight(directory, dtype, four_bit)
    plain = AutoModelForCausalLM.from_pretrained(
        directory, dtype=dtype, quantization_config=configuration(dtype, four_bit)
    )
    expected = {name: p for name, p in plain.named_parameters() if type(p).__name__ == "Params4bit"}
    found = {name: p for name, p in model.named_parameters() if type(p).__name__ == "Params4bit"}
    assert found.keys() == expected.keys()
    assert found
    for name, parameter in found.items():
        assert parameter.dtype == dtype, "or it is not sharded with the other weights"
        assert torch.equal(parameter.data.view(torch.uint8).flatten(), expected[name].data.flatten())
        mine, theirs = parameter.quant_state, expected[name].quant_state
        assert torch.equal(mine.absmax, theirs.absmax)
        assert (mine.shape, mine.dtype, mine.nested) == (theirs.shape, theirs.dtype, four_bit.double_quantization)


def test_it_computes_what_the_model_of_transformers_computes(directory):
    """Outputs, and the gradients of what comes before: the product keeps no weight for the backward pass."""
    model = by_weight(directory, torch.float32, FourBit())
    move_to_device(model, torch.float32, CPU)
    quantized = configuration(torch.float32, FourBit())
    plain = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, quantization_config=quantized)
    ids = torch.arange(16).view(1, 16)
    results = []
    for each in (model, plain):
        embedded = each.get_input_embeddings()(ids).detach().requires_grad_()
        logits = each(inputs_embeds=embedded).logits
        logits.square().mean().backward()
        results.append((logits.detach(), embedded.grad))
    assert results[0][1].abs().sum() > 0
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_a_gathered_weight_may_go_after_the_forward_pass(directory):
    """bitsandbytes keeps a view of it, so that every rank held the whole base by the end of the forward pass."""
    model = by_weight(directory, torch.float32, FourBit())
    layer = next(module for module in model.modules() if type(module).__name__ == "Linear4bit")
    inputs = torch.randn(2, layer.in_features, requires_grad=True)
    whole = layer.weight.data
    layer(inputs).sum().backward()
    expected, inputs.grad = inputs.grad, None
    result = layer(inputs)
    layer.weight.data = torch.zeros_like(whole)
    with torch.no_grad():
        whole_again = whole.clone()
        whole.zero_()  # what a view of it would read
    layer.weight.data = whole_again
    result.sum().backward()
    torch.testing.assert_close(inputs.grad, expected)


def test_no_state_of_the_model_holds_the_base(directory):
    """Every checkpoint of a rank had the constants of the whole base, a gigabyte of a model of 70B."""
    model = by_weight(directory, torch.float32, FourBit())
    names = {name for name, p in model.named_parameters() if type(p).__name__ == "Params4bit"}
    assert names
    assert not [key for key in model.state_dict() if any(key.startswith(name) for name in names)]
