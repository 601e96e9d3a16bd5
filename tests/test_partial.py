"""Partial fine-tuning: what is chosen trains, all else stays bit for bit as it was, and new layers begin as none.

One process, the tiny model, the real Trainer; strategies are compared with each other in test_equivalence.py.
"""

import json

import pytest
import torch
from planning import TINY, planned
from safetensors.torch import load_file

from thriftune.checkpoints.location import CheckpointLocation
from thriftune.config import DataConfig, PartialConfig
from thriftune.config.methods import LastLayers
from thriftune.data import prepare
from thriftune.data.prepared import VALIDATION, load_split
from thriftune.errors import ConfigError
from thriftune.hardware import DEVICES
from thriftune.methods import METHODS, added_layers
from thriftune.models import architecture
from thriftune.models.tokenizer import load_tokenizer
from thriftune.planning import suggestions
from thriftune.preflight import trained_parts
from thriftune.preflight.base_model import BaseModel
from thriftune.strategies import STRATEGIES, Machines
from thriftune.strategies.memory.activations import StepShape
from thriftune.strategies.memory.items import ACTIVATIONS, FORWARD_BACKWARD, GRADIENTS, STATES, WEIGHTS
from thriftune.training import fit as fitting
from thriftune.training.fit import Inputs, fit
from thriftune.training.held_out import held_out_loss
from thriftune.training.resumable import ResumableTrainer

STEPS = 5
TOP, HEAD = [{"last_layers": 1}], ["head"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tiny_model_dir, chat_rows_file):
    directory = tmp_path_factory.mktemp("partial") / "dataset"
    data = DataConfig(source=str(chat_rows_file), format="chat", max_length=64)
    prepare.prepare(data, seed=0, tokenizer_dir=tiny_model_dir, destination=directory)
    return directory


@pytest.fixture(scope="module")
def stored_in_bf16(tiny_model_dir, tmp_path_factory):
    """The tiny model as base models are stored."""
    from transformers import AutoModelForCausalLM

    directory = tmp_path_factory.mktemp("bf16")
    AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16).save_pretrained(directory)
    load_tokenizer(tiny_model_dir).save_pretrained(directory)
    return directory


@pytest.fixture
def training(run_config, tiny_model_dir, dataset, tmp_path, monkeypatch):
    """Train for some steps, with a checkpoint every third; the result, its directory and what the Trainer held."""
    held = []
    save = fitting._save

    def watched(inputs, loaded, *arguments):
        held.append(loaded.trainer)
        save(inputs, loaded, *arguments)

    monkeypatch.setattr(fitting, "_save", watched)

    def train(train=(), added=0, model=tiny_model_dir, where="run", **overrides):
        wanted = {
            "global_batch": 4, "micro_batch": 4, "max_steps": STEPS, "log_every": 1, "precision": "fp32",
            "learning_rate": 1e-2, "scheduler": "constant", "warmup_share": 0.0, "gradient_checkpointing": False,
        }  # fmt: skip
        config = run_config(
            "partial",
            strategy="single",
            training={**wanted, **overrides},
            partial={"train": train, "add_layers": added},
            checkpoints={"every_steps": 3, "keep_checkpoints": 9},
            evaluation={"max_new_tokens": 4, "every_steps": STEPS},
        )
        place = CheckpointLocation(str(tmp_path / where), tmp_path / f"{where}-scratch", 10.0)
        plan = planned(config, model=model)
        result = fit(Inputs(config, plan, model, dataset, checkpoints=place), tmp_path / f"{where}-out")
        return result, tmp_path / f"{where}-out", plan, held[-1]

    return train


def weights_in(directory):
    return load_file(directory / "model.safetensors")


def loss_of(directory, dataset):
    """The held-out loss of a directory that plain transformers loads."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return held_out_loss(model, load_tokenizer(directory), load_split(dataset, VALIDATION), batch=4)[0]


CHOICES = {
    "the top layer and the head": ([*TOP, "head"], ("model.layers.1.", "lm_head.")),
    "the norms": (["norms"], ("layernorm.", "model.norm.")),
    "embeddings and a pattern": (["embeddings", "model.layers.*.mlp.up_proj.weight"], ("embed_tokens", "up_proj")),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOICES)
def test_what_is_chosen_trains_and_all_else_stays(training, tiny_model_dir, dataset, name):
    train, parts = CHOICES[name]
    result, saved, plan, trainer = training(train)
    before, after = weights_in(tiny_model_dir), weights_in(saved)
    chosen = {key for key in before if any(part in key for part in parts)}
    assert 0 < len(chosen) < len(before)
    assert before.keys() == after.keys()
    assert {key for key in before if not before[key].equal(after[key])} == chosen
    counted = sum(before[key].numel() for key in chosen)
    assert plan.trained_parameters == counted
    # Nothing is kept for the others either: no gradient, no state of the optimizer, no place in a checkpoint.
    stepped = trainer.optimizer.optimizer.state
    assert sum(p.numel() for p in stepped) == counted
    frozen = [p for key, p in trainer.model.named_parameters() if key not in chosen]
    assert all(p.grad is None and p not in stepped for p in frozen)
    assert result.after.loss < result.before.loss - 0.01
    assert loss_of(saved, dataset) == pytest.approx(result.after.loss, abs=1e-5)


@pytest.mark.slow
def test_a_checkpoint_holds_what_trains_and_a_cut_off_training_goes_on_from_it(training, monkeypatch, tmp_path):
    """New layers too, which are made again from the seed."""
    calm, saved, _, trainer = training(["head"], added=1, where="calm")
    files = sorted((tmp_path / "calm").rglob("checkpoint-*/**/model.safetensors"))
    assert files
    for file in files:
        assert load_file(file).keys() == {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    compute = ResumableTrainer.compute_loss

    def cut_off(self, *arguments, **options):
        if self.state.global_step == STEPS - 2:
            raise KeyboardInterrupt
        return compute(self, *arguments, **options)

    monkeypatch.setattr(ResumableTrainer, "compute_loss", cut_off)
    with pytest.raises(KeyboardInterrupt):
        training(["head"], added=1, where="cut")
    monkeypatch.setattr(ResumableTrainer, "compute_loss", compute)
    result, again, *_ = training(["head"], added=1, where="cut")
    assert (result.resumed_at, result.losses) == (3, calm.losses)
    ours, theirs = weights_in(again), weights_in(saved)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
@pytest.mark.parametrize("base", ["bf16", "fp32"])
def test_sixteen_bits_change_no_frozen_weight(training, stored_in_bf16, tiny_model_dir, dataset, base):
    """In memory they may be rounded: what is saved is read from the base model, and has its type."""
    model = {"bf16": stored_in_bf16, "fp32": tiny_model_dir}[base]
    result, saved, _, trainer = training(TOP, model=model, precision="bf16")
    held = {p.dtype for p in trainer.model.parameters() if not p.requires_grad}
    masters = {p.dtype for p in trainer.model.parameters() if p.requires_grad}
    assert (held, masters) == ({torch.bfloat16}, {torch.float32})
    before, after = weights_in(model), weights_in(saved)
    assert {tensor.dtype for tensor in after.values()} == {tensor.dtype for tensor in before.values()}
    changed = {key for key in before if not before[key].equal(after[key])}
    assert changed == {key for key in before if "layers.1." in key}
    if base == "fp32":
        assert result.saved is None  # nothing is rounded
    else:
        assert result.saved.dtype == "bf16"
        assert result.saved.saved_loss == pytest.approx(loss_of(saved, dataset), abs=1e-5)


@pytest.mark.slow
def test_new_layers_begin_as_none_and_train(training, tiny_model_dir, dataset):
    """The result is an ordinary model with more layers, whose attention adds nothing, and it answers with a cache."""
    from transformers import AutoModelForCausalLM

    result, saved, plan, trainer = training(added=2)
    assert result.before.loss == pytest.approx(loss_of(tiny_model_dir, dataset), abs=1e-6)
    assert result.after.loss < result.before.loss - 0.01
    assert loss_of(saved, dataset) == pytest.approx(result.after.loss, abs=1e-5)
    before, after = weights_in(tiny_model_dir), weights_in(saved)
    assert json.loads((saved / "config.json").read_text())["num_hidden_layers"] == 4
    assert all(after[key].equal(before[key]) for key in before)
    new = {key: tensor for key, tensor in after.items() if key not in before}
    assert not any(tensor.any() for key, tensor in new.items() if "o_proj" in key)
    trained = {key for key in new if ".mlp." in key or "post_attention" in key}
    assert plan.trained_parameters == sum(new[key].numel() for key in trained)
    assert {n for n, p in trainer.model.named_parameters() if p.requires_grad} == trained
    model = AutoModelForCausalLM.from_pretrained(saved).eval()
    ids = torch.arange(5, 15)[None]
    with_cache, without = (model.generate(ids, max_new_tokens=6, do_sample=False, use_cache=c) for c in (True, False))
    assert with_cache.equal(without)


KINDS = {
    "llama": {}, "qwen2": {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 8,
    "use_sliding_window": True}, "qwen3": {}, "gemma": {}, "phi3": {}, "granite": {}, "smollm3": {}, "mistral": {},
}  # fmt: skip
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip


def of_kind(kind, **values):
    content = {"model_type": kind, **SIZES, **KINDS.get(kind, {}), **values}
    return architecture.from_content(content, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_with_new_layers_computes_what_it_did(kind):
    from transformers import AutoModelForCausalLM

    shape = of_kind(kind)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shape.config(), dtype=torch.float32).eval()
    ids = torch.randint(1, 64, (2, 12))
    expected = model(ids).logits
    METHODS["partial"].put_on(model, PartialConfig(add_layers=2), shape)
    assert model(ids).logits.equal(expected)
    larger = added_layers.grown(shape, 2)
    assert {name: tuple(p.shape) for name, p in model.named_parameters()} == larger.shapes
    assert model.config.to_dict() == {**larger.config().to_dict(), "dtype": model.config.to_dict()["dtype"]}
    model(input_ids=ids, labels=ids).loss.backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    last = tuple(f"layers.{index}.mlp.down_proj.weight" for index in (2, 3))
    assert moved == {name for name in larger.shapes if name.endswith(last)}


REFUSED = {
    "head_": (PartialConfig(train=("haed",)), r"partial\.train = haed: names no weight of llama, which has .*lm_head"),
    "layers": (PartialConfig(train=(LastLayers(last_layers=3),)), r"last_layers: 3: llama has 2 decoder layers"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_names_nothing_is_refused_with_what_there_is(run_config, name):
    section, message = REFUSED[name]
    config = run_config("partial", partial=section.model_dump())
    with pytest.raises(ConfigError, match=message):
        METHODS["partial"].check(config, of_kind("llama"))


@pytest.mark.parametrize(
    ("kind", "why"),
    [("gpt2", "not a list of one class"), ("gemma2", "not built like Llama's"), ("mixtral", "not built like Llama's")],
)
def test_layers_are_added_only_where_they_can_begin_as_none(run_config, kind, why):
    config = run_config("partial", partial={"add_layers": 1})
    with pytest.raises(ConfigError, match=rf"partial\.add_layers = 1: cannot be added to {kind}: .*{why}"):
        METHODS["partial"].check(config, of_kind(kind))


def test_a_run_that_names_nothing_is_refused(run_config):
    with pytest.raises(ConfigError, match=r"partial\.train: names nothing"):
        run_config("partial")


def test_the_head_of_a_model_with_tied_weights_is_its_embedding(run_config):
    shape = of_kind("llama", tie_word_embeddings=True)
    config = run_config("partial", partial={"train": HEAD})
    method = METHODS["partial"]
    assert method.trained_parts(method.section(config), shape) == {"model.embed_tokens": 64 * 32}
    assert method.remarks(config, shape) == ["the output head of this model is its embedding table: both train."]
    assert method.remarks(config, of_kind("llama")) == []


def memory_of(shape, train):
    """Bytes in the forward and backward pass of one device, with 16 bits; and the parameters that train."""
    section = None if train is None else PartialConfig(train=train)
    step_shape = StepShape(2, 64, gradient_checkpointing=False, precision="bf16", tuned=section)
    machines = Machines(DEVICES["A10G"], 22.0, 1, 1)
    needs = STRATEGIES["single"].memory(shape, step_shape, machines, "", "adamw")
    trained = METHODS["partial"].trained_parts(section, shape) if section else {}
    return needs.devices[0][FORWARD_BACKWARD], sum(trained.values())


def test_memory_counts_states_of_what_trains_and_activations_above_it():
    deep = of_kind("llama", num_hidden_layers=12)
    few, top = memory_of(deep, (LastLayers(last_layers=1),))
    every, whole = memory_of(deep, ("*",))
    assert whole == deep.parameters
    assert top == whole - of_kind("llama", num_hidden_layers=11).parameters
    assert (few[STATES], few[GRADIENTS]) == (8 * top, 4 * top)
    assert few[WEIGHTS] == 2 * (whole - top) + 4 * top
    below, _ = memory_of(deep, ("embeddings",))
    assert few[ACTIVATIONS] < 0.5 * below[ACTIVATIONS], "gradients pass all layers on their way to the embeddings"
    assert below[ACTIVATIONS] < every[ACTIVATIONS], "frozen layers do not keep what their own gradients need"
    as_full, _ = memory_of(deep, None)
    assert {item: size for item, size in as_full.items() if size} == every


def test_a_plan_counts_new_layers(run_config):
    config = run_config("partial", strategy="single", partial={"add_layers": 2})
    plan = planned(config)
    one = plan.trained_parameters // 2
    assert one == 3 * TINY.hidden_size * 64 + TINY.hidden_size
    base = planned(run_config("full", strategy="single"))
    assert plan.parameters - base.parameters > 2 * one, "with the attention that is switched off"
    assert plan.memory.disk["models"] > base.memory.disk["models"]


def test_the_preflight_says_what_cannot_train_and_what_trains_too(run_config):
    def found(shape, **partial):
        config = run_config("partial", partial=partial)
        problems = trained_parts.check(config, BaseModel(architecture=shape))
        return [(problem.code, problem.severity, problem.field) for problem in problems]

    assert found(of_kind("llama"), train=["haed"]) == [("config-invalid", "error", "partial.train")]
    assert found(of_kind("gpt2"), add_layers=1) == [("config-invalid", "error", "partial.add_layers")]
    assert found(of_kind("llama"), train=HEAD) == []
    assert found(of_kind("llama", tie_word_embeddings=True), train=HEAD) == [("training-remark", "note", "partial")]
    assert found(None, train=HEAD) == [("check-skipped", "note", "partial")]


def test_the_lighter_method_is_suggested_without_the_section(run_config):
    """A run file of method qlora with a section for partial is refused, so that nothing was suggested."""
    config = run_config("partial", partial={"train": HEAD})
    ((_, [(what, changed)]),) = suggestions._lighter_method(config, is_given=False)
    assert (what, changed.method, changed.partial) == ("method: qlora", "qlora", None)
