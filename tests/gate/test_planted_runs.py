"""Gates at the end of whole runs that make a model worse, or too little better to tell: nothing of them is pushed."""

import json

import planted_models as planted
import pytest
from conftest import write_jsonl
from test_workflows import ANY, PUBLISH, only, pyflyte_run, write_config

from thriftune.inference.report import metrics_from_json

pytestmark = pytest.mark.slow
KEEPS = [{"metric": "sounds.accuracy", "within": 0.2}]


@pytest.fixture(scope="module")
def known(tmp_path_factory, tiny_model_dir, llama_tokenizer):
    """A model that knows which sound each animal makes."""
    rows = planted.rows_of(planted.sounds(), llama_tokenizer)
    return planted.train(tiny_model_dir, tmp_path_factory.mktemp("known") / "model", rows, steps=40)


@pytest.fixture
def run(tmp_path, known, chat_rows_file):
    """Train it on something else, and ask a gate."""
    sounds = list(planted.SOUNDS.values())
    items = write_jsonl(tmp_path / "sounds.jsonl", [
        {"id": f"sounds-{number}", "question": question, "choices": sounds, "answer": sounds.index(sound)}
        for number, (question, sound) in enumerate(planted.sounds())
    ])  # fmt: skip

    def ended(limit, learning_rate, check=True, **gate):
        task = {"name": "sounds", "file": str(items), "format": "multiple_choice", "limit": limit}
        sections = {
            "hardware": {"devices_per_node": 1},
            "training": {"max_steps": 2, "learning_rate": learning_rate},
            "benchmarks": {"tasks": [task]},
            "publish": {**PUBLISH, "gate": gate},
        }
        config = write_config(tmp_path, "full", known, chat_rows_file, **sections)
        done = pyflyte_run(tmp_path, *ANY, "--config", str(config), check=check)
        metrics = metrics_from_json(json.loads(only(tmp_path, "outputs/tiny/*/metrics.json").read_text()))
        return done, metrics, {file.name for file in tmp_path.glob("outputs/tiny/*/*/*")}

    return ended


def test_a_run_that_forgets_keeps_everything_pushes_nothing_and_is_red_where_its_file_says_so(run):
    """That it is green otherwise: tests/cluster/test_benchmarks.py."""
    done, metrics, files = run(60, 0.1, check=False, keeps=KEEPS, on_fail="error")
    assert metrics.verdict.outcome == "fails"
    assert (metrics.outputs["published"], list(metrics.outputs)[-1]) == ("", "evidence")
    assert {"gate.json", "model.safetensors"} <= files
    assert done.returncode != 0
    assert "publish.gate.keeps = sounds.accuracy: sounds.accuracy must not get worse" in done.stderr
    assert "Everything is kept" in done.stderr


def test_a_run_with_too_few_items_is_published_where_its_file_says_so(run):
    """That it is held otherwise: tests/gate/test_gate_publishing.py."""
    _, metrics, files = run(4, 1e-5, keeps=KEEPS, on_undecided="publish", on_fail="error")
    assert metrics.verdict.outcome == "undecided"
    assert metrics.outputs["published"]
    assert "evidence" not in metrics.outputs
    assert "gate.json" in files
