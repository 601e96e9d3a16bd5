"""Variants of LoRA: first values, magnitudes, biases and whole modules train, and come out as peft alone reads them."""

import json

import pytest
import torch
from adapting import EXACT, EXACT_IN_FOUR_BITS, loss, plain, prepared, run_of, train
from peft import get_peft_model
from planning import TINY
from pydantic import ValidationError
from safetensors.torch import load_file
from test_architecture import shape_of

from thriftune.config import LoraConfig, RunConfig
from thriftune.config.methods import RankPattern
from thriftune.errors import AdapterError, ConfigError
from thriftune.methods import METHODS
from thriftune.methods.adapter_checks import require_adapters
from thriftune.methods.adapters import adapter_parameters, peft_config, resolved
from thriftune.models.adapter_resumption import require_same_shape
from thriftune.models.adapter_weights import WEIGHTS, attach
from thriftune.models.merging import merge

VALUE = ({"pattern": "v_proj", "rank": 2, "alpha": 6},)
RANKS = (RankPattern(pattern=r"layers\.0\..*_proj", rank=6), RankPattern(pattern="v_proj", rank=4))
VARIANTS = {
    "dora, other ranks and a whole module": {"variant": "dora", "rank_patterns": VALUE, "modules_to_save": ["lm_head"]},
    "pissa with rslora": {"variant": "rslora", "init": "pissa"},
    "olora with other ranks": {"init": "olora", "rank_patterns": VALUE},
    "eva": {"init": "eva"},
    "orthogonal": {"init": "orthogonal"},
}


@pytest.fixture(scope="module")
def dataset(chat_rows_file, tiny_model_dir, tmp_path_factory):
    return prepared(chat_rows_file, tiny_model_dir, tmp_path_factory.mktemp("variants"))


@pytest.fixture(scope="module")
def biased_dir(llama_tokenizer, tmp_path_factory):
    """A Qwen2, whose attention has biases."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    directory = tmp_path_factory.mktemp("biased")
    config = Qwen2Config(
        vocab_size=len(llama_tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False,
        bos_token_id=1, eos_token_id=2, pad_token_id=3,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).save_pretrained(directory)
    llama_tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("lora", VARIANTS.values(), ids=VARIANTS)
def test_a_variant_has_the_same_loss_loaded_by_peft_alone_and_merged(lora, tiny_model_dir, dataset, tmp_path):
    """PiSSA and OLoRA took a part of the base's weights with them, so that their adapters fitted no base."""
    config = run_of("lora", lora={"rank": 4, "alpha": 8, **lora})
    result = train(config, tiny_model_dir, dataset, tmp_path / "out")
    assert result.after.loss < result.before.loss
    assert loss(plain(tiny_model_dir, tmp_path / "out"), tiny_model_dir, dataset) == pytest.approx(
        result.after.loss, abs=EXACT
    )
    merge(tiny_model_dir, tmp_path / "out", tmp_path / "merged")
    assert loss(plain(tmp_path / "merged"), tiny_model_dir, dataset) == pytest.approx(result.after.loss, abs=1e-5)


def test_biases_and_whole_modules_train_on_a_base_in_four_bits(biased_dir, chat_rows_file, tmp_path):
    """Each of them was in fp16 where the Trainer scales the loss, and without an adapter's name in its own."""
    dataset = prepared(chat_rows_file, biased_dir, tmp_path)
    lora = {"rank": 4, "variant": "dora", "bias": "all", "modules_to_save": ["lm_head"], "target_modules": ["q_proj"]}
    result = train(run_of("qlora", lora=lora), biased_dir, dataset, tmp_path / "out")
    names = load_file(tmp_path / "out" / WEIGHTS)
    assert {name.rpartition("layers.1.")[2] for name in names if "layers.0." not in name} == {
        "self_attn.q_proj.lora_A.weight", "self_attn.q_proj.lora_B.weight", "self_attn.q_proj.lora_magnitude_vector",
        "self_attn.q_proj.base_layer.bias", "self_attn.k_proj.bias", "self_attn.v_proj.bias",
        "base_model.model.lm_head.weight",
    }  # fmt: skip
    loaded = plain(biased_dir, tmp_path / "out", four_bit=True)
    assert loss(loaded, biased_dir, dataset) == pytest.approx(result.after.loss, abs=EXACT_IN_FOUR_BITS)
    merge(biased_dir, tmp_path / "out", tmp_path / "merged")
    on_fp32 = loss(plain(biased_dir, tmp_path / "out"), biased_dir, dataset)
    assert on_fp32 < result.before.loss - 0.05
    assert loss(plain(tmp_path / "merged"), biased_dir, dataset) == pytest.approx(on_fp32, abs=1e-5)
    attached = attach(plain(biased_dir), tmp_path / "out")
    with pytest.raises(AdapterError, match="beside another"):
        attach(attached, tmp_path / "out", name="second")
    without = {name: tensor for name, tensor in names.items() if "k_proj.bias" not in name}
    from safetensors.torch import save_file

    save_file(without, tmp_path / "out" / WEIGHTS)
    with pytest.raises(AdapterError, match=r"2 of its weights are missing.*k_proj.bias"):
        attach(plain(biased_dir), tmp_path / "out")


def test_a_killed_training_goes_on_from_its_own_first_adapter(tiny_model_dir, dataset, tmp_path, monkeypatch):
    """The base that it trains on is not the one in the model's directory, and what is saved is a difference."""
    lora = {"rank": 4, "alpha": 8, "init": "pissa"}
    longer = run_of("lora", lora=lora, training={"max_steps": 4})
    train(longer, tiny_model_dir, dataset, tmp_path / "straight")
    short = run_of("lora", lora=lora)
    train(short, tiny_model_dir, dataset, tmp_path / "short", tmp_path / "store")
    monkeypatch.setattr(
        "thriftune.methods.initial_values._principal", lambda layer: pytest.fail("the first adapter is known already")
    )
    resumed = train(longer, tiny_model_dir, dataset, tmp_path / "resumed", tmp_path / "store")
    assert resumed.resumed_at == 2
    mine, other = (load_file(tmp_path / name / WEIGHTS) for name in ("resumed", "straight"))
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert {tensor.shape[0] for name, tensor in mine.items() if "lora_A" in name} == {8}, "the difference has rank 2r"


@pytest.mark.parametrize(
    ("kind", "lora"),
    [
        ("llama", {"variant": "dora", "target_modules": ("layers.1.self_attn.q_proj", "down_proj")}),
        ("llama", {"modules_to_save": ("lm_head", "mlp"), "target_modules": ("q_proj",)}),
        ("llama", {"rank_patterns": RANKS}),
        ("gpt2", {"bias": "all"}),
        ("qwen2", {"bias": "lora_only", "target_modules": ("layers.0.self_attn.q_proj",)}),
        ("mixtral", {"variant": "rslora", "modules_to_save": ("embed_tokens",)}),
    ],
)  # fmt: skip
def test_everything_that_trains_is_counted(kind, lora):
    """The plan of a run with a trained output head knew of its adapters alone."""
    shape, section = (
        shape_of(kind, **({"tie_word_embeddings": False} if kind != "gpt2" else {})),
        LoraConfig(rank=2, **lora),
    )
    require_adapters(section, shape)
    model = get_peft_model(shape.on_meta(torch.float32), peft_config(resolved(section, shape)))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(adapter_parameters(shape, section).values()) == trained
    bare = get_peft_model(shape.on_meta(torch.float32), peft_config(resolved(LoraConfig(rank=2), shape)))
    assert trained != sum(p.numel() for p in bare.parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("kind", "lora", "said"),
    [
        ("llama", {"rank_patterns": (RankPattern(pattern="c_attn", rank=2),)}, "lora.rank_patterns = c_attn"),
        ("llama", {"modules_to_save": ("norms",)}, "lora.modules_to_save = norms: no module"),
        ("gpt2", {"modules_to_save": ("lm_head",)}, "are the same weight"),
        ("llama", {"bias": "all"}, "has no such biases"),
        ("llama", {"init": "pissa", "rank": 512}, "lora.rank = 512: is more than .* singular values"),
        ("mixtral", {"init": "orthogonal"}, "lora.init = orthogonal: .*fused experts"),
        ("mixtral", {"variant": "dora"}, "does not work with use_dora"),
    ],
)
def test_what_peft_would_overlook_or_fail_at_is_refused_before_weights_are_read(kind, lora, said):
    with pytest.raises(ConfigError, match=said):
        require_adapters(LoraConfig(**{"rank": 2, **lora}), shape_of(kind))


@pytest.mark.parametrize(
    ("method", "lora", "more", "fields"),
    [
        ("qlora", {"init": "pissa"}, {}, ["lora.init"]),
        ("lora", {"init": "olora", "variant": "dora", "bias": "all"}, {}, ["lora.init", "lora.init"]),
        ("lora", {"init": "pissa", "variant": "rslora", "rank_patterns": VALUE}, {}, ["lora.init"]),
        ("lora", {"init": "eva", "resume_from": "adapter"}, {}, ["lora.init"]),
        ("lora", {"init": "eva"}, {"strategy": "zero"}, ["lora.init"]),
        ("lora", {"init": "eva"}, {"strategy": "layers"}, ["lora.init"]),
        ("lora", {"init": "orthogonal", "rank": 3}, {}, ["lora.rank"]),
        ("lora", {"rank_patterns": [{"pattern": "(", "rank": 2}]}, {}, ["lora.rank_patterns"]),
        ("lora", {"target_modules": ["q_proj"], "modules_to_save": ["q_proj"]}, {}, ["lora.modules_to_save"]),
    ],
)
def test_settings_that_cannot_go_together_are_refused_in_the_run_file(run_file, method, lora, more, fields):
    with pytest.raises((ConfigError, ValidationError)) as caught:
        RunConfig.model_validate(run_file(method, lora=lora, **more))
    assert [problem.field for problem in caught.value.problems] == fields


def test_a_continued_adapter_is_what_the_run_says(tmp_path):
    """Another variant was trained as the adapter's own, whatever the run said."""
    lora = LoraConfig(
        rank=4,
        alpha=8,
        variant="dora",
        bias="all",
        modules_to_save=("lm_head",),
        rank_patterns=(RankPattern(**VALUE[0]),),
    )
    peft_config(lora).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["use_dora"]
    require_same_shape(lora, tmp_path)
    with pytest.raises(ConfigError) as caught:
        require_same_shape(LoraConfig(rank=4, alpha=8), tmp_path)
    named = {"lora.variant", "lora.bias", "lora.modules_to_save", "lora.rank_patterns"}
    assert {problem.field for problem in caught.value.problems} == named


def test_each_of_these_settings_makes_another_training(run_config):
    plain_run = METHODS["lora"].identity(run_config("lora"))
    for lora in (
        {"variant": "dora"},
        {"init": "eva"},
        {"bias": "all"},
        {"modules_to_save": ["x"]},
        {"rank_patterns": VALUE},
    ):
        assert METHODS["lora"].identity(run_config("lora", lora=lora)) != plain_run


@pytest.mark.parametrize("module", ["q_proj", "mlp"])
def test_what_is_held_in_four_bits_does_not_train_as_a_whole(run_config, module):
    """The message blamed the model: its memory could not be planned."""
    config = run_config("qlora", lora={"target_modules": ["v_proj"], "modules_to_save": [module]})
    with pytest.raises(ConfigError, match=f"lora.modules_to_save = {module}: is held in 4 bits, or has parts"):
        METHODS["qlora"].check(config, TINY)
    METHODS["lora"].check(run_config("lora", lora=config.lora.model_dump()), TINY)
