"""What FSDP decides before there is a model, and what it counts; no process is started."""

import re
from dataclasses import replace

import pytest
import torch
from planning import TINY

from thriftune.checkpoints.restoring import needed_by
from thriftune.config import FsdpConfig, LoraConfig
from thriftune.distributed import Rank
from thriftune.errors import ConfigError
from thriftune.hardware import DEVICES
from thriftune.models import architecture as architectures
from thriftune.models.quantization import FourBit
from thriftune.overhead import GIB
from thriftune.planning.memory import estimate
from thriftune.planning.memory.estimate import CHECKPOINT
from thriftune.strategies import STRATEGIES, Machines
from thriftune.strategies.fsdp.memory import GATHERED
from thriftune.strategies.fsdp.policy import Settings, held_as, rows_of, unit_names
from thriftune.strategies.memory.activations import StepShape
from thriftune.strategies.memory.items import CONSTANTS, FORWARD_BACKWARD, GRADIENTS, STATES, WEIGHTS

T4, CPU = DEVICES["T4"], DEVICES["CPU"]
SHAPE = StepShape(1, 64, gradient_checkpointing=True, precision="fp16")
LLAMA = {
    "model_type": "llama", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1024,
}  # fmt: skip


@pytest.fixture(scope="module")
def llama():
    return architectures.from_content(LLAMA, "tiny")


def test_settings_survive_the_plan():
    section = FsdpConfig(param_dtype="bf16", wrap=("LlamaMLP",), reshard_after_forward=False, cpu_offload=True)
    settings = Settings.of(section)
    assert Settings.read(settings.write()) == settings
    assert settings.wrap == ("LlamaMLP",)
    assert Settings.read("") == Settings.of(FsdpConfig())


@pytest.mark.parametrize(
    ("param_dtype", "precision", "expected"),
    [("auto", "fp16", "fp16"), ("auto", "fp32", "fp32"), ("bf16", "fp32", "bf16"), ("fp32", "bf16", "fp32")],
)
def test_gathered_weights_have_the_training_s_type_or_the_one_that_is_named(param_dtype, precision, expected):
    assert Settings(param_dtype=param_dtype).computes_in(precision) == expected


@pytest.mark.parametrize(("param_dtype", "precision"), [("fp16", "fp32"), ("fp16", "bf16"), ("fp32", "fp16")])
def test_fp16_is_not_mixed_with_another_type_as_only_one_has_loss_scaling(param_dtype, precision):
    with pytest.raises(ConfigError, match="fp16") as caught:
        Settings(param_dtype=param_dtype).computes_in(precision)
    assert caught.value.problems[0].field == "fsdp.param_dtype"


def test_gradients_are_summed_in_fp32_unless_a_type_is_named():
    assert Settings().reduces_in == "fp32"
    assert Settings(reduce_dtype="fp16").reduces_in == "fp16"


def test_without_a_section_the_planner_may_move_shards_to_the_host(run_config):
    strategy = STRATEGIES["fsdp"]
    on_gpus = run_config(hardware={"device": "T4", "devices_per_node": 2})
    assert [Settings.read(text).cpu_offload for text in strategy.options(on_gpus).values()] == [False, True]
    named = run_config(strategy="fsdp", fsdp={"reduce_dtype": "bf16"}, hardware={"device": "T4"})
    (text,) = strategy.options(named).values()
    assert Settings.read(text) == Settings(reduce_dtype="bf16")
    assert len(strategy.options(run_config())) == 1, "a CPU has one memory"


def test_units_are_the_decoder_layers_or_the_classes_that_are_named(llama):
    assert unit_names(llama.skeleton, None) == tuple(f"model.layers.{i}" for i in range(4))
    assert unit_names(llama.skeleton, ("LlamaMLP",)) == tuple(f"model.layers.{i}.mlp" for i in range(4))
    with pytest.raises(ConfigError, match="such as LlamaDecoderLayer") as caught:
        unit_names(llama.skeleton, ("LlamaMLP", "GPT2Block"))
    assert (caught.value.problems[0].field, caught.value.problems[0].value) == ("fsdp.wrap", "GPT2Block")


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 401])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_rows_of_the_ranks_are_cut_as_torch_cuts_them(rows, ranks):
    whole = torch.arange(rows)
    expected = [*torch.chunk(whole, ranks), *[whole[:0]] * ranks][:ranks]
    assert [whole[rows_of(rank, ranks, rows)].tolist() for rank in range(ranks)] == [p.tolist() for p in expected]


def test_what_trains_is_held_as_master_weights():
    stored = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
    assert held_as(stored, torch.float16) == torch.float32
    stored.requires_grad = False
    assert held_as(stored, torch.float16) == torch.float16


def test_each_node_fetches_its_own_parts_and_all_where_the_ranks_are_others():
    names = ["sharded/__0_0.distcp", "sharded/__1_0.distcp", "sharded/__2_0.distcp", "sharded/.metadata",
             "optimizer.json", "scheduler.pt", "rng_state_3.pth"]  # fmt: skip
    second = Rank(index=2, local_index=0, world_size=4, local_world_size=2)
    as_many, others = needed_by(second, 4), needed_by(second, 2)
    assert [name for name in names if as_many(name)] == [names[2], *names[3:]]
    assert all(others(name) for name in names)


def memory_of(llama, ranks, *, offload=False, device=T4, **shape):
    machines = Machines(device, 14.6, 1, ranks)
    settings = Settings(cpu_offload=offload).write()
    return STRATEGIES["fsdp"].memory(llama, replace(SHAPE, **shape), machines, settings, "adamw")


def test_shards_states_and_gradients_are_divided_and_gathered_layers_are_not(llama):
    one, four = (memory_of(llama, ranks).devices[0][FORWARD_BACKWARD] for ranks in (1, 4))
    assert one[WEIGHTS] == one[GRADIENTS] == 4 * llama.parameters
    assert one[STATES] == 8 * llama.parameters
    for item in (WEIGHTS, GRADIENTS, STATES):
        assert four[item] == one[item] // 4
    assert four[GATHERED] == one[GATHERED]
    outside = 1024 * 256 + 256  # the output head and the last norm; embeddings are gathered at other moments
    assert one[GATHERED] == 2 * (3 * llama.layer_parameters + outside)


def test_a_frozen_base_has_neither_states_nor_gradients(llama):
    tuned = LoraConfig(rank=8)
    lora = memory_of(llama, 4, tuned=tuned).devices[0][FORWARD_BACKWARD]
    qlora = memory_of(llama, 4, tuned=tuned, four_bit=FourBit()).devices[0][FORWARD_BACKWARD]
    adapters = lora[STATES] // 2
    assert 0 < adapters < llama.parameters / 4
    assert lora[WEIGHTS] == pytest.approx((2 * llama.parameters) / 4 + adapters, abs=8)
    in_layers = 4 * (llama.layer_parameters - 2 * 256)
    assert lora[WEIGHTS] - qlora[WEIGHTS] == pytest.approx(1.5 * in_layers / 4, abs=8)
    assert qlora[CONSTANTS] == int(in_layers * FourBit().constants), "they stay whole on every rank"


def test_what_is_offloaded_is_in_host_memory_of_a_gpu_s_process_only(llama):
    moved, kept = memory_of(llama, 4, offload=True), memory_of(llama, 4)
    here = kept.devices[0][FORWARD_BACKWARD]
    assert moved.offloaded[STATES] == here[STATES]
    assert moved.devices[0][FORWARD_BACKWARD][STATES] == 0
    assert moved.devices[0][FORWARD_BACKWARD][GATHERED] == here[GATHERED]
    assert not memory_of(llama, 4, offload=True, device=CPU, precision="fp32").offloaded


def test_a_checkpoint_needs_a_copy_of_each_rank_s_part_of_what_trains_on_the_host(llama):
    machines, settings = Machines(T4, 14.6, 1, 4), Settings().write()
    for offload in (False, True):
        assert memory_of(llama, 4, offload=offload).saved == 12 * llama.parameters // 4
    planned = {
        device: estimate(STRATEGIES["fsdp"], llama, SHAPE, replace(machines, device=device), settings=settings)
        for device in (T4, CPU)
    }
    assert planned[T4].host[CHECKPOINT] == pytest.approx(12 * llama.parameters / GIB)
    assert CHECKPOINT not in planned[T4].devices[0]
    assert planned[CPU].devices[0][CHECKPOINT] == pytest.approx(3 * llama.parameters / GIB)


def test_copies_need_what_one_device_needs_and_a_bucket_for_every_gradient(llama):
    machines = Machines(T4, 14.6, 2, 4)
    copies = STRATEGIES["ddp"].memory(llama, SHAPE, machines, "", "adamw").devices
    alone = STRATEGIES["single"].memory(llama, SHAPE, replace(machines, nodes=1, devices_per_node=1), "", "adamw")
    assert len(copies) == 4
    for moment, items in alone.devices[0].items():
        assert copies[0][moment] == {**items, "gradient buckets": items[GRADIENTS]}


@pytest.mark.parametrize(
    ("settings", "precision", "device", "text"),
    [
        (Settings(reduce_dtype="fp16"), "bf16", "A10G", "fsdp.reduce_dtype = fp16: has too small a range"),
        (Settings(reduce_dtype="bf16"), "fp16", "T4", "fsdp.reduce_dtype = bf16: T4 has no bfloat16"),
        (Settings(param_dtype="bf16"), "fp32", "T4", "fsdp.param_dtype = bf16: T4 has no bfloat16"),
    ],
)
def test_types_that_a_device_or_loss_scaling_does_not_bear_are_refused(settings, precision, device, text):
    """They were planned: small gradients became 0 without a word, or torch emulated bfloat16."""
    with pytest.raises(ConfigError, match=re.escape(text)):
        settings.require_types(precision, DEVICES[device])
    Settings().require_types(precision, DEVICES[device])


@pytest.mark.parametrize("kind", ["Embedding", "Linear", "LlamaModel"])
def test_a_class_that_cannot_be_a_unit_is_refused(kind):
    """The planner took it, and the training failed on GPUs that were paid for."""
    with pytest.raises(ConfigError, match=f"fsdp.wrap = {kind}: is the class of .* neither a decoder layer nor a part"):
        unit_names(TINY.skeleton, ("LlamaDecoderLayer", kind))
    assert unit_names(TINY.skeleton, ("LlamaMLP",)) == ("model.layers.0.mlp", "model.layers.1.mlp")
