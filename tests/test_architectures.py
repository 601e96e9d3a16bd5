"""The shipped architectures are those of the public models: each builds, with exactly the published parameters."""

import json
from importlib import resources

import pytest

PARAMETERS = {
    "meta-llama/Llama-2-7b-hf": 6_738_415_616,
    "meta-llama/Llama-2-13b-hf": 13_015_864_320,
    "meta-llama/Llama-2-70b-hf": 68_976_648_192,
    "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    "mistralai/Mixtral-8x7B-v0.1": 46_702_792_704,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "meta-llama/Llama-3.2-1B": 1_235_814_400,
    "meta-llama/Llama-3.2-3B": 3_212_749_824,
    "google/gemma-2b": 2_506_172_416,
    "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T": 1_100_048_384,
}


def architecture(model):
    name = model.lower().replace("/", "--") + ".json"
    return json.loads((resources.files("thriftune.models.architectures") / name).read_text(encoding="utf-8"))


def test_every_file_has_a_published_count_to_be_tested_against():
    files = {f.name for f in resources.files("thriftune.models.architectures").iterdir() if f.name.endswith(".json")}
    assert files == {model.lower().replace("/", "--") + ".json" for model in PARAMETERS}


@pytest.mark.parametrize(("model", "parameters"), PARAMETERS.items())
def test_the_parameters_are_as_many_as_published(model, parameters):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    values = architecture(model)
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(AutoConfig.for_model(**values))
    assert [type(built).__name__] == values["architectures"]
    assert sum(parameter.numel() for parameter in built.parameters()) == parameters


@pytest.mark.parametrize("model", PARAMETERS)
def test_every_value_is_one_that_transformers_takes_over(model):
    """A key that transformers does not know would be kept as a stray attribute and decide nothing."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    values = architecture(model)
    config = AutoConfig.for_model(**values)
    known = {*CONFIG_MAPPING[values["model_type"]]().to_dict(), "dtype", "architectures"}
    assert set(values) <= known
    assert str(config.dtype).removeprefix("torch.") == values["dtype"]
    for key in values.keys() - {"dtype", "rope_parameters"}:
        assert getattr(config, key) == values[key], key
    assert values["rope_parameters"].items() <= config.rope_parameters.items()
