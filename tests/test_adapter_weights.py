"""Adapters whose weights are not all there, or do not fit, are refused by name wherever one is put on a model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from planning import planned
from safetensors.torch import load_file, save_file

from thriftune import artifacts
from thriftune.config import LoraConfig, ModelConfig
from thriftune.data import prepare
from thriftune.errors import AdapterError, ConfigError
from thriftune.hardware import DEVICES
from thriftune.inference.evaluation import evaluate
from thriftune.inference.generation import generate
from thriftune.models import architecture as architectures
from thriftune.models.adapter_resumption import require_alike, require_same_shape
from thriftune.models.adapter_weights import WEIGHTS, attach
from thriftune.models.answering import Sampling
from thriftune.models.loading import Placement, attach_adapters, load_model
from thriftune.models.merging import merge
from thriftune.training.fit import Inputs, fit

ALIKE = LoraConfig(rank=4, alpha=8)
PLACEMENT = Placement(DEVICES["CPU"], "fp32")
Weights = dict[str, torch.Tensor]


def prefixed(weights: Weights) -> Weights:
    return {f"module.{name}": weight for name, weight in weights.items()}


def half(weights: Weights) -> Weights:
    return {name: weight for name, weight in weights.items() if "layers.0" in name}


def deeper(weights: Weights) -> Weights:
    return weights | {name.replace("layers.0.", "layers.7."): weight.clone() for name, weight in half(weights).items()}


# What is done to the weights, and what is then said.
MISFITS: dict[str, tuple[Callable[[Weights], Weights], list[str]]] = {
    "prefixed": (prefixed, ["28 of its weights are missing", "`module.`, left by DistributedDataParallel"]),
    "half of them": (half, ["14 of its weights are missing", "model.layers.1.mlp.down_proj.lora_A.weight"]),
    "none": (lambda _: {}, ["28 of its weights are missing", "save it again"]),
    "of a deeper model": (
deeper,
        ["no place for 14 of its weights", "base_model.model.model.layers.7.mlp.down_proj.lora_A.weight"],
    ),
    "of a wider model": (
        lambda weights: {name: torch.cat([w, w], dim=1) for name, w in weights.items()},
        ["other shapes", "lora_A.weight is [4, ", "and should be [4, "],
    ),
}  # fmt: skip


@pytest.fixture(params=MISFITS)
def misfit(request, random_adapter):
    """An adapter whose weights do not fit, and what is to be said of it."""
    change, texts = MISFITS[request.param]
    directory = random_adapter(1)
    save_file(change(load_file(directory / WEIGHTS)), directory / WEIGHTS)
    return directory, texts


@pytest.fixture
def shape(tiny_model_dir):
    return architectures.of(ModelConfig(source=str(tiny_model_dir)))


def test_an_adapter_that_fits_is_not_refused(tiny_model_dir, random_adapter, shape):
    adapter = random_adapter(1)
    require_alike(ALIKE, shape, adapter)
    attached = attach(load_model(tiny_model_dir, PLACEMENT), adapter)
    saved = load_file(adapter / WEIGHTS)["base_model.model.model.layers.0.mlp.up_proj.lora_B.weight"]
    held = attached.base_model.model.model.layers[0].mlp.up_proj.lora_B["default"].weight
    assert torch.equal(held, saved)


def test_weights_that_do_not_fit_are_refused_before_and_while_they_are_loaded(misfit, tiny_model_dir, shape):
    """peft put the part that fits on the model, left the rest as it starts, and the run went on."""
    adapter, texts = misfit
    for use in (
        lambda: require_alike(ALIKE, shape, adapter),
        lambda: attach(load_model(tiny_model_dir, PLACEMENT), adapter),
    ):
        with pytest.raises(AdapterError) as caught:
            use()
        for text in texts:
            assert text in str(caught.value)


@pytest.fixture
def half_an_adapter(random_adapter):
    directory = random_adapter(3)
    save_file(half(load_file(directory / WEIGHTS)), directory / WEIGHTS)
    artifacts.write_manifest(directory, "adapter", artifacts.read_content(directory))  # it was never whole
    return directory


def test_every_use_of_an_adapter_refuses_half_of_one(
    half_an_adapter, random_adapter, tiny_model_dir, run_config, tmp_path
):
    sampling = Sampling(max_new_tokens=1)
    second = {"one": random_adapter(1), "two": half_an_adapter}
    uses: list[Callable[[], object]] = [
        lambda: merge(tiny_model_dir, half_an_adapter, tmp_path / "merged"),
        lambda: generate(
            tiny_model_dir, ["x"], adapters=second, placement=PLACEMENT, sampling=sampling, batch=1
        ),
        lambda: evaluate(tiny_model_dir, tmp_path, run_config("qlora"), PLACEMENT, half_an_adapter),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(AdapterError, match="14 of its weights are missing"):
            use()
    assert not (tmp_path / "merged").exists()


def test_training_does_not_go_on_from_half_an_adapter(
    half_an_adapter, run_config, tiny_model_dir, chat_rows_file, tmp_path
):
    lora = {"rank": 4, "alpha": 8, "resume_from": str(half_an_adapter)}
    config = run_config("qlora", lora=lora, model={"source": str(tiny_model_dir)})
    plan = planned(config, model=tiny_model_dir)
    dataset = tmp_path / "dataset"
    prepare.prepare(
        config.data.model_copy(update={"source": str(chat_rows_file)}), seed=0, tokenizer_dir=tiny_model_dir,
        destination=dataset,
    )  # fmt: skip
    with pytest.raises(AdapterError, match=r"lora\.resume_from = .*14 of its weights are missing"):
        fit(Inputs(config, plan, tiny_model_dir, dataset, half_an_adapter), tmp_path / "out")


def test_an_adapter_on_other_modules_is_not_gone_on_with(random_adapter, shape):
    """The run's target_modules were ignored."""
    with pytest.raises(ConfigError) as caught:
        require_alike(LoraConfig(rank=4, alpha=8, target_modules=("q_proj", "v_proj")), shape, random_adapter(1))
    text = str(caught.value)
    assert "lora.target_modules = q_proj, v_proj: the adapter to resume from is on down_proj, gate_proj, " in text
    assert "Write target_modules: [down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj]." in text


def test_an_adapter_on_named_modules_is_not_taken_for_one_on_all(tiny_model_dir, shape, tmp_path):
    """The default, every linear layer, was ignored as well."""
    from peft import get_peft_model

    from thriftune.methods.adapters import peft_config

    few = LoraConfig(rank=4, alpha=8, target_modules=("q_proj", "layers.0.self_attn.v_proj"))
    get_peft_model(load_model(tiny_model_dir, PLACEMENT), peft_config(few)).save_pretrained(tmp_path)
    require_alike(few, shape, tmp_path)
    with pytest.raises(ConfigError, match=r"target_modules = every linear layer: .* on q_proj, v_proj of some layers"):
        require_alike(ALIKE, shape, tmp_path)


def test_adapters_on_fused_experts_fit_when_they_are_put_back(tmp_path):
    """peft saves these under names that are not those of the model's parameters."""
    from peft import get_peft_model
    from transformers import MixtralConfig, MixtralForCausalLM

    from thriftune.methods.adapters import peft_config

    lora = LoraConfig(rank=2, alpha=4, dropout=0.0)
    config = MixtralConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    MixtralForCausalLM(config).save_pretrained(tmp_path / "base")
    base = load_model(tmp_path / "base", PLACEMENT)
    get_peft_model(base, peft_config(lora)).save_pretrained(tmp_path / "adapter")
    require_alike(lora, architectures.of(ModelConfig(source=str(tmp_path / "base"))), tmp_path / "adapter")
    assert attach(load_model(tmp_path / "base", PLACEMENT), tmp_path / "adapter")


def test_the_run_says_the_dropout_of_an_adapter_that_trains_on(tiny_model_dir, random_adapter):
    """The adapter's own was taken, whatever the run said."""
    attached = attach(load_model(tiny_model_dir, PLACEMENT), random_adapter(1), is_trainable=True, dropout=0.25)
    layer = attached.base_model.model.model.layers[0].mlp.up_proj
    assert layer.lora_dropout["default"].p == 0.25
    assert layer.lora_B["default"].weight.requires_grad


def test_an_adapter_cut_short_is_named(tiny_model_dir, random_adapter):
    adapter = random_adapter(1)
    (adapter / WEIGHTS).write_bytes((adapter / WEIGHTS).read_bytes()[:-4])
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors is truncated"):
        attach_adapters(load_model(tiny_model_dir, PLACEMENT), {"one": adapter})


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"target_modules": ["c_attn"]}, "peft cannot put it on the model: .*c_attn"),
        ({"peft_type": "LoRa"}, r"its adapter_config\.json cannot be used"),
    ],
    ids=["a module that was trained whole and is not there", "of another architecture", "of an unknown kind"],
)
def test_a_configuration_that_does_not_go_with_the_rest_is_refused(tiny_model_dir, random_adapter, change, text):
    adapter = random_adapter(1)
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(AdapterError, match=text):
        attach(load_model(tiny_model_dir, PLACEMENT), adapter)


def test_training_goes_on_from_safetensors_only(random_adapter, shape):
    adapter = random_adapter(1)
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"lora\.resume_from = .*: adapter_model\.safetensors is missing"):
        require_alike(ALIKE, shape, adapter)


def test_a_path_that_holds_no_adapter_is_not_looked_for_on_the_hub(tiny_model_dir):
    with pytest.raises(AdapterError, match=r"adapter = owner/name: has no adapter_config\.json"):
        attach(load_model(tiny_model_dir, PLACEMENT), Path("owner/name"))


def test_half_of_another_kind_of_adapter_is_refused_too(tiny_model_dir, tmp_path):
    """peft used what was there of it, and said nothing."""
    from peft import IA3Config, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype="float32")
    config = IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    get_peft_model(base, config).save_pretrained(tmp_path)
    whole = load_file(tmp_path / WEIGHTS)
    model = load_model(tiny_model_dir, PLACEMENT)
    assert attach(model, tmp_path)
    save_file(half(whole), tmp_path / WEIGHTS)
    with pytest.raises(AdapterError, match="of its weights are missing"):
        attach(load_model(tiny_model_dir, PLACEMENT), tmp_path)
    with pytest.raises(ConfigError, match="an adapter of type IA3, but only LoRA can be trained"):
        require_same_shape(ALIKE, tmp_path)
