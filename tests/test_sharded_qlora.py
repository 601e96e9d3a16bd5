"""A base in 4 bits that is really divided over ranks: what each holds, what is saved, and how it goes on."""

import json
import shutil
from pathlib import Path

import pytest
import ranks
import torch

from thriftune.config import DataConfig
from thriftune.data import prepare
from thriftune.models.quantization import FourBit, configuration

WORKER = Path(__file__).parent / "sharding_worker.py"
STEPS, SAVED_AT = 4, 2
TOLERANCE = 1e-5
# Weights this small would all stay gathered.
LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "modules_to_save": ["lm_head"]}
ZERO3 = {"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_model_dir, chat_rows_file):
    """QLoRA under ZeRO-3 on two ranks, with checkpoints."""
    folder = tmp_path_factory.mktemp("sharded")
    data = DataConfig(source=str(chat_rows_file), format="chat", max_length=64)
    prepare.prepare(data, seed=0, tokenizer_dir=tiny_model_dir, destination=folder / "dataset")
    return train(folder, "whole", tiny_model_dir, 2)


def train(folder: Path, name: str, model: Path, count: int) -> dict:
    """A training in so many ranks, that goes on from the checkpoints of its store, if there are any."""
    training = {
        "global_batch": 8, "micro_batch": 8 // count, "max_steps": STEPS, "precision": "fp32", "log_every": 1,
        "learning_rate": 1e-2, "scheduler": "constant", "gradient_checkpointing": False,
    }  # fmt: skip
    config = {
        "name": "sharded", "method": "qlora", "strategy": "zero", "model": {"source": "tiny"},
        "data": {"source": "rows", "format": "chat"}, "hardware": {"device": "CPU", "devices_per_node": count},
        "training": training, "zero": {"config": ZERO3}, "lora": LORA,
        "evaluation": {"max_new_tokens": 2, "prompts": ["What?"]}, "checkpoints": {"every_steps": SAVED_AT},
    }  # fmt: skip
    output = folder / name
    job = {
        "config": config, "model": str(model), "dataset": str(folder / "dataset"), "output": str(output),
        "store": str(folder / f"{name}.store"),
    }  # fmt: skip
    file = folder / f"{name}.job"
    file.write_text(json.dumps([job]))
    ranks.run(count, WORKER, file)
    held = [json.loads(Path(f"{output}.rank{rank}.json").read_text()) for rank in range(count)]
    result = json.loads(Path(f"{output}.json").read_text())
    return {"folder": folder, "output": output, "held": held, "result": result}


@pytest.fixture(scope="module")
def quantized(tiny_model_dir):
    """The base in 4 bits on one device, as transformers loads it: weights by name."""
    from transformers import AutoModelForCausalLM

    how = configuration(torch.float32, FourBit())
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32, quantization_config=how)
    return {name: p.data for name, p in model.named_parameters() if type(p).__name__ == "Params4bit"}


def test_each_rank_holds_its_part_of_every_weight_and_no_more(whole):
    """With bytes as storage FSDP2 computed the same losses on a base that was whole on every rank."""
    for held in whole["held"]:
        assert held["loaded"].keys() == held["trained"].keys()
        for moment in ("loaded", "trained"):
            for name, weight in held[moment].items():
                assert weight["bytes"] == weight["whole"] / 2, name
                assert weight["gathered"] == 0, name


def test_the_parts_are_those_of_the_base_on_one_device(whole, quantized):
    from sharding_worker import digest

    assert len(quantized) == 2 * 7
    for name, weight in quantized.items():
        parts = weight.view(torch.uint8).flatten().chunk(2)
        assert [held["loaded"][name]["digest"] for held in whole["held"]] == [digest(part) for part in parts]


def test_the_frozen_base_is_bit_for_bit_the_same_after_training(whole):
    for held in whole["held"]:
        changed = {n for n, w in held["trained"].items() if w["digest"] != held["loaded"][n]["digest"]}
        assert changed == {n for n, w in held["trained"].items() if w["trains"]}
        assert changed


def test_what_trains_is_saved_and_nothing_else(whole):
    from safetensors import safe_open

    trained = {name for name, weight in whole["held"][0]["trained"].items() if weight["trains"]}
    with safe_open(whole["output"] / "adapter_model.safetensors", "pt") as saved:
        assert len(saved.keys()) == len(trained) == 2 * 2 * 7 + 1
    files = checkpoint(whole, "whole") / "files" / "node-0" / f"global_step{SAVED_AT}"
    states = torch.load(files / "zero_pp_rank_0_mp_rank_00_model_states.pt", weights_only=False)
    assert {name.removeprefix("base_model.model.") for name in states["module"]} == trained
    assert not states["frozen_param_fragments"]


def checkpoint(whole: dict, name: str, step: int = SAVED_AT) -> Path:
    return whole["folder"] / f"{name}.store" / f"checkpoint-{step}"


@pytest.mark.parametrize("count", [2, 1])
def test_it_goes_on_from_a_checkpoint_on_as_many_ranks_and_on_others(whole, tiny_model_dir, count):
    name = f"again-{count}"
    shutil.copytree(whole["folder"] / "whole.store", whole["folder"] / f"{name}.store")
    shutil.rmtree(checkpoint(whole, name, STEPS))  # as if it had been killed before
    again = train(whole["folder"], name, tiny_model_dir, count)["result"]
    assert again["resumed_at"] == SAVED_AT
    assert again["losses"] == pytest.approx(whole["result"]["losses"], abs=TOLERANCE)
    assert again["after"]["loss"] == pytest.approx(whole["result"]["after"]["loss"], abs=TOLERANCE)
    assert again["after"]["loss"] < again["before"]["loss"] - 0.1, "it must train, or the comparison says nothing"
