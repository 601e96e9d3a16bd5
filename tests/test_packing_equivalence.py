"""Packed and unpacked runs are the same run: the same loss for each example, and the same weights after training."""

import pytest
import torch
from conftest import write_jsonl
from planning import planned

from thriftune.config import DataConfig
from thriftune.data import prepare
from thriftune.data.prepared import TRAIN, VALIDATION, is_packed, load_split
from thriftune.data.tokenization import IGNORED
from thriftune.models.tokenizer import load_tokenizer
from thriftune.training.collation import PackedCollator, PaddingCollator
from thriftune.training.trainer import make_trainer, training_arguments

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def datasets(tmp_path_factory, tiny_model_dir):
    """The same rows, of very different lengths, packed and not."""
    folder = tmp_path_factory.mktemp("packing")
    rows = [
        {"prompt": f"What comes after {i}? " + "Think. " * (i % 7), "completion": f"{i + 1}. " + "Sure. " * (i % 11)}
        for i in range(60)
    ]
    file = write_jsonl(folder / "rows.jsonl", rows)
    splits = {}
    for packing in (False, True):
        config = DataConfig(
            source=str(file), format="prompt_completion", max_length=128, packing=packing, validation_share=0.1
        )
        prepare.prepare(config, seed=0, tokenizer_dir=tiny_model_dir, destination=folder / str(packing))
        splits[packing] = load_split(folder / str(packing), TRAIN)
        assert not is_packed(load_split(folder / str(packing), VALIDATION))
    assert is_packed(splits[True])
    assert not is_packed(splits[False])
    assert len(splits[True]) < len(splits[False]) / 2
    return splits


def load_model(tiny_model_dir, attention, weights_scale=1.0):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32, attn_implementation=attention)
    for weight in model.parameters():  # so that attention matters: fresh weights are very small
        weight.data *= weights_scale
    return model


def losses_by_example(model, collate, rows, batch):
    """The loss of every example, by its tokens, through the collator that training uses."""
    found = {}
    for start in range(0, len(rows), batch):
        inputs = collate([rows[i] for i in range(start, min(start + batch, len(rows)))])
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        token_losses = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
        ).view(labels.shape[0], -1)
        default = torch.arange(labels.shape[1]).expand_as(labels)
        positions = inputs.get("position_ids", default)
        for row in range(labels.shape[0]):
            starts = [i for i in range(labels.shape[1]) if positions[row, i] == 0]
            for first, end in zip(starts, [*starts[1:], labels.shape[1]], strict=True):
                trained = [i for i in range(first + 1, end) if labels[row, i] != IGNORED]
                if trained:
                    tokens = tuple(inputs["input_ids"][row, first : trained[-1] + 1].tolist())
                    found[tokens] = token_losses[row, [i - 1 for i in trained]].mean().item()
    return found


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("batch", [1, 3])
def test_each_example_has_the_loss_it_has_alone(datasets, tiny_model_dir, attention, batch):
    tokenizer = load_tokenizer(tiny_model_dir)
    model = load_model(tiny_model_dir, attention, weights_scale=4)
    model.config.use_cache = False
    model.train()
    alone = losses_by_example(model, PaddingCollator(tokenizer, 8), datasets[False], batch)
    packed = losses_by_example(model, PackedCollator(tokenizer, 8), datasets[True], batch)
    assert len(alone) == len(datasets[False])
    assert packed.keys() == alone.keys()
    assert max(abs(packed[tokens] - alone[tokens]) for tokens in alone) < TOLERANCE
    assert max(alone.values()) - min(alone.values()) > 0.1, "examples must differ, or the comparison says nothing"


@pytest.mark.parametrize("extra", ["attention_mask", "use_cache"])
def test_the_comparison_notices_a_mask_or_a_cache(datasets, tiny_model_dir, extra):
    """With a mask of ones, or with a cache, the second example of a row silently sees the first."""
    tokenizer = load_tokenizer(tiny_model_dir)
    model = load_model(tiny_model_dir, "sdpa", weights_scale=4)
    model.config.use_cache = False

    def spoiled(rows):
        batch = PackedCollator(tokenizer, 8)(rows)
        return {**batch, extra: torch.ones_like(batch["input_ids"]) if extra == "attention_mask" else True}

    packed = losses_by_example(model, PackedCollator(tokenizer, 8), datasets[True], 1)
    leaking = losses_by_example(model, spoiled, datasets[True], 1)
    assert max(abs(packed[tokens] - leaking[tokens]) for tokens in packed) > 100 * TOLERANCE


def trained(datasets, tiny_model_dir, run_config, tmp_path, *, packing, checkpointing, adapters):
    """Losses and weights after steps over all rows at once, so that both runs see the same in each step."""
    rows = datasets[packing]
    config = run_config(
        training={
            "global_batch": len(rows), "micro_batch": 1, "max_steps": 4, "learning_rate": 2e-3, "log_every": 1,
            "scheduler": "constant", "warmup_share": 0, "gradient_checkpointing": checkpointing, "precision": "fp32",
        }
    )  # fmt: skip
    plan = planned(config, {"zero_optimization": {"stage": 0}})
    model = load_model(tiny_model_dir, "sdpa")
    if adapters:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(target_modules="all-linear", r=4, lora_dropout=0.0))
        model.enable_input_require_grads()
    trainer = make_trainer(model, training_arguments(config, plan, tmp_path, {}), load_tokenizer(tiny_model_dir), rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    weights = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    return losses, weights, trainer.state.num_input_tokens_seen


@pytest.mark.parametrize(("checkpointing", "adapters"), [(False, False), (True, False), (True, True)])
def test_training_is_the_same_packed_or_not(datasets, tiny_model_dir, run_config, tmp_path, checkpointing, adapters):
    options = {"checkpointing": checkpointing, "adapters": adapters}
    arguments = (datasets, tiny_model_dir, run_config, tmp_path)
    losses, weights, tokens = trained(*arguments, packing=False, **options)
    packed_losses, packed_weights, packed_tokens = trained(*arguments, packing=True, **options)
    assert packed_losses == pytest.approx(losses, abs=TOLERANCE)
    assert losses[-1] < losses[0] - 0.05, "the run must train, or the comparison says nothing"
    assert packed_weights.keys() == weights.keys()
    assert max((packed_weights[name] - weights[name]).abs().max().item() for name in weights) < 5e-3
    assert packed_tokens == tokens == 4 * sum(datasets[False]["length"])
