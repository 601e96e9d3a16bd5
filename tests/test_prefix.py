"""Prefix tuning trains what peft trains, also with recomputed layers, and comes out as peft alone reads it."""

import pytest
import torch
from adapting import EXACT, loss, plain, prepared, run_of, train
from peft import PeftModelForCausalLM, PrefixTuningConfig
from planning import TINY
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from test_architecture import shape_of
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointWrapper

from thriftune.config import PrefixConfig, RunConfig
from thriftune.config.choices import STRATEGIES
from thriftune.errors import AdapterError, ConfigError
from thriftune.hardware import DEVICES
from thriftune.inference.evaluation import evaluate
from thriftune.methods import METHODS
from thriftune.methods.prefix_model import PrefixModel
from thriftune.models.adapter_weights import WEIGHTS, attach
from thriftune.models.answering import Sampling, complete
from thriftune.models.loading import Placement
from thriftune.models.tokenizer import load_tokenizer
from thriftune.preflight import trained_parts
from thriftune.preflight.base_model import BaseModel
from thriftune.strategies.memory.activations import StepShape, measure

PREFIX = PrefixConfig(virtual_tokens=4)


@pytest.fixture(scope="module")
def dataset(chat_rows_file, tiny_model_dir, tmp_path_factory):
    return prepared(chat_rows_file, tiny_model_dir, tmp_path_factory.mktemp("prefix"))


def gradients(kind, base, recomputed):
    """The loss of a padded batch, and the gradient of the prefix."""
    torch.manual_seed(3)
    model = kind(base, PrefixTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")).train()
    model.config.use_cache = False
    if recomputed:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        assert sum(isinstance(module, CheckpointWrapper) for module in model.modules()) == 2, "layers"
    ids = torch.arange(4, 44).view(2, 20)
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    found = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
    found.backward()
    (trained,) = [p for p in model.parameters() if p.requires_grad]
    return found.detach(), trained.grad


def test_recomputed_layers_have_the_loss_and_the_gradients_of_peft(tiny_model_dir):
    """transformers took the cache away from layers that it recomputed, and the prefix with it."""
    expected, gradient = gradients(PeftModelForCausalLM, plain(tiny_model_dir), recomputed=False)
    assert gradient.abs().max() > 0
    for recomputed in (False, True):
        found, other = gradients(PrefixModel, plain(tiny_model_dir), recomputed=recomputed)
        assert torch.equal(found, expected)
        torch.testing.assert_close(other, gradient, rtol=1e-5, atol=1e-9)


def greedy(model, ids, tokens):
    """The likeliest tokens, each from a pass over everything before it: no cache is used."""
    for _ in range(tokens):
        with torch.no_grad():
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, -tokens:].tolist()


def test_a_prefix_is_trained_saved_answered_with_and_refused_in_half(tiny_model_dir, dataset, tmp_path):
    """The network that computes it is in no result; in checkpoints it has to be, or nothing goes on."""
    sections = {"prefix": {"virtual_tokens": 4, "projection": True}}
    longer = run_of("prefix", training={"max_steps": 6, "learning_rate": 0.05}, **sections)
    straight = train(longer, tiny_model_dir, dataset, tmp_path / "straight")
    short = run_of("prefix", training={"max_steps": 3, "learning_rate": 0.05}, **sections)
    train(short, tiny_model_dir, dataset, tmp_path / "short", tmp_path / "store")
    resumed = train(longer, tiny_model_dir, dataset, tmp_path / "out", tmp_path / "store")
    assert resumed.resumed_at == 3
    assert (resumed.losses, resumed.after) == (straight.losses, straight.after)
    mine, other = (load_file(tmp_path / name / WEIGHTS) for name in ("out", "straight"))
    assert list(mine) == ["prompt_embeddings"]
    assert torch.equal(mine["prompt_embeddings"], other["prompt_embeddings"])
    assert resumed.after.loss < resumed.before.loss - 0.05

    again = evaluate(tiny_model_dir, dataset, longer, Placement(DEVICES["CPU"], "fp32"), tmp_path / "out")
    assert again.loss == pytest.approx(resumed.after.loss, abs=EXACT)
    assert again.answers == resumed.after.answers
    loaded = plain(tiny_model_dir, tmp_path / "out")
    assert loss(loaded, tiny_model_dir, dataset) == pytest.approx(again.loss, abs=EXACT)
    tokenizer, attached = load_tokenizer(tiny_model_dir), attach(plain(tiny_model_dir), tmp_path / "out")
    prompts = [[1, 40, 41, 42, 43], [1, 50, 51]]  # of different lengths: one is padded
    answers = list(complete(attached, tokenizer, prompts, Sampling(6), batch=2))
    said = [tokenizer.decode(greedy(loaded, torch.tensor([ids]), 6), skip_special_tokens=True) for ids in prompts]
    assert answers == [text.strip() for text in said]
    bare = [tokenizer.decode(greedy(plain(tiny_model_dir), torch.tensor([ids]), 6)).strip() for ids in prompts]
    assert answers != bare, "the prefix changes nothing, so this test could not fail"

    wider = {name: torch.cat([tensor, tensor], dim=1) for name, tensor in mine.items()}
    for wrong, why in (({}, "prompt_embeddings"), (wider, "other shapes")):
        save_file(wrong, tmp_path / "out" / WEIGHTS)
        with pytest.raises(AdapterError, match=why):
            attach(plain(tiny_model_dir), tmp_path / "out")


def test_virtual_tokens_lengthen_attention_in_the_plan():
    """Keys and values of a prefix are kept by every layer, and were not in the plan."""
    needs = [
        measure(TINY, StepShape(2, 64, recomputed, "fp32", tuned=PrefixConfig(virtual_tokens=tokens))).whole().all
        for recomputed in (True, False)
        for tokens in (1, 64)
    ]
    assert needs[0] < needs[1] < needs[3]
    assert needs[2] < needs[3]
    counted = METHODS["prefix"].trained_parts(PrefixConfig(virtual_tokens=5, projection=True), TINY)
    model = METHODS["prefix"].put_on(TINY.on_meta(torch.float32), PrefixConfig(virtual_tokens=5, projection=True), TINY)
    assert sum(counted.values()) == sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("kind", ["mamba", "falcon"])
def test_models_that_do_not_use_a_prefix_are_refused_by_the_preflight(run_config, kind):
    """Mamba's layers overlook it: the training ran, and nothing trained."""
    (found,) = trained_parts.check(run_config("prefix"), BaseModel(architecture=shape_of(kind)))
    assert (found.code, found.field) == ("lora-refused", "method")
    assert "prefix tuning does not work with" in found.message
    assert list(trained_parts.check(run_config("prefix"), BaseModel(architecture=TINY))) == []


def test_a_prefix_takes_positions_of_a_table(run_config):
    gpt2 = shape_of("gpt2", n_positions=128)
    METHODS["prefix"].check(run_config("prefix", data={"max_length": 64}), gpt2)
    with pytest.raises(ConfigError, match="after 30 of the prefix"):
        METHODS["prefix"].check(run_config("prefix", data={"max_length": 128}), gpt2)


def test_what_a_prefix_cannot_be_is_refused_in_the_run_file(run_file):
    assert not RunConfig.model_validate(run_file("prefix")).merges
    wrong = {"data": {"packing": True}, "lora": {"merge": True}, "strategy": "zero"}
    with pytest.raises((ConfigError, ValidationError)) as caught:
        RunConfig.model_validate(run_file("prefix", **wrong))
    assert {problem.field for problem in caught.value.problems} == {"data.packing", "lora", "strategy"}
    assert "prefix" in STRATEGIES["layers"].refuses
