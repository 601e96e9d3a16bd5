"""LLaMA-Adapter trains the upper layers' prompts and nothing else, and comes out as peft alone reads it."""

import pytest
import torch
from adapting import EXACT, loss, plain, prepared, run_of, train
from planning import TINY
from safetensors.torch import load_file, save_file
from test_architecture import shape_of

from thriftune.config import LlamaAdapterConfig
from thriftune.errors import AdapterError, ConfigError
from thriftune.hardware import DEVICES
from thriftune.inference.evaluation import evaluate
from thriftune.methods import METHODS
from thriftune.models.adapter_weights import WEIGHTS, attach
from thriftune.models.answering import Sampling, complete
from thriftune.models.loading import Placement, attach_adapters
from thriftune.models.tokenizer import load_tokenizer
from thriftune.strategies.memory.activations import StepShape, measure

STEPS = {"max_steps": 4, "learning_rate": 0.5}


@pytest.fixture(scope="module")
def dataset(chat_rows_file, tiny_model_dir, tmp_path_factory):
    return prepared(chat_rows_file, tiny_model_dir, tmp_path_factory.mktemp("llama-adapter"))


@pytest.fixture
def models(monkeypatch):
    """The models that are saved, as the Trainer holds them."""
    method, kept = METHODS["llama_adapter"], []
    real = method.save

    def save(trained, *arguments):
        kept.append(trained.model)
        real(trained, *arguments)

    monkeypatch.setattr(method, "save", save)
    return kept


def test_it_trains_is_saved_and_goes_on_after_a_kill(tiny_model_dir, dataset, tmp_path, models):
    sections = {"llama_adapter": {"tokens": 4, "layers": 2}}
    longer = run_of("llama_adapter", training=STEPS, **sections)
    straight = train(longer, tiny_model_dir, dataset, tmp_path / "straight")
    short = run_of("llama_adapter", training={**STEPS, "max_steps": 2}, **sections)
    train(short, tiny_model_dir, dataset, tmp_path / "short", tmp_path / "store")
    resumed = train(longer, tiny_model_dir, dataset, tmp_path / "out", tmp_path / "store")
    assert resumed.resumed_at == 2
    assert (resumed.losses, resumed.after) == (straight.losses, straight.after)
    mine, other = (load_file(tmp_path / name / WEIGHTS) for name in ("out", "straight"))
    assert sorted(name.rpartition(".")[2] for name in mine) == ["adaption_gate"] * 2 + ["adaption_prompt"] * 2
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert resumed.after.loss < resumed.before.loss - 0.05

    frozen = {name.replace(".self_attn.model.", ".self_attn."): p for name, p in models[-1].named_parameters()}
    base = dict(plain(tiny_model_dir).named_parameters())
    assert all(torch.equal(frozen[f"base_model.model.{name}"], weight) for name, weight in base.items())
    again = evaluate(tiny_model_dir, dataset, longer, Placement(DEVICES["CPU"], "fp32"), tmp_path / "out")
    assert again.loss == pytest.approx(resumed.after.loss, abs=EXACT)
    assert again.answers == resumed.after.answers
    loaded = plain(tiny_model_dir, tmp_path / "out")
    assert loss(loaded, tiny_model_dir, dataset) == pytest.approx(again.loss, abs=EXACT)
    _several(tiny_model_dir, tmp_path, dataset, resumed.after.loss)


def _several(model_dir, tmp_path, dataset, expected):
    """Two on one model: the second's weights went into the first. And half of one is refused."""
    both = attach_adapters(plain(model_dir), {"first": tmp_path / "out", "second": tmp_path / "short"}).eval()
    losses = {}
    for name in ("first", "second", "first"):
        both.set_adapter(name)
        losses[name] = loss(both, model_dir, dataset)
    assert losses["first"] == pytest.approx(expected, abs=EXACT)
    assert losses["second"] == pytest.approx(loss(plain(model_dir, tmp_path / "short"), model_dir, dataset), abs=EXACT)
    assert abs(losses["first"] - losses["second"]) > 0.01
    tokenizer, prompts = load_tokenizer(model_dir), [[1, 40, 41, 42, 43], [1, 50, 51]]
    alone = [next(complete(both, tokenizer, [ids], Sampling(4), batch=1)) for ids in prompts]
    assert list(complete(both, tokenizer, prompts, Sampling(4), batch=2)) == alone
    held = load_file(tmp_path / "out" / WEIGHTS)
    half = {name: tensor for name, tensor in held.items() if "layers.0." in name}
    longer = {name: torch.cat([tensor, tensor], dim=-1) for name, tensor in held.items()}
    for wrong, why in (
        (half, "2 of its weights are missing.*layers.1.self_attn.adaption_gate"),
        (longer, "other shapes"),
    ):
        save_file(wrong, tmp_path / "out" / WEIGHTS)
        with pytest.raises(AdapterError, match=why):
            attach(plain(model_dir), tmp_path / "out")


@pytest.mark.parametrize(("layers", "upper"), [(None, 30), (4, 4)])
def test_the_upper_layers_are_planned(layers, upper):
    method, section = METHODS["llama_adapter"], LlamaAdapterConfig(tokens=3, layers=layers)
    shape = shape_of("llama", num_hidden_layers=34)
    parts = method.trained_parts(section, shape)
    assert next(iter(parts)) == f"model.layers.{34 - upper}"
    assert len(parts) == upper
    model = method.put_on(shape.on_meta(torch.float32), section, shape)
    assert sum(parts.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert measure(TINY, StepShape(2, 64, True, "fp32", tuned=LlamaAdapterConfig())).whole().all > 0


@pytest.mark.parametrize(
    ("kind", "section", "said"),
    [
        ("qwen2", {}, "peft has it for models of type gpt2, llama, mistral"),
        ("llama", {"layers": 99}, "llama_adapter.layers = 99"),
    ],
)
def test_other_models_are_refused_with_those_that_there_are(run_config, kind, section, said):
    with pytest.raises(ConfigError, match=said):
        METHODS["llama_adapter"].check(run_config("llama_adapter", llama_adapter=section), shape_of(kind))
