"""Memory of a model that is served: beside what a real one holds; and the node that has room for it."""

import re
from dataclasses import replace

import pytest
import torch

from thriftune.config import HardwareConfig, ModelConfig
from thriftune.errors import ConfigError
from thriftune.hardware import DEVICES
from thriftune.inference.serving.cache import RowCache
from thriftune.models import architecture
from thriftune.models.loading import Placement, attach_adapters, load_model
from thriftune.models.quantization import FourBit
from thriftune.overhead import CONTEXT, GIB, MARGIN
from thriftune.planning import catalogue, offers, serving
from thriftune.planning.memory.validating import cache_of_row
from thriftune.planning.served_adapters import AdapterSize, size_in, sizes_of, slot_rank, slots_elements
from thriftune.planning.serving import (
    ADAPTERS,
    CACHE,
    COPY,
    LOGITS,
    Served,
    base_bytes,
    in_words,
    needed,
    plan,
    plan_here,
)
from thriftune.strategies.memory.items import ACTIVATIONS, WEIGHTS

LLAMA = architecture.of(ModelConfig(source="meta-llama/Llama-2-7b-hf"))
T4, CPU = DEVICES["T4"], DEVICES["CPU"]
CATALOGUE = catalogue.load()
EIGHT = sizes_of(LLAMA, 16, 8)
USUAL = Served(LLAMA, 4, EIGHT, sequences=4, tokens=1024)


@pytest.fixture(scope="module")
def tiny(tiny_model_dir):
    return architecture.of(ModelConfig(source=str(tiny_model_dir)))


def cache_of(model_dir, rows: int, tokens: int):
    """What a real model keeps of rows."""
    model = load_model(model_dir, Placement(CPU, "fp32"))
    with torch.no_grad():
        return model(torch.ones(rows, tokens, dtype=torch.long), use_cache=True).past_key_values


def bytes_of(model) -> int:
    """Bytes of all tensors of a model, with the constants of quantized ones."""
    found = 0
    for parameter in model.parameters():
        found += parameter.numel() * parameter.element_size()
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            found += state.absmax.numel() * state.absmax.element_size()
            if state.nested:
                found += state.state2.absmax.numel() * 4
    return found


@pytest.mark.parametrize("four_bit", [None, FourBit()])
def test_the_base_takes_what_a_loaded_one_does(tiny, tiny_model_dir, four_bit):
    model = load_model(tiny_model_dir, Placement(CPU, "fp32", four_bit))
    bits = 4 if four_bit else 16
    # Blocks of the smallest layers are not full: a model of usual size has none of those.
    assert bytes_of(model) == pytest.approx(base_bytes(tiny, bits, "fp32"), rel=0.01)


def test_a_base_in_16_bits_on_a_gpu_takes_half(tiny, tiny_model_dir):
    model = load_model(tiny_model_dir, Placement(CPU, "bf16"))
    assert bytes_of(model) == base_bytes(tiny, 16, "bf16")


def test_8_bits_take_what_bitsandbytes_makes_of_the_same_layers(tiny, tiny_model_dir):
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_8bit=True)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, quantization_config=config, dtype=torch.float32)
    held = bytes_of(model)
    held += sum(4 * p.SCB.numel() for p in model.parameters() if getattr(p, "SCB", None) is not None)
    assert held == pytest.approx(base_bytes(tiny, 8, "fp32"), rel=0.01)


def test_the_cache_takes_what_a_real_one_does(tiny, tiny_model_dir):
    cache = cache_of(tiny_model_dir, 3, 40)
    held = sum(t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values))
    assert held == 3 * cache_of_row(tiny, "fp32", 40)


def test_adapters_take_what_peft_holds_of_them(tiny, tiny_model_dir, random_adapter):
    directories = {"one": random_adapter(1), "two": random_adapter(2, rank=8)}
    sizes = tuple(size_in(directory, name) for name, directory in directories.items())
    assert [(size.name, size.rank) for size in sizes] == [("one", 4), ("two", 8)]
    model = attach_adapters(load_model(tiny_model_dir, Placement(CPU, "bf16")), directories)
    held = sum(p.numel() * p.element_size() for name, p in model.named_parameters() if "lora_" in name)
    items = needed(Served(tiny, 16, sizes, 2, 64, precision="bf16"), CPU)
    assert items[ADAPTERS] == held
    assert sizes_of(tiny, 8, 1)[0].elements == sizes[1].elements


def test_vllm_has_slots_of_one_rank_on_every_layer():
    # On every linear layer; and A and B of the embeddings and the head, with 256 words that an adapter may add.
    words = 2 * (16 * (32000 + 256 + 4096) + 256 * 4096)
    assert slots_elements(LLAMA, 16) == EIGHT[0].elements + words
    mixed = (AdapterSize("a", 10, 4), AdapterSize("b", 10, 9))
    assert slot_rank(mixed) == 16
    items = needed(replace(USUAL, adapters=mixed, engine="vllm"), T4)
    assert items[ADAPTERS] == 2 * 2 * (EIGHT[0].elements + words)
    with pytest.raises(ConfigError, match=r"adapters\.big = 600: has rank 600; vLLM serves adapters up to 512"):
        slot_rank((AdapterSize("big", 1, 600),))


def test_a_slot_is_not_divided_as_its_layer_is():
    """vLLM has A of a layer divided by its outputs whole on each GPU, and B of one divided by its inputs."""
    attention = 4 * (4096 + 4096 / 4)  # A of q, k and v is whole, and B of o
    feed_forward = 3 * (4096 + 11008 / 4)
    words = slots_elements(LLAMA, 16) - EIGHT[0].elements
    assert slots_elements(LLAMA, 16, 4) == 32 * 16 * (attention + feed_forward) + words
    items = needed(replace(USUAL, bits=16, engine="vllm"), T4, 4)
    assert items[ADAPTERS] == 8 * 2 * slots_elements(LLAMA, 16, 4)
    assert items[CACHE] == needed(USUAL, T4)[CACHE] // 4


def test_vllm_reads_several_short_questions_at_once(tiny):
    """It computes 2,048 tokens at a time; of a model of 256 positions, those of eight questions."""
    one = needed(Served(tiny, 16, (), 1, 256), T4)
    assert needed(Served(tiny, 16, (), 9, 256, "vllm"), T4)[ACTIVATIONS] == 8 * one[ACTIVATIONS]


def test_our_own_server_has_room_for_the_cache_twice(tiny_model_dir):
    """Rows that join or leave are copied into a new cache, all of them; vLLM has pages."""
    items = needed(USUAL, T4)
    assert items[ACTIVATIONS] + items[LOGITS] + items[COPY] == items[CACHE]
    assert COPY not in needed(replace(USUAL, engine="vllm"), T4)
    joined = RowCache.of(held := cache_of(tiny_model_dir, 2, 30), torch.ones(2, 30)).joined(
        RowCache.of(cache_of(tiny_model_dir, 1, 12), torch.ones(1, 12))
    )
    assert {part.shape[:3:2] for layer in joined.layers for part in layer} == {(3, 30)}
    assert all(layer.keys.shape[0] == 2 for layer in held.layers)  # which is still there, if memory ends meanwhile


def test_a_7b_base_in_4_bits_with_eight_adapters_is_served_on_one_t4():
    found = plan(USUAL, HardwareConfig(), CATALOGUE)
    assert (found.node.instance, found.node.devices, found.node.precision) == ("g4dn.xlarge", 1, "fp16")
    assert found.items[CACHE] == 4 * 1024 * 2 * 32 * 32 * 128 * 2
    assert found.items[WEIGHTS] / GIB == pytest.approx(3.6, abs=0.1)
    assert {CONTEXT, MARGIN} <= found.items.keys()
    assert found.needed_gib < found.limit_gib == 14.56
    assert "keys and values 2.00" in found.sentence


@pytest.mark.parametrize(
    ("changes", "message", "remedy"),
    [
        ({"sequences": 64}, "64 x 1024 tokens: needs [0-9.]+ GiB where T4 of .* keys and values 32.00", "at most 7 at"),
        ({"bits": 16}, "weights 12.55", r"Hold the base in 4 bits \(9.5 GiB\), or use g6.xlarge"),
        ({"sequences": 64, "engine": "vllm"}, "where T4 of g4dn.* has 13.1 for it", "at most [0-9]+ at a time"),
        ({"tokens": 5000}, "was made for 4,096 tokens", "at most 4096"),
        ({"sequences": 0}, "sequences = 0: is less than one", ""),
        ({"bits": 8, "engine": "vllm"}, "bits = 8", "Use 4 or 16"),
    ],
)
def test_what_does_not_fit_is_refused_with_numbers_and_what_would(changes, message, remedy):
    with pytest.raises(ConfigError) as caught:
        plan(replace(USUAL, **changes), HardwareConfig(device="T4"), CATALOGUE)
    (problem,) = caught.value.problems
    assert re.search(message, str(problem))
    assert re.search(remedy, problem.remedy)
    assert problem.code == "plan-does-not-fit"


def test_what_a_refusal_says_would_fit_does():
    asked = replace(USUAL, sequences=32)
    with pytest.raises(ConfigError) as caught:
        plan(asked, HardwareConfig(device="T4"), CATALOGUE)
    fewer = int(re.search(r"at most (\d+) at a time", str(caught.value)).group(1))
    plan(replace(asked, sequences=fewer), HardwareConfig(device="T4"), CATALOGUE)
    with pytest.raises(ConfigError):
        plan(replace(asked, sequences=fewer + 1), HardwareConfig(device="T4"), CATALOGUE)
    node = re.search(r"or use (\S+)\.$", caught.value.problems[0].remedy).group(1)
    assert plan(asked, HardwareConfig(), CATALOGUE).node.instance == node


def test_vllm_splits_a_model_over_as_many_gpus_as_its_heads_allow():
    found = plan(replace(USUAL, bits=16, engine="vllm"), HardwareConfig(device="T4"), CATALOGUE)
    assert (found.node.instance, found.node.devices) == ("g4dn.12xlarge", 2)
    assert found.items[WEIGHTS] == base_bytes(LLAMA, 16, "fp16") // 2
    assert found.node.request.gpus == 2


def test_this_machine_is_held_against_its_memory(tiny):
    here = offers.this_machine()
    served = Served(tiny, 16, (), 2, 64)
    assert plan_here(served, here).node.instance == offers.THIS_MACHINE
    with pytest.raises(ConfigError, match="Answer at most"):
        plan_here(replace(served, sequences=10**8), replace(here, device=CPU))
    assert in_words({"a": GIB}) == "a 1.00"
    assert serving.adapter_bytes(replace(served, engine="vllm"), "fp16") == 0
