"""Time of a plan: counted work is the real model's, speeds are near published ones, and the best choice is taken."""

import re
from dataclasses import replace
from unittest import mock

import pytest
import torch
from planning import TINY
from torch.utils.flop_counter import FlopCounterMode

from thriftune.batching import Batch
from thriftune.config import LoraConfig, ModelConfig, RunConfig
from thriftune.errors import ConfigError
from thriftune.hardware import DEVICES
from thriftune.models import architecture
from thriftune.models.quantization import FourBit
from thriftune.planning import catalogue, planner
from thriftune.planning.choices import Choice, Fitting
from thriftune.planning.objectives import fastest, in_order
from thriftune.planning.offers import Offer
from thriftune.planning.time.run import VALIDATE, Size
from thriftune.planning.time.step import EXCHANGE, PRODUCTS, Links, links, of_step, pass_seconds
from thriftune.strategies import STRATEGIES
from thriftune.strategies.coordination import Coordination, of_ring
from thriftune.strategies.memory import activations
from thriftune.strategies.memory.activations import StepShape, measure
from thriftune.strategies.memory.operations import OF_WEIGHTS
from thriftune.training_plan import Estimate, RunTime, StepTime, Verdict

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
SMOLLM_17B = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
    "num_attention_heads": 32, "num_key_value_heads": 32, "tie_word_embeddings": True, "max_position_embeddings": 8192,
}  # fmt: skip
QWEN_15B = {
    "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960,
    "num_hidden_layers": 28, "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True,
    "max_position_embeddings": 32768,
}  # fmt: skip


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_products_that_are_counted_are_those_of_the_real_model(checkpointing):
    from transformers import AutoModelForCausalLM

    rows, tokens = 2, 48
    model = AutoModelForCausalLM.from_config(TINY.config(), dtype=torch.float32, attn_implementation="eager").train()
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    ids = torch.randint(0, TINY.vocabulary, (rows, tokens))
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    work = measure(TINY, StepShape(rows, tokens, checkpointing, "fp32")).work
    # A fused kernel computes the scores again in the backward pass, which eager attention keeps.
    assert work.whole.flops == pytest.approx(counter.get_total_flops(), rel=0.05)
    assert work.forward.flops < work.backward.flops


def test_frozen_weights_have_no_products_for_their_gradients():
    full, adapters = (
        measure(TINY, StepShape(2, 64, False, "fp32", tuned)).work for tuned in (None, LoraConfig(rank=2))
    )
    assert adapters.backward.flops < 0.7 * full.backward.flops


def test_a_base_in_four_bits_is_read_and_written_once_more_in_every_pass():
    plain, quantized = (
        measure(TINY, StepShape(1, 32, False, "bf16", LoraConfig(rank=2), bits)).work.whole
        for bits in (None, FourBit())
    )
    assert quantized.traffic > plain.traffic
    assert quantized.flops == pytest.approx(plain.flops, rel=0.01)


def test_rows_with_fewer_tokens_compute_less_but_weights_are_dequantized_as_before():
    """Short rows were taken to need less dequantization, so that QLoRA over short rows was planned too fast."""
    whole, half = (
        measure(TINY, StepShape(1, tokens, False, "bf16", LoraConfig(rank=2), FourBit())).work.whole
        for tokens in (64, 32)
    )
    scaled = whole.with_fewer_tokens(0.5)
    of_weights = [
        sum(o.traffic * n for o, n in work.operations if o.precision == OF_WEIGHTS) for work in (whole, scaled, half)
    ]
    assert of_weights[0] == of_weights[1] == of_weights[2] > 0
    assert scaled.flops == pytest.approx(half.flops, rel=0.3)  # scores are of pairs of tokens
    assert scaled.traffic < whole.traffic


@pytest.mark.parametrize(
    ("model", "tokens", "four_bit", "published"),
    [
        ("meta-llama/Llama-3.2-1B", 1024, True, 1181),
        ("meta-llama/Llama-3.2-3B", 1024, True, 450),
        ("mistralai/Mistral-7B-v0.1", 1024, True, 262),
        (QWEN_15B, 1024, True, 893),
        (SMOLLM_17B, 2048, True, 814),
        (SMOLLM_17B, 2048, False, 1383),
    ],
)
def test_tokens_per_second_of_a_t4_are_near_published_ones(model, tokens, four_bit, published):
    """Anassbzdd/fitcheck, measured on a Tesla T4: LoRA of the attention, fp16, recomputed activations, batch 1.

    Their script computes adapters in fp32, without autocast (docs/time.md has all rows).
    """
    if isinstance(model, dict):
        shape = architecture.from_content(model, "model")
    else:
        shape = architecture.of(ModelConfig(source=model))
    tuned = LoraConfig(rank=16, target_modules=ATTENTION)
    bits = FourBit(double_quantization=False) if four_bit else None
    work = measure(shape, StepShape(1, tokens, True, "fp16", tuned, bits, masked=False, mixed=False)).work.whole
    seconds = sum(pass_seconds(work, DEVICES["T4"].speed, is_queued=True).values())
    assert tokens / seconds == pytest.approx(published, rel=0.25)


def step(work, coordination, **options) -> StepTime:
    speed = DEVICES["T4"].speed
    return of_step(
        work,
        coordination,
        speed,
        Links(between=6e9, host=12e9, cpus=12.0),
        accumulation=2,
        devices_per_node=8,
        **options,
    )


def test_layers_that_wait_for_each_other_are_said_and_exchange_hides_behind_computing_in_part():
    work = measure(TINY, StepShape(1, 64, True, "fp16", LoraConfig(rank=2))).work.whole
    assert step(work, Coordination(at_a_time=1)).waiting == pytest.approx(7 / 8)
    shown, hidden = (step(work, Coordination(between=10**9, overlapped=share)).parts[EXCHANGE] for share in (0.0, 0.7))
    computing = step(work, Coordination()).seconds
    assert shown == pytest.approx(1e9 / 6e9)
    # No more can be hidden than there is computing to hide it behind.
    assert hidden == pytest.approx(shown - min(0.7 * shown, 0.7 * computing), rel=0.01)


def test_a_ring_sends_all_but_ones_own_part():
    assert of_ring(800, 8) == 700
    assert of_ring(800, 1) == 0


def test_the_fastest_way_is_taken_only_if_it_is_clearly_faster(fitting):
    usual, slightly, clearly = fitting(10.0), fitting(7.0), fitting(5.0)
    assert fastest([usual, slightly]) is usual
    assert fastest([usual, slightly, clearly]) is clearly
    assert fastest([replace(usual, time=None), clearly]).time is None


def test_the_order_is_by_what_is_minimized_and_unknown_times_come_last(fitting):
    cheap, quick, unknown = fitting(100.0, price=1.0), fitting(10.0, price=8.0), replace(fitting(1.0), time=None)
    assert in_order([unknown, cheap, quick], "cost") == [quick, cheap, unknown]
    assert in_order([unknown, quick, cheap], "time") == [quick, cheap, unknown]
    assert in_order([quick, cheap], "price_per_hour") == [cheap, quick]


def plan(limits, size=None, instance="g4dn.xlarge", evaluation=None, **training):
    run = {
        "name": "limited", "method": "lora", "model": {"source": "HuggingFaceTB/SmolLM2-135M-Instruct"},
        "data": {"source": "rows", "format": "text", "max_length": 512}, "hardware": {"instance": instance},
        "plan": limits, "training": {"global_batch": 8, **training}, "evaluation": evaluation or {},
    }  # fmt: skip
    return planner.plan(RunConfig.model_validate(run), catalogue.load(), size=size)


def test_a_budget_rules_out_no_machine_where_the_number_of_steps_is_not_known(caplog):
    """It ruled out all of them, so that a run of data that cannot be counted could have no budget."""
    assert plan({"budget": 0.01}).time.steps == 0
    assert "plan.budget = 0.01 was no limit for the plan" in caplog.text
    caplog.clear()
    assert plan({"budget": 10.0}, max_steps=20).time.steps == 20
    assert "plan.budget" not in caplog.text


def test_watching_general_questions_takes_the_time_of_as_many_tokens():
    def validations(tokens, *, watch):
        size = Size(2000, (tokens,) * 4, "rows")
        made = plan({}, size, evaluation={"every_steps": 10, "watch_general": watch, "max_rows": 64})
        return made.time.beside[VALIDATE]

    short, long = (validations(tokens, watch=True) / validations(tokens, watch=False) for tokens in (47, 470))
    assert short == pytest.approx((64 + 320) / 64, rel=0.1)
    assert long == pytest.approx((64 + 32) / 64, rel=0.1)


def test_a_deadline_needs_a_number_of_steps_and_the_message_says_how_to_give_it():
    with pytest.raises(ConfigError) as caught:
        plan({"deadline_hours": 5.0, "budget": 5.0})
    (problem,) = caught.value.problems
    assert (problem.field, problem.value) == ("plan.deadline_hours", "5")
    assert "training.max_steps" in problem.remedy
    assert plan({"deadline_hours": 5.0, "budget": 5.0}, max_steps=20).time.hours < 5


def test_what_exceeds_the_limits_is_refused_with_limits_that_would_do():
    size = Size(1_000_000, (512,), "rows")
    with pytest.raises(ConfigError, match=r"For 1 x g4dn\.xlarge: Set plan\.deadline_hours to") as caught:
        plan({"budget": 0.5, "deadline_hours": 0.5}, size)
    remedy = caught.value.problems[-1].remedy
    hours, cost = (
        float(re.search(f"plan.{key} to ([0-9.]+) or more", remedy)[1]) for key in ("deadline_hours", "budget")
    )
    made = plan({"budget": cost, "deadline_hours": hours}, size)
    assert made.time.hours == pytest.approx(hours, abs=0.011)
    with pytest.raises(ConfigError):
        plan({"budget": cost - 0.02, "deadline_hours": hours}, size)


def test_where_the_speed_is_not_known_the_message_says_what_to_do():
    """It said to change what the nearest machine names, which named nothing."""
    with pytest.raises(ConfigError) as caught:
        plan({"budget": 5.0}, Size(100, (512,), "rows"), instance="m7i.2xlarge")
    assert "how long it takes is not known" in str(caught.value)
    assert "or give its speed under devices.CPU in a catalogue" in caught.value.problems[-1].remedy


@pytest.fixture
def fitting():
    """Make a choice whose steps take so many seconds on nodes of a price."""
    memory = Estimate("step", [{}], "training", {}, 0.0, 0.0, {}, Verdict("fits", "each GPU", 1.0, 1.0, 2.0))

    def of(seconds: float, price: float = 1.0) -> Fitting:
        offer = Offer("node", DEVICES["T4"], 1, 14.5, 64.0, 8, 100.0, price)
        choice = Choice(offer, 1, 1, STRATEGIES["single"], "", "", Batch(2, 1, 2, 1), "fp16")
        time = RunTime(StepTime({PRODUCTS: seconds}), (0.6, 1.6), 1.0, 64.0, "rows", "data sheets", 1000, {})
        return Fitting(choice, memory, time)

    return of


@pytest.mark.parametrize("four_bit", [None, FourBit()])
@pytest.mark.parametrize("in_precision", [False, True])
def test_what_is_counted_in_bf16_stands_for_fp16(four_bit, in_precision):
    """Both have 16 bits: one trace serves GPUs with and without bf16, and has to be what fp16 itself would give."""
    shape = StepShape(2, 32, True, "fp16", LoraConfig(rank=2), four_bit, in_precision=in_precision)
    found = activations._measured(TINY, shape)
    with mock.patch.object(type(TINY), "shapes", {**TINY.shapes, "a.experts.b": (1,)}):  # which are always traced
        itself = activations._measured.__wrapped__(TINY, shape)
    assert found == itself
    assert {one.precision for one, _ in found.beside.forward.operations if one.flops} == {"fp16"}


def test_a_node_that_leaves_no_whole_cpu_is_planned():
    speed = DEVICES["T4"].speed
    assert links(speed, nodes=1, network=0.0, cpus=0.0).cpus == 1.0
