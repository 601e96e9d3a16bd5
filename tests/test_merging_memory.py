"""What merging asks for: the memory of one weight, whatever the size of the model; all of it where it is converted."""

import pytest
from test_architecture import shape_of

from thriftune.config import ModelConfig
from thriftune.models import architecture as architectures
from thriftune.planning.merging import merging_gib


def need(run_config, source, max_length=1024, **lora):
    sections = {"model": {"source": source}, "hardware": {"device": "T4"}, "data": {"max_length": max_length}}
    config = run_config("qlora", **sections, lora={"rank": 16, **lora})
    return merging_gib(config, architectures.of(config.model))


def test_a_model_ten_times_as_large_needs_little_more(run_config):
    small, large = (need(run_config, f"meta-llama/Llama-2-{size}b-hf") for size in (7, 70))
    assert 1 < small < large < 6


def test_dora_and_embeddings_need_more(run_config):
    plain, dora = (need(run_config, "meta-llama/Llama-2-7b-hf", variant=variant) for variant in ("lora", "dora"))
    assert dora > plain + 0.2
    plain = need(run_config, "meta-llama/Llama-3.2-3B")
    assert need(run_config, "meta-llama/Llama-3.2-3B", modules_to_save=["embed_tokens"]) > plain + 3


def test_a_mixture_is_held_as_a_whole(run_config):
    whole = need(run_config, "mistralai/Mixtral-8x7B-v0.1")
    parameters = architectures.of(ModelConfig(source="mistralai/Mixtral-8x7B-v0.1")).parameters
    assert 0.5 < whole - 1.2 * 2 * parameters / 2**30 < 1, "with what it is compared by"


def test_long_rows_of_a_large_vocabulary_need_more(run_config):
    """The outputs of eight rows and two copies of them were held, 15 GB, and half a GiB was counted."""
    short, long = (need(run_config, "meta-llama/Llama-3.2-3B", max_length=length) for length in (1024, 4096))
    assert long - short == pytest.approx((2 * 128256 + 4 * 8192) * 4 * 3072 / 2**30, rel=0.2)


def test_what_cannot_be_merged_needs_nothing(run_config):
    assert merging_gib(run_config("full"), shape_of("llama")) == 0
    assert 0 < merging_gib(run_config("qlora"), shape_of("llama")) < 0.3
