"""What must hold of any estimate: more of something never needs less, and nothing is created or lost by moving it."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deepspeed_configs
from thriftune.config import LoraConfig, ModelConfig
from thriftune.hardware import DEVICES
from thriftune.methods.adapters import adapter_parameters
from thriftune.models import architecture
from thriftune.models.quantization import FourBit, layer_weights
from thriftune.planning.memory import estimate
from thriftune.strategies import STRATEGIES, Machines
from thriftune.strategies.memory.activations import StepShape, measure
from thriftune.strategies.memory.adapters import split
from thriftune.strategies.zero.strategy import settings_of

GIB = 2**30
SMOL = architecture.of(ModelConfig(source="HuggingFaceTB/SmolLM2-135M-Instruct"))
LLAMA_70B = architecture.of(ModelConfig(source="meta-llama/Llama-2-70b-hf"))
MIXTRAL = architecture.of(ModelConfig(source="mistralai/Mixtral-8x7B-v0.1"))
T4 = DEVICES["T4"]
STAGES = {
    "zero0": {"zero_optimization": {"stage": 0}},
    **{name: deepspeed_configs.load(name) for name in deepspeed_configs.names()},
    "zero3_offload_optimizer": {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}},
}
lengths, batches = st.sampled_from([64, 256]), st.integers(1, 3)
stages = st.sampled_from(sorted(STAGES))
precisions = st.sampled_from(["fp16", "bf16", "fp32"])
properties = settings(max_examples=25, deadline=None)


def full(step_shape, stage, nodes=1, devices=4, device=T4):
    machines = Machines(device, 14.56, nodes, devices)
    return estimate(STRATEGIES["zero"], SMOL, step_shape, machines, settings=settings_of(stage, STAGES[stage]))


def adapted(step_shape, devices=1, optimizer="adamw", model=SMOL, **options):
    machines = Machines(T4, 14.56, 1, devices)
    return estimate(STRATEGIES["layers"], model, step_shape, machines, optimizer=optimizer, **options)


def alone(step_shape, device=T4, optimizer="adamw", **options):
    machines = Machines(device, 14.56, 1, 1)
    return estimate(STRATEGIES["single"], SMOL, step_shape, machines, optimizer=optimizer, **options)


@properties
@given(stage=stages, precision=precisions, length=lengths, rows=batches, checkpointing=st.booleans())
def test_a_longer_sequence_or_a_bigger_micro_batch_never_needs_less(stage, precision, length, rows, checkpointing):
    base = full(StepShape(rows, length, checkpointing, precision), stage)
    for more in (
        StepShape(rows, 2 * length, checkpointing, precision),
        StepShape(rows + 1, length, checkpointing, precision),
    ):
        bigger = full(more, stage)
        assert bigger.device_gib >= base.device_gib
        assert bigger.host_gib >= base.host_gib


@properties
@given(stage=stages, precision=precisions, nodes=st.integers(1, 7), on_gpu=st.booleans())
def test_more_nodes_never_need_more_of_each_gpu_or_host(stage, precision, nodes, on_gpu):
    device, step_shape = (T4 if on_gpu else DEVICES["CPU"]), StepShape(1, 128, True, precision)
    fewer, more = (full(step_shape, stage, n, device=device) for n in (nodes, nodes + 1))
    assert more.device_gib <= fewer.device_gib + 1e-9
    assert more.host_gib <= fewer.host_gib + 1e-9


@properties
@given(precision=precisions, length=lengths, rows=batches, stage=st.sampled_from(["zero2", "zero3"]))
def test_offload_moves_what_lasts_and_neither_creates_nor_destroys_it(precision, length, rows, stage):
    step_shape = StepShape(rows, length, True, precision)
    plain = full(step_shape, stage, device=DEVICES["CPU"])
    offloaded = full(step_shape, f"{stage}_offload", device=DEVICES["CPU"])
    for item in ("weights", "optimizer states"):  # on a CPU, both places are the same memory
        in_device = [e.devices[0].get(item, 0.0) for e in (plain, offloaded)]
        assert in_device[0] == pytest.approx(in_device[1])
    on_gpu = full(step_shape, f"{stage}_offload")
    assert "optimizer states" not in on_gpu.device
    states = 12 * SMOL.parameters / GIB
    assert on_gpu.host["offloaded optimizer states"] == pytest.approx(states, rel=1e-3)
    assert on_gpu.device_gib < full(step_shape, stage).device_gib


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_each_stage_divides_what_the_one_before_does_and_one_thing_more(precision):
    width = 2 if precision == "fp16" else 4
    whole = SMOL.parameters * 1.0 / GIB
    step_shape = StepShape(64, 512, False, precision)  # activations so large that the backward pass is the peak
    expected = {
        "zero1": {"weights": width, "gradients": width, "optimizer states": 12 / 4},
        "zero2": {"weights": width, "gradients": width / 4, "optimizer states": 12 / 4},
        "zero3": {"weights": width / 4, "gradients": width / 4, "optimizer states": 12 / 4},
    }
    for stage, items in expected.items():
        needed = full(step_shape, stage)
        assert needed.phase == "forward and backward"
        for item, per_parameter in items.items():
            assert needed.device[item] == pytest.approx(per_parameter * whole, rel=1e-4), (stage, item)


def test_checkpointing_trades_layers_for_their_inputs():
    kept, recomputed = (full(StepShape(4, 512, checkpointing, "fp16"), "zero3") for checkpointing in (False, True))
    assert recomputed.device["activations"] < 0.5 * kept.device["activations"]


def test_with_a_large_vocabulary_logits_dominate():
    needed = full(StepShape(8, 512, True, "fp16"), "zero3")
    logits = 8 * 512 * SMOL.vocabulary * (4 + 4) / GIB  # what cross-entropy keeps in fp32, and its gradient
    assert logits < needed.device["activations"] < 2 * logits


def test_qlora_holds_each_weight_in_half_a_byte_and_its_constants():
    lora = LoraConfig(rank=16)
    shares = split(LLAMA_70B, lora, FourBit(), "fp16", 8, int(12e9))
    in_layers = sum(out * inside for out, inside in LLAMA_70B.linear_shapes.values())
    assert sum(s.weights.quantized for s in shares) == in_layers
    assert sum(s.weights.all for s in shares) == LLAMA_70B.parameters
    assert sum(len(s.layers) for s in shares) == 80
    assert [s.has_head for s in shares] == [False] * 7 + [True]
    assert sum(s.adapters for s in shares) == sum(adapter_parameters(LLAMA_70B, lora).values())


def test_double_quantization_saves_what_the_paper_says():
    """QLoRA (arXiv 2305.14314), section 3: 0.373 bits a parameter."""
    single, double = (
        adapted(StepShape(1, 64, True, "fp16", LoraConfig(rank=8), FourBit(double)), devices=8, model=LLAMA_70B)
        for double in (False, True)
    )
    saved = sum(a["weights"] - b["weights"] for a, b in zip(single.devices, double.devices, strict=True))
    assert saved * GIB * 8 / layer_weights(LLAMA_70B).quantized == pytest.approx(0.373, abs=0.01)


def test_experts_stay_in_sixteen_bits_and_are_counted_so():
    lora = LoraConfig(rank=8, target_modules=("q_proj",))
    shares = split(MIXTRAL, lora, FourBit(), "fp16", 8, int(19e9))
    assert sum(s.weights.fused for s in shares) == 45_097_156_608
    assert split(MIXTRAL, lora, FourBit(), "fp16", 8, int(13e9)) is None


def test_weights_that_no_device_can_hold_have_no_estimate():
    assert adapted(StepShape(1, 64, True, "fp16", LoraConfig(rank=8), FourBit()), devices=2, model=LLAMA_70B) is None


@pytest.mark.parametrize(("optimizer", "bytes_each"), [("adamw", 8), ("paged_adamw_8bit", 2.03), ("sgd", 0)])
@pytest.mark.parametrize("four_bit", [None, FourBit()])
def test_optimizers_of_adapters_differ_in_their_states(optimizer, bytes_each, four_bit):
    lora = LoraConfig(rank=64)
    needed = adapted(StepShape(1, 64, True, "fp16", lora, four_bit), optimizer=optimizer)
    trained = sum(adapter_parameters(SMOL, lora).values())
    assert needed.device.get("optimizer states", 0.0) * GIB == pytest.approx(bytes_each * trained, rel=0.01)


def test_a_mixture_of_experts_is_traced_in_every_precision():
    for precision in ("fp16", "bf16"):
        lora = LoraConfig(rank=8, target_modules=("q_proj",))
        step_shape = StepShape(1, 64, True, precision, lora, FourBit())
        assert adapted(step_shape, devices=1, model=MIXTRAL).device["activations"] > 0


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_one_device_holds_all_weights_and_states_in_fp32_and_autocast_their_copies(precision):
    """Gradients are fp32 as the weights are; the copies in 16 bits are there while products are computed.

    Where activations are not recomputed, layers keep the copies for their backward pass, and they are among these.
    """
    whole = SMOL.parameters / GIB
    needed = alone(StepShape(64, 512, True, precision))  # so many rows that the backward pass is the peak
    assert needed.phase == "forward and backward"
    bytes_each = {item: gib / whole for item, gib in needed.device.items()}
    lasting = ("weights", "gradients", "optimizer states")
    assert [bytes_each[item] for item in lasting] == pytest.approx([4, 4, 8])
    assert bytes_each.get("copies in 16 bits", 0) == pytest.approx(0 if precision == "fp32" else 2)
    assert "ZeRO buffers" not in needed.device
    assert len(needed.devices) == 1
    assert "copies in 16 bits" not in alone(StepShape(64, 512, False, precision)).device


def test_activations_of_one_device_are_those_of_autocast():
    step_shape = StepShape(4, 256, True, "bf16")
    under_zero, in_autocast = (measure(SMOL, replace(step_shape, autocast=a)).whole().all for a in (False, True))
    assert (
        alone(StepShape(64, 256, True, "bf16")).device["activations"]
        > full(StepShape(64, 256, True, "bf16"), "zero3").device["activations"]
    )
    assert in_autocast > under_zero


def test_one_worker_on_a_cpu_is_one_process_of_the_host():
    needed = alone(StepShape(1, 128, True, "fp32"), device=DEVICES["CPU"])
    assert needed.training_host_gib == pytest.approx(needed.device_gib)
    assert needed.device["weights"] == pytest.approx(4 * SMOL.parameters / GIB)
    assert needed.host["gathered model"] == pytest.approx(4 * SMOL.parameters / GIB)
    assert needed.shared_memory_gib == 0


@pytest.mark.parametrize("four_bit", [None, FourBit()])
def test_adapters_on_one_device_need_the_same_by_either_strategy(four_bit):
    step_shape = StepShape(2, 128, True, "fp16", LoraConfig(rank=8), four_bit)
    assert alone(step_shape) == adapted(step_shape, devices=1)


def test_a_base_in_sixteen_bits_takes_two_bytes_a_weight():
    lora = LoraConfig(rank=8)
    trained = sum(adapter_parameters(SMOL, lora).values())
    plain, quantized = (adapted(StepShape(1, 64, True, "fp16", lora, bits)) for bits in (None, FourBit()))
    assert plain.device["weights"] * GIB == pytest.approx(2 * SMOL.parameters + 4 * trained)
    assert quantized.device["weights"] < 0.7 * plain.device["weights"]  # its embeddings are large, and fp32 then


@pytest.mark.parametrize("strategy", [adapted, alone])
def test_a_validation_that_holds_more_than_training_is_the_peak(strategy):
    step_shape = StepShape(1, 64, True, "fp16", LoraConfig(rank=8))
    training, held = strategy(step_shape), 8 * GIB
    needed = strategy(step_shape, validation_bytes=held)
    assert (training.phase, needed.phase) == ("forward and backward", "validation")
    assert needed.device["activations"] == pytest.approx(8)
    for item in ("weights", "optimizer states", "gradients"):
        assert needed.device[item] == training.device[item]


def test_a_validation_that_holds_less_than_training_changes_nothing():
    step_shape = StepShape(4, 256, False, "bf16")
    assert alone(step_shape, validation_bytes=1) == alone(step_shape)


def test_the_estimate_of_a_process_on_a_cpu_is_the_host():
    needed = full(StepShape(1, 128, True, "bf16"), "zero3", devices=2, device=DEVICES["CPU"])
    assert needed.training_host_gib == pytest.approx(2 * needed.device_gib)
    assert needed.shared_memory_gib == 0


def divided(model, **shape):
    """QLoRA under ZeRO-3 on eight T4."""
    step = StepShape(1, 1024, True, "fp16", tuned=LoraConfig(), four_bit=FourBit(), **shape)
    settings = settings_of("zero3", STAGES["zero3"])
    return estimate(STRATEGIES["zero"], model, step, Machines(T4, 14.56, 1, 8), settings=settings)


def test_a_base_of_70b_in_four_bits_is_divided_over_eight_t4():
    made = divided(LLAMA_70B)
    device = made.devices[0]
    assert sum(device.values()) < 14.6
    assert sum(made.host.values()) < 347
    in_layers = layer_weights(LLAMA_70B).quantized / 2 / 8
    assert in_layers < device["weights"] * GIB < 1.1 * in_layers, "with embeddings, head and adapters in 16 bits"
    # Whole on every rank: with double quantization a 64th of a byte and a 256th of four more for each weight.
    constants = device["constants of the 4-bit weights"] * GIB
    assert constants == pytest.approx(layer_weights(LLAMA_70B).quantized * FourBit().constants, rel=0.01)


def test_experts_that_each_process_joins_while_it_loads_are_in_the_memory_of_the_host():
    """Mixtral's 84 GiB are copied by every rank that maps its files, and no host has room for eight of them."""
    assert divided(MIXTRAL).host["loading"] > 8 * 84
    assert divided(LLAMA_70B).host["loading"] < 1


@pytest.mark.parametrize("tuned", [None, LoraConfig(rank=8)])
def test_an_8_bit_optimizer_has_no_temporaries_on_a_gpu(tuned):
    """It was charged AdamW's fp32 copy of all that trains, though its kernel steps each weight in place."""

    def working(optimizer, device):
        shape, machines = StepShape(1, 64, True, "bf16", tuned), Machines(device, 14.56, 1, 1)
        needs = STRATEGIES["single"].memory(SMOL, shape, machines, "", optimizer)
        return needs.devices[0]["optimizer step"]["optimizer's working memory"]

    trained = SMOL.parameters if tuned is None else sum(adapter_parameters(SMOL, tuned).values())
    assert working("adamw", T4) == 4 * trained
    assert working("paged_adamw_8bit", T4) == working("adamw_8bit", T4) == 0
    assert working("adamw_8bit", DEVICES["CPU"]) > 0


def test_a_t4_has_the_context_that_was_measured_and_processes_that_talk_have_buffers():
    step_shape = StepShape(1, 64, True, "fp16")
    one, four = alone(step_shape).device, full(step_shape, "zero2").device
    assert one["CUDA context"] == four["CUDA context"] == pytest.approx(141 / 1024)
    assert "collectives" not in one
    assert four["collectives"] == pytest.approx(0.25)
    lasting = {"weights", "gradients", "optimizer states"}
    passing = sum(gib for item, gib in one.items() if item not in {*lasting, "CUDA context", "fragmentation"})
    assert one["fragmentation"] == pytest.approx(0.3 * passing)


def test_copies_of_a_model_begin_with_two_buckets_of_its_weights():
    """For adapters on a small model that is more than training takes, and a plan without it is too low."""
    step_shape, machines = StepShape(1, 16, True, "fp32", LoraConfig(rank=2)), Machines(DEVICES["CPU"], 0.0, 1, 2)
    (start, _) = [
        d["start on all devices"] for d in STRATEGIES["ddp"].memory(SMOL, step_shape, machines, "", "adamw").devices
    ]
    assert start["weights"] > start["copies being sent"] == 2 * 250 * 2**20
