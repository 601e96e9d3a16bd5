"""What docs/extending.md adds can be planned and trained with, and does what the page says."""

import json
from pathlib import Path

import pytest
import ranks
from extending_worker import BLOCK, PAGE
from safetensors.torch import load_file

from thriftune.config import DataConfig
from thriftune.data import prepare

WORKER = Path(__file__).parent / "extending_worker.py"


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model_dir, chat_rows_file):
    """Train a method under a strategy, with so many ranks."""
    folder = tmp_path_factory.mktemp("extending")
    data = DataConfig(source=str(chat_rows_file), format="chat", max_length=64)
    prepare.prepare(data, seed=0, tokenizer_dir=tiny_model_dir, destination=folder / "dataset")

    def train(method, strategy, count):
        output = folder / f"{method}-{strategy}-{count}"
        places = {"model": str(tiny_model_dir), "dataset": str(folder / "dataset"), "output": str(output)}
        job = output.with_suffix(".job")
        job.write_text(json.dumps({"method": method, "strategy": strategy, "ranks": count, **places}))
        ranks.run(count, WORKER, job)
        return json.loads(Path(f"{output}.json").read_text()), output

    return train


def test_the_page_has_the_three_pieces_of_each():
    assert len(BLOCK.findall(PAGE.read_text(encoding="utf-8"))) == 6


@pytest.mark.slow
def test_the_method_trains_the_norms_and_nothing_else(run, tiny_model_dir):
    made, saved = run("norms", "single", 1)
    assert (made["plan"]["method"], made["plan"]["strategy"]) == ("norms", "single")
    before, after = (load_file(folder / "model.safetensors") for folder in (tiny_model_dir, saved))
    assert before.keys() == after.keys()
    changed = {name for name, tensor in before.items() if not tensor.equal(after[name])}
    norms = {name for name in before if "norm" in name}
    assert changed == norms
    assert made["plan"]["trained_parameters"] == sum(before[name].numel() for name in norms)
    assert made["result"]["after"]["loss"] < made["result"]["before"]["loss"]


@pytest.mark.slow
def test_the_strategy_trains_what_one_device_trains(run):
    (alone, _), (together, saved) = run("full", "single", 1), run("full", "copies", 2)
    assert together["plan"]["micro_batch"] * together["plan"]["accumulation"] * 2 == 8  # each rank has half of the rows
    assert len(together["plan"]["memory"]["devices"]) == 2
    assert together["result"]["losses"] == pytest.approx(alone["result"]["losses"], abs=1e-4)
    for one, other in zip(together["result"]["validations"], alone["result"]["validations"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
    assert json.loads((saved / "manifest.json").read_text())["plan"]["strategy"] == "copies"
