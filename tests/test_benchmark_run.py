"""Runs that only measure: their file, and the workflow on the tiny model."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import write_jsonl
from test_workflows import only, pyflyte_run

from thriftune.config.benchmark_run import BenchmarkRun
from thriftune.errors import ConfigError
from thriftune.hardware import DEVICES
from thriftune.models import architecture
from thriftune.planning import catalogue
from thriftune.planning.evaluating import planned_models
from thriftune.planning.offers import THIS_MACHINE, Offer

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "configs" / "benchmark-general.yaml"
BENCHMARK = ("workflows/benchmark.py", "benchmark")


def content(**changes) -> dict:
    return {
        "name": "measuring",
        "model": {"source": "meta-llama/Llama-2-7b-hf"},
        "benchmarks": {"tasks": ["general-mini"]},
        **changes,
    }


def test_the_example_is_one():
    run = BenchmarkRun.model_validate(yaml.safe_load(EXAMPLE.read_text()))
    assert run.name == EXAMPLE.stem
    commands = re.findall(r"^#   (pyflyte run .*)$", EXAMPLE.read_text(), re.M)
    assert commands == [f"pyflyte run {' '.join(BENCHMARK)} --config configs/{EXAMPLE.name}"]
    assert "Hardware:" in EXAMPLE.read_text()
    assert "Cost:" in EXAMPLE.read_text()


def test_the_page_of_its_keys_is_up_to_date():
    command = [sys.executable, "scripts/config_docs.py", "benchmarks"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs" / "benchmark-runs.md").read_text(encoding="utf-8")
    assert page == made, "run: python scripts/config_docs.py benchmarks > docs/benchmark-runs.md"
    assert [key for key in BenchmarkRun.model_fields if f"| `{key}` |" not in page] == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"benchmarks": {"tasks": ["held_out"]}}, r"benchmarks\.tasks = held_out: .*no data section"),
        ({"hardware": {"nodes": 2}}, r"hardware\.nodes = 2: is not for benchmarks"),
        ({"gate": {"keeps": [{"metric": "general-mini.accuracy"}]}}, r"gate = given: .* there are none"),
        ({"adapters": {"base": "a/b"}}, r"adapters\.base = a/b: is no name for an adapter"),
        ({"adapters": {"one": "s3://me:secret@b/a"}}, r"adapters\.one = .*has a user or a password"),
        ({"data": {"source": "x"}}, r"data = .*: is not a key"),
        ({"benchmark": {"tasks": ["x"]}}, r"benchmark = .*Did you mean 'benchmarks'\?"),
    ],
)
def test_what_cannot_be_is_refused_by_name(changes, said):
    with pytest.raises(ConfigError, match=said):
        BenchmarkRun.model_validate(content(**changes))


def test_all_problems_are_said_at_once():
    wrong = content(hardware={"nodes": 2, "devices_per_node": 3}, benchmarks={"tasks": ["held_out"]})
    with pytest.raises(ConfigError) as caught:
        BenchmarkRun.model_validate(wrong)
    assert len(caught.value.problems) == 3


def test_a_model_in_4_bits_needs_a_smaller_node():
    llama = architecture.of(BenchmarkRun.model_validate(content()).model)

    def node(**changes):
        config = BenchmarkRun.model_validate(content(hardware={"device": "T4"}, precision="fp16", **changes))
        return planned_models(config, llama, catalogue.load(), None, interruptible=False)

    assert (node().devices, node(quantize=True).devices) == (2, 1)
    assert node(quantize=True).price_per_hour < node().price_per_hour
    assert node().pods == 1, "there is nothing to compare, and no noise to know"
    assert node(adapters={"one": "a"}).pods == 3, "the base twice, for the noise of a GPU"


def test_another_device_than_this_machine_s_is_refused():
    here = Offer(THIS_MACHINE, DEVICES["CPU"], 0, 0.0, 8.0, 2, 10.0, 0.0)
    config = BenchmarkRun.model_validate(content(hardware={"device": "T4"}))
    with pytest.raises(ConfigError, match=r"hardware\.device = T4: this machine has CPU"):
        planned_models(config, architecture.of(config.model), catalogue.load(), here, interruptible=False)


@pytest.fixture
def items(tmp_path):
    """A benchmark of our own, of which the tiny model knows nothing."""
    colours = ["gold", "blue", "grey", "red"]
    rows = [
        {"id": f"day-{day}", "question": f"What colour is the sky on day {day}?", "choices": colours, "answer": day % 4}
        for day in range(12)
    ]
    return write_jsonl(tmp_path / "colours.jsonl", rows)


@pytest.mark.slow
def test_a_base_and_two_adapters_are_measured_side_by_side(tmp_path, tiny_model_dir, items, random_adapter):
    adapters = {name: str(random_adapter(seed)) for seed, name in enumerate(("one", "two"))}
    run = {
        "name": "colours",
        "model": {"source": str(tiny_model_dir)},
        "adapters": adapters,
        "hardware": {"device": "CPU"},
        "benchmarks": {
            "tasks": [{"name": "colours", "file": str(items), "format": "multiple_choice", "limit": 8}],
            "shards": 2,
            "repeats": 2,
        },
        "gate": {"keeps": [{"metric": "colours.accuracy", "within": 0.9}]},
    }
    file = tmp_path / "colours.yaml"
    file.write_text(yaml.safe_dump(run))
    pyflyte_run(tmp_path, *BENCHMARK, "--config", str(file))
    page = only(tmp_path, "outputs/colours/*/benchmarks/benchmarks.html").read_text()
    assert "colours.accuracy" in page
    scores = json.loads(only(tmp_path, "outputs/colours/*/benchmarks/benchmarks.json").read_text())
    assert set(scores["scores"]) == {"base", "one", "two"}
    assert set(scores["comparisons"]) == set(scores["verdicts"]) == {"one", "two"}
    (metric,) = [m for m in scores["comparisons"]["two"]["metrics"] if m["metric"] == "colours.accuracy"]
    assert metric["items"] == 8
    assert metric["tuned"]["value"] == scores["scores"]["two"]["colours.accuracy"]
    assert {p.parent.name for p in tmp_path.glob("outputs/colours/*/benchmarks/*/items.parquet")} == {"base", *adapters}
