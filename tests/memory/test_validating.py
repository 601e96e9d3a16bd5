"""A validation finds the model where it trains, and takes no more memory than training does."""

import pytest
import torch
from planning import TINY, planned

from thriftune.config import LoraConfig, ModelConfig
from thriftune.models import architecture
from thriftune.models.quantization import FourBit
from thriftune.planning.memory.validating import batch_of, bytes_of
from thriftune.strategies.memory.activations import StepShape, measure
from thriftune.strategies.memory.items import ACTIVATIONS, FORWARD_BACKWARD, WEIGHTS
from thriftune.strategies.memory.tracing import LiveBytes

SMOL = architecture.of(ModelConfig(source="HuggingFaceTB/SmolLM2-135M-Instruct"))
PASSES = [
    StepShape(micro, 256, checkpointing, precision, adapters, four_bit)
    for micro in (1, 4)
    for checkpointing in (False, True)
    for precision in ("fp16", "fp32")
    for adapters, four_bit in ((None, None), (LoraConfig(rank=4), None), (LoraConfig(rank=4), FourBit()))
]


def holding(activations, weights=0):
    return {FORWARD_BACKWARD: {WEIGHTS: weights, ACTIVATIONS: activations}}


@pytest.mark.parametrize("wanted", [1, 4, 1000])
def test_it_never_needs_more_than_training_and_takes_one_row_at_least(run_config, wanted):
    config = run_config(evaluation={"batch": wanted})
    for step_shape in PASSES:
        trained = measure(SMOL, step_shape).whole().all
        rows = batch_of(config, SMOL, step_shape, [holding(trained)])
        assert 1 <= rows <= wanted
        assert rows == 1 or bytes_of(config, SMOL, step_shape, rows) <= trained
        assert rows == wanted or bytes_of(config, SMOL, step_shape, rows + 1) > trained, "there was room for more"


def test_one_row_is_validated_even_where_an_answer_takes_more_than_training_does(run_config):
    config = run_config(evaluation={"batch": 8, "max_new_tokens": 10**7})
    step_shape = StepShape(1, 64, True, "bf16")
    trained = measure(SMOL, step_shape).whole().all
    assert bytes_of(config, SMOL, step_shape, 1) > trained
    assert batch_of(config, SMOL, step_shape, [holding(trained)]) == 1


def test_split_by_layers_rows_are_counted_against_the_fullest_device(run_config):
    """Against the activations of all layers, Llama-2 70B did not fit on eight T4s with rows that trained there."""
    config = run_config(evaluation={"batch": 100})
    step_shape = StepShape(1, 64, True, "fp16")
    row = bytes_of(config, SMOL, step_shape, 1)
    assert batch_of(config, SMOL, step_shape, [holding(9 * row)] * 8) == 9
    assert batch_of(config, SMOL, step_shape, [holding(9 * row), holding(row, weights=4 * row)]) == 5
    assert batch_of(config, SMOL, step_shape, [holding(9 * row), holding(row, weights=10 * row)]) == 1


def test_an_answer_keeps_keys_and_values_of_all_its_tokens(run_config):
    """Of long answers this is more than the logits of a row are."""
    step_shape = StepShape(1, 64, True, "bf16")
    short, long = (run_config(evaluation={"max_new_tokens": tokens}) for tokens in (10**6, 2 * 10**6))
    more = bytes_of(long, SMOL, step_shape, 1) - bytes_of(short, SMOL, step_shape, 1)
    assert more == 2 * 10**6 * SMOL.cached_per_token


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_loss_of_rows_holds_no_more_than_is_counted(run_config, precision):
    """The tensors of a real pass without gradients, as held-out loss is measured."""
    from transformers import AutoModelForCausalLM

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    model = AutoModelForCausalLM.from_config(TINY.config(), dtype=dtype).eval()
    ids = torch.randint(0, TINY.vocabulary, (3, 64))

    with torch.no_grad(), LiveBytes([*model.parameters(), *model.buffers(), ids], small=1) as held:
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    counted = bytes_of(run_config(), TINY, StepShape(1, 64, False, precision), 3)
    assert 0.4 * counted < held.peak <= counted


@pytest.mark.parametrize(("wanted", "expected"), [(2, 2), (10**6, None)])
def test_a_plan_says_how_many_rows_are_validated_at_once(run_config, wanted, expected):
    config = run_config("lora", training={"micro_batch": 4}, evaluation={"batch": wanted})
    plan = planned(config)
    assert plan.memory.phase != "validation"
    assert plan.validation_batch == expected or 1 <= plan.validation_batch < wanted


def test_the_phase_is_validation_where_one_row_needs_more_than_training(run_config):
    config = run_config("lora", training={"micro_batch": 1}, evaluation={"batch": 8, "max_new_tokens": 10**6})
    plan = planned(config)
    assert plan.validation_batch == 1
    assert plan.memory.phase == "validation"
