"""Exports as people ask for them: in a run file, and by the workflow."""

import json
from pathlib import Path

import pytest
from conftest import run_dict, write_jsonl
from planning import planned
from test_workflows import ANY, only, pyflyte_run, write_config

from thriftune.config import RunConfig
from thriftune.errors import ConfigError
from thriftune.inference.report import metrics_from_json
from thriftune.planning import pod_requests

EXPORT = ("workflows/export.py", "export")
CLASSES = {
    "task": "classification",
    "classification": {"labels": ["a", "b"]},
    "data": {"format": "labelled"},
}


def refused(method="full", **sections) -> str:
    with pytest.raises(ConfigError) as caught:
        RunConfig.model_validate(run_dict(method, **sections))
    return str(caught.value)


@pytest.mark.parametrize(
    ("method", "sections", "message"),
    [
        ("full", {"export": {"formats": []}}, "export.formats"),
        ("full", {"export": {"formats": ["gguf-q5"]}}, "export.formats.0 = 'gguf-q5'"),
        ("full", {"export": {"formats": ["int8"], "shard_gb": 0}}, "export.shard_gb"),
        ("full", {"export": {"formats": ["int8", "nf4", "int8"]}}, "export.formats = int8: is named twice"),
        ("prefix", {"export": {"formats": ["int8"]}}, "what prefix trains cannot be merged"),
        ("llama_adapter", {"export": {"formats": ["int8"]}}, "what llama_adapter trains cannot be merged"),
        ("qlora", {"export": {"formats": ["int8"]}, "lora": {"merge": False}}, "its adapter is not merged"),
        ("full", {"export": {"formats": ["gguf-f16"]}, **CLASSES}, "a classifier writes none"),
    ],
)
def test_a_run_file_that_cannot_be_exported_is_refused_in_one_message(method, sections, message):
    text = refused(method, **sections)
    assert message in text
    assert "(1 problem)" in text


def test_the_pod_is_sized_by_what_is_written_and_compared(run_config):
    def request(**export):
        config = run_config("qlora", hardware={"device": "T4"}, training={"precision": "fp16"}, export=export)
        return pod_requests.exporting(config, planned(config))

    plain = request(formats=["gguf-q4_0"])
    assert plain.memory_gib >= 5
    assert request(formats=["gguf-q4_0"], shard_gb=40).memory_gib > plain.memory_gib + 30
    assert request(formats=["gguf-q4_0", "fp32"]).disk_gib >= plain.disk_gib


@pytest.mark.slow
def test_a_run_exports_its_merged_model_and_names_every_export(tmp_path, tiny_model_dir, chat_rows_file):
    formats = ["gguf-q8_0", "fp16"]
    sections = {"lora": {"rank": 8, "alpha": 16}, "export": {"formats": formats}}
    config = write_config(tmp_path, "lora", tiny_model_dir, chat_rows_file, **sections)
    done = pyflyte_run(tmp_path, *ANY, "--config", str(config))
    metrics = metrics_from_json(json.loads(only(tmp_path, "outputs/tiny/*/metrics.json").read_text()))
    assert [name for name in metrics.outputs if name.startswith("export")] == [f"export {name}" for name in formats]
    for name in formats:
        place = Path(metrics.outputs[f"export {name}"])
        manifest = json.loads((place / "manifest.json").read_text())
        assert manifest["format"] == name
        assert manifest["config"]["name"] == "tiny"
        assert manifest["parity"]["tokens"] > 0
        assert len(manifest["model_manifest"]) == 64
        assert str(place) in done.stderr
    assert (Path(metrics.outputs["export gguf-q8_0"]) / "model.gguf").is_file()
    assert "gguf-q8_0 is what was trained" in done.stderr


@pytest.mark.slow
def test_the_workflow_exports_a_model_with_an_adapter_on_rows_of_a_file(tmp_path, tiny_model_dir, random_adapter):
    pairs = [{"prompt": "What colour is the sea on day 3?", "answer": "On day 3, the sea is red."}] * 3
    rows = write_jsonl(tmp_path / "rows.jsonl", pairs)
    asked = ["--model_dir", str(tiny_model_dir), "--adapter", str(random_adapter(1)), "--rows", str(rows)]
    done = pyflyte_run(tmp_path, *EXPORT, *asked, "--formats", '["gguf-f16", "int8"]')
    assert "merged is what was trained" in done.stderr
    assert only(tmp_path, "outputs/export/*/exports/gguf-f16/model.gguf").is_file()
    parity = json.loads(only(tmp_path, "outputs/export/*/exports/int8/parity.json").read_text())
    assert parity["rows"] == 3
    again = pyflyte_run(tmp_path, *EXPORT, *asked, "--formats", '["gguf-f16", "gguf-f17"]', check=False)
    assert again.returncode != 0
    assert "formats.1 = 'gguf-f17'" in again.stdout + again.stderr
