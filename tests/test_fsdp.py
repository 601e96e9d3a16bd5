"""FSDP and copies are what they say: what each rank holds, what is saved, and how they go on with other ranks.

Equal losses prove little: through accelerate's plugin a training on the CPU was plain data parallel, with equal losses.
"""

import json
import shutil
from pathlib import Path

import pytest
import ranks
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict

from thriftune.config import DataConfig
from thriftune.data import prepare

WORKER = Path(__file__).parent / "sharding_worker.py"
STEPS, SAVED_AT = 4, 2
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_model_dir, chat_rows_file):
    folder = tmp_path_factory.mktemp("fsdp")
    data = DataConfig(source=str(chat_rows_file), format="chat", max_length=64)
    prepare.prepare(data, seed=0, tokenizer_dir=tiny_model_dir, destination=folder / "dataset")
    return folder


@pytest.fixture(scope="module")
def whole(folder, tiny_model_dir):
    """Trainings on two ranks, one after the other in the same processes, with checkpoints; by name."""
    jobs = {
        f"{method}-{strategy}": job(folder, f"{method}-{strategy}", tiny_model_dir, 2, method, strategy)
        for method, strategy in (("full", "fsdp"), ("lora", "fsdp"), ("qlora", "fsdp"), ("lora", "ddp"))
    }
    train(folder / "whole.jobs", 2, list(jobs.values()))
    return {name: outcome(of, 2) for name, of in jobs.items()}


def job(folder: Path, name: str, model: Path, count: int, method: str, strategy: str = "fsdp", **training) -> dict:
    """A training in so many ranks, that goes on from the checkpoints of its store, if there are any."""
    training = {
        "global_batch": 8, "micro_batch": 2, "max_steps": STEPS, "precision": "fp32", "log_every": 1,
        "learning_rate": 1e-2, "scheduler": "constant", "max_grad_norm": 0.5,
        "gradient_checkpointing": method != "full",
        "save_dtype": "fp32" if method == "full" else "auto", **training,
    }  # fmt: skip
    config = {
        "name": "fsdp", "method": method, "strategy": strategy, "model": {"source": "tiny"},
        "data": {"source": "rows", "format": "chat"}, "hardware": {"device": "CPU", "devices_per_node": count},
        "training": training, "evaluation": {"max_new_tokens": 2, "prompts": ["What?"]},
        "checkpoints": {"every_steps": SAVED_AT},
        **({} if method == "full" else {"lora": {"rank": 4, "alpha": 8, "dropout": 0.0}}),
    }  # fmt: skip
    places = {"model": str(model), "dataset": str(folder / "dataset"), "output": str(folder / name)}
    return {"config": config, **places, "store": str(folder / f"{name}.store")}


def train(file: Path, count: int, jobs: list[dict]) -> None:
    file.write_text(json.dumps(jobs))
    ranks.run(count, WORKER, file)


def outcome(of: dict, count: int) -> dict:
    output = of["output"]
    held = [json.loads(Path(f"{output}.rank{rank}.json").read_text()) for rank in range(count)]
    return {"output": Path(output), "held": held, "result": json.loads(Path(f"{output}.json").read_text())}


SHARDED = ("full-fsdp", "lora-fsdp", "qlora-fsdp")


@pytest.mark.parametrize("name", SHARDED)
def test_every_weight_is_divided_over_the_ranks(whole, name):
    """Each rank holds its half of every weight as a DTensor, of a base in 4 bits as well, before and after training."""
    for held in whole[name]["held"]:
        assert held["loaded"].keys() == held["trained"].keys()
        for moment in ("loaded", "trained"):
            assert all(weight["is_dtensor"] for weight in held[moment].values())
            for key, weight in held[moment].items():
                assert weight["bytes"] == weight["whole"] / 2, key
    assert any(first["digest"] != second["digest"] for first, second in zip(*rows_of(whole[name]), strict=True))


def rows_of(run: dict) -> list[list[dict]]:
    return [list(held["trained"].values()) for held in run["held"]]


def test_a_base_in_4_bits_takes_half_a_byte_for_each_weight_over_all_ranks(whole):
    (first, second), of_full = whole["qlora-fsdp"]["held"], whole["full-fsdp"]["held"][0]["loaded"]
    key = "model.layers.0.mlp.up_proj.weight"
    assert first["loaded"][key]["bytes"] + second["loaded"][key]["bytes"] == of_full[key]["whole"] / 8


def test_copies_are_whole_and_equal_on_every_rank(whole):
    for first, second in zip(*rows_of(whole["lora-ddp"]), strict=True):
        assert first == second
        assert first["bytes"] == first["whole"]
        assert not first["is_dtensor"]


@pytest.mark.parametrize("name", ["lora-fsdp", "qlora-fsdp", "lora-ddp"])
def test_the_frozen_base_is_bit_for_bit_the_same_after_training(whole, name):
    for held in whole[name]["held"]:
        changed = {n for n, w in held["trained"].items() if w["digest"] != held["loaded"][n]["digest"]}
        assert changed == {n for n, w in held["trained"].items() if w["trains"]}
        assert changed


@pytest.mark.parametrize("name", ["lora-fsdp", "qlora-fsdp", "lora-ddp"])
def test_what_trains_is_saved_and_nothing_else(whole, name):
    """FSDP with its own activation checkpointing saved an empty adapter, without an error."""
    saved = load_file(whole[name]["output"] / "adapter_model.safetensors")
    trained = {n for n, w in whole[name]["held"][0]["trained"].items() if w["trains"]}
    assert len(saved) == len(trained) == 2 * 2 * 7
    assert all(tensor.any() for tensor in saved.values())
    files = whole[name]["output"].with_suffix(".store") / f"checkpoint-{SAVED_AT}" / "files" / "node-0"
    if name == "lora-ddp":
        assert len(load_file(files / "adapter_model.safetensors")) == len(trained)
    else:
        numbers = json.loads((files / "optimizer.json").read_text())
        assert len(numbers["tensors"]) == 3 * len(trained)


def test_the_result_is_an_ordinary_model(whole, tiny_model_dir):
    from transformers import AutoModelForCausalLM

    saved, base = (load_file(folder / "model.safetensors") for folder in (whole["full-fsdp"]["output"], tiny_model_dir))
    assert {n: (t.shape, t.dtype) for n, t in saved.items()} == {n: (t.shape, t.dtype) for n, t in base.items()}
    assert not any(saved[name].equal(base[name]) for name in base)
    assert AutoModelForCausalLM.from_pretrained(whole["full-fsdp"]["output"]).config.architectures == [
        "LlamaForCausalLM"
    ]


@pytest.fixture(scope="module")
def resumed(whole, folder, tiny_model_dir):
    """What was trained by one or two ranks, gone on with by one or two: by (method, before, after)."""
    train(folder / "alone.jobs", 1, [job(folder, "full-alone", tiny_model_dir, 1, "full")])
    jobs: dict[int, dict] = {1: {}, 2: {}}
    for method, before, after in (("full", 2, 2), ("full", 2, 1), ("full", 1, 2), ("qlora", 2, 1)):
        first, name = "full-alone" if before == 1 else f"{method}-fsdp", f"{method}-{before}-{after}"
        shutil.copytree(folder / f"{first}.store", folder / f"{name}.store")
        shutil.rmtree(folder / f"{name}.store" / f"checkpoint-{STEPS}")  # as if it had been killed before
        jobs[after][method, before, after] = job(folder, name, tiny_model_dir, after, method)
    for after, of in jobs.items():
        train(folder / f"again-{after}.jobs", after, list(of.values()))
    return {key: outcome(of, after) for after in jobs for key, of in jobs[after].items()}


@pytest.mark.parametrize("key", [("full", 2, 2), ("full", 2, 1), ("full", 1, 2), ("qlora", 2, 1)], ids=str)
def test_it_goes_on_from_a_checkpoint_on_as_many_ranks_and_on_others(whole, resumed, key):
    method, before, after = key
    again, expected = resumed[key], whole[f"{method}-fsdp"]
    assert again["result"]["resumed_at"] == SAVED_AT
    exactly = 0.0 if before == after else TOLERANCE
    assert again["result"]["losses"] == pytest.approx(expected["result"]["losses"], abs=exactly, rel=0)
    assert again["result"]["after"]["loss"] == pytest.approx(expected["result"]["after"]["loss"], abs=TOLERANCE)
    assert again["result"]["after"]["loss"] < again["result"]["before"]["loss"] - 0.1, "it must train"
    if before == after:
        assert again["held"] == [
            {**held, "loaded": mine["loaded"]} for held, mine in zip(expected["held"], again["held"], strict=True)
        ]


@pytest.fixture(scope="module")
def slowly(folder, tiny_model_dir):
    """A training like full-fsdp that saves every step, of which one is written late and one cannot be."""
    of = job(folder, "slowly", tiny_model_dir, 2, "full")
    of["config"]["checkpoints"] = {"every_steps": 1, "keep_checkpoints": STEPS}
    file = folder / "slowly.jobs"
    file.write_text(json.dumps([of]))
    ranks.run(2, WORKER.with_name("saving_worker.py"), file)
    return {"store": folder / "slowly.store", "log": file.with_suffix(".log").read_text(), "output": of["output"]}


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """What all ranks wrote of a checkpoint."""
    found: dict[str, torch.Tensor] = {}
    _load_state_dict(
        found,
        storage_reader=FileSystemReader(checkpoint / "files" / "node-0" / "sharded"),
        planner=_EmptyStateDictLoadPlanner(),
        no_dist=True,
    )
    return found


def test_training_goes_on_while_a_checkpoint_is_written_and_it_is_of_its_own_step(whole, slowly):
    """It would be of a later step if it were not a copy, and would look whole if its upload did not wait for it."""
    seen = json.loads(Path(slowly["output"] + ".seen.json").read_text())
    assert "optimizer.json" in seen["written"], "the step was not saved yet"
    assert not any(".metadata" in name or name.endswith(".distcp") for name in seen["written"])
    assert seen["in_store"] == []
    late, in_time, last = (
        tensors_of(folder.with_suffix(".store") / f"checkpoint-{step}")
        for folder, step in (
            (Path(slowly["output"]), SAVED_AT),
            (whole["full-fsdp"]["output"], SAVED_AT),
            (whole["full-fsdp"]["output"], STEPS),
        )
    )
    assert late.keys() == in_time.keys() == last.keys()
    assert any(name.startswith("exp_avg_sq.") for name in late)
    assert all(late[name].equal(in_time[name]) for name in late)
    assert not any(late[name].equal(last[name]) for name in late)
    numbers = json.loads((slowly["store"] / f"checkpoint-{SAVED_AT}/files/node-0/optimizer.json").read_text())
    assert {kept["step"] for kept in numbers["numbers"].values()} == {SAVED_AT}


def test_a_checkpoint_that_one_rank_cannot_write_costs_that_checkpoint_and_not_the_training(slowly):
    whole_ones = {path.parent.name for path in slowly["store"].glob("checkpoint-*/manifest.json")}
    assert whole_ones == {f"checkpoint-{step}" for step in (1, SAVED_AT, STEPS)}
    assert "The checkpoint of step 3 could not be saved, training goes on" in slowly["log"]
    assert "no space left on the disk" in slowly["log"]


def test_16_bits_compute_and_masters_are_saved_as_measured(folder, tiny_model_dir):
    """Shards of what trains stay fp32 in bf16 training, and the saved precision is decided on them."""
    of = job(folder, "bf16", tiny_model_dir, 2, "full", precision="bf16", save_dtype="auto")
    train(folder / "bf16.jobs", 2, [of])
    run = outcome(of, 2)
    assert {weight["dtype"] for weight in run["held"][0]["trained"].values()} == {"torch.float32"}
    saved = run["result"]["saved"]
    assert saved["dtype"] == "bf16"
    assert {tensor.dtype for tensor in load_file(run["output"] / "model.safetensors").values()} == {torch.bfloat16}
    losses = [validation["loss"] for validation in run["result"]["validations"]]
    assert saved["trained_loss"] == pytest.approx(losses[-1], abs=5e-3)
    assert saved["trained_loss"] != losses[-1], "it was not measured with the masters"
    assert losses[-1] < losses[0] - 0.1


def test_an_overflow_in_the_part_of_one_rank_skips_the_step_of_all(tmp_path):
    """What loss scaling does on a T4: accelerate uses torch's GradScaler there, which knows shards since torch 2.4."""
    ranks.run(2, WORKER.with_name("scaler_worker.py"), tmp_path / "seen")
    seen = [json.loads((tmp_path / f"seen.{rank}").read_text()) for rank in range(2)]
    assert seen[0] == seen[1] == [[2.0**10, True], [2.0**9, False], [2.0**9, True]]
