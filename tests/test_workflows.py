"""The workflows as people run them: the real `pyflyte run`, in a process of its own, on the tiny model."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from html import unescape
from pathlib import Path

import pytest
import yaml
from pydantic import TypeAdapter
from refusing_hub import refusing_hub

from thriftune.inference.report import metrics_from_json
from thriftune.planning import ledger
from thriftune.strategies.zero.configuration import stage
from thriftune.strategies.zero.strategy import config_in
from thriftune.training_plan import TrainingPlan

ROOT = Path(__file__).parent.parent
PYFLYTE = Path(sys.executable).parent / "pyflyte"
FULL = ("workflows/full_finetune.py", "full_finetune")
QLORA = ("workflows/qlora_finetune.py", "qlora_finetune")
ANY = ("workflows/finetune.py", "finetune")
PUBLISH = {"repository": "team/tiny", "dry_run": True}
_NONE: Mapping[str, str] = {}


def pyflyte_run(
    folder: Path, *arguments: str, check: bool = True, variables: Mapping[str, str] = _NONE
) -> subprocess.CompletedProcess:
    """Run from the checkout, with results going to a folder of the test."""
    environment = {**os.environ, "THRIFTUNE_OUTPUTS": str(folder / "outputs"), "COLUMNS": "200", "HF_TOKEN": ""}
    environment |= variables
    environment.pop("THRIFTUNE_RUN_STAMP", None)
    command = [str(PYFLYTE), "run", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    if check:
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def write_config(folder: Path, method: str, model: Path, data: Path, /, **overrides: dict) -> Path:
    content = {
        "name": "tiny",
        "method": method,
        "model": {"source": str(model)},
        "data": {"source": str(data), "format": "chat", "max_length": 96, "validation_share": 0.1},
        "hardware": {"device": "CPU", "devices_per_node": 2 if method == "full" else 1},
        "training": {
            "global_batch": 8, "micro_batch": 4, "max_steps": 8, "learning_rate": 1e-2, "log_every": 2,
            "precision": "fp32", "save_dtype": "fp32",
        },
        "evaluation": {"max_new_tokens": 4},
    }  # fmt: skip
    for section, values in overrides.items():
        content[section] = {**content.get(section, {}), **values} if isinstance(values, dict) else values
    file = folder / f"{method}.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    assert len(found) == 1, f"{pattern}: {found}"
    return found[0]


@pytest.fixture(scope="module")
def full_run(tmp_path_factory, tiny_model_dir, chat_rows_file):
    folder = tmp_path_factory.mktemp("full")
    config = write_config(
        folder,
        "full",
        tiny_model_dir,
        chat_rows_file,
        publish=PUBLISH,
        zero={"config": "zero3"},
    )
    done = pyflyte_run(folder, *FULL, "--config", str(config))
    return folder, config, done


@pytest.fixture(scope="module")
def qlora_run(tmp_path_factory, tiny_model_dir, chat_rows_file):
    folder = tmp_path_factory.mktemp("qlora")
    overrides = {
        "lora": {"rank": 8, "alpha": 16},
        "data": {"packing": True},
        "training": {"optimizer": "paged_adamw_8bit", "max_steps": 12, "global_batch": 4, "micro_batch": 2},
        "evaluation": {"saved_model": True},
        "publish": PUBLISH,
    }
    config = write_config(folder, "qlora", tiny_model_dir, chat_rows_file, **overrides)
    done = pyflyte_run(folder, *QLORA, "--config", str(config))
    return folder, config, done


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "validated"),
    [
        ("full_run", [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("qlora_run", [0, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12]),  # ten after the first, of twelve steps
    ],
)
def test_held_out_loss_falls_and_everything_is_reported(which, validated, request):
    folder, _, done = request.getfixturevalue(which)
    metrics = json.loads(only(folder, "outputs/tiny/*/metrics.json").read_text())
    training = metrics["training"]
    before, after = training["before"], training["after"]
    assert after["loss"] < before["loss"] - 0.05
    assert before["tokens"] == after["tokens"] > 0
    assert [validation["step"] for validation in training["validations"]] == validated
    assert (training["validations"][0]["loss"], training["validations"][-1]["loss"]) == (before["loss"], after["loss"])
    assert training["tokens_per_second"] > 0
    memory = training["memory"]
    assert 0.4 < memory["device"] <= memory["host"]
    # Nearly all of it is Python and its libraries, which a process of QLoRA has fewer of.
    assert 0.9 < memory["predicted_device"] / memory["device"] < 1.4
    record = ledger.read(str(folder / "outputs" / "ledger"))[0]
    assert (record.run, record.setup.family, record.setup.instance) == ("tiny", "llama", "this machine")
    assert record.planned.allocated_gib == memory["predicted_device"]
    assert record.measured.allocated_gib == memory["device"]
    assert record.measured.seconds_per_step == training["pace"]["seconds_per_step"] > 0
    assert record.measured.startup_seconds > training["pace"]["loading_seconds"] > 0
    assert before["prompts"] == after["prompts"]
    assert "colour" in before["prompts"][0]
    assert Path(metrics["outputs"]["model"]).is_dir()
    assert "held-out loss" in done.stderr
    assert "step 2/" in done.stderr
    page = only(folder, "outputs/tiny/*/result/result.html")
    assert f"See {page}" in done.stderr
    text = unescape(page.read_text())
    for shown in (*metrics["outputs"].values(), f"{after['loss']:.4f}", before["prompts"][0], "this machine"):
        assert shown in text
    assert not list(folder.glob("outputs/**/*.partial"))


@pytest.mark.slow
def test_result_of_full_finetuning_loads_with_plain_transformers(full_run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _, _ = full_run
    saved = only(folder, "outputs/tiny/*/model")
    assert AutoModelForCausalLM.from_pretrained(saved).num_parameters() > 0
    assert AutoTokenizer.from_pretrained(saved).chat_template
    manifest = json.loads((saved / "manifest.json").read_text())
    plan = TypeAdapter(TrainingPlan).validate_python(manifest["plan"])
    assert (plan.method, plan.strategy, stage(config_in(plan.settings))) == ("full", "zero", 3)
    assert plan.processes_per_node == 2
    assert manifest["config"]["name"] == "tiny"
    assert len(manifest["dataset_fingerprint"]) == 64


@pytest.mark.slow
@pytest.mark.parametrize(
    ("which", "technique"),
    [("full_run", "full fine-tuning"), ("qlora_run", "QLoRA, the adapter merged into the model"),
     ("adapter_run", "QLoRA")],
)  # fmt: skip
def test_dry_run_of_publishing_leaves_what_would_be_pushed(which, technique, request, chat_rows_file):
    """A merged model could not be published at all: the test of its card had written the manifest by hand."""
    folder, config, done = request.getfixturevalue(which)
    name = yaml.safe_load(config.read_text())["name"]
    card = only(folder, f"outputs/{name}/*/publish/README.md")
    metrics = metrics_from_json(json.loads(only(folder, f"outputs/{name}/*/metrics.json").read_text()))
    assert Path(metrics.outputs["published"]) == card.parent
    assert str(card.parent) in done.stderr
    text = card.read_text()
    assert "# tiny" in text
    assert f"trained with thriftune: {technique}.\n" in text
    assert f"| Data | `{chat_rows_file}` |" in text
    before, after = metrics.training.before, metrics.training.after
    assert f"| Held-out loss | {before.loss:.4f} before, {after.loss:.4f} after" in text
    made = {file.name for file in Path(metrics.outputs["model"]).iterdir()}
    assert {file.name for file in card.parent.iterdir()} == made | {"README.md"}


@pytest.mark.slow
def test_a_result_is_loaded_and_measured_again_where_the_run_asks_for_it(full_run, qlora_run):
    found = [metrics_from_json(json.loads(only(f, "outputs/tiny/*/metrics.json").read_text())) for f in
             (full_run[0], qlora_run[0])]  # fmt: skip
    assert found[0].saved_model is None
    assert "the result, loaded again" not in full_run[2].stderr
    assert found[1].saved_model.tokens == found[1].training.after.tokens
    # The adapter was trained on a base in 4 bits, and merged into the one that it was made of.
    assert found[1].saved_model.loss == pytest.approx(found[1].training.after.loss, abs=0.1)
    assert found[1].saved_model.loss < found[1].training.before.loss - 0.05
    assert "the result, loaded again" in qlora_run[2].stderr


@pytest.mark.slow
def test_the_workflow_of_every_method_trains_adapters_on_a_base_in_sixteen_bits(
    tmp_path, tiny_model_dir, chat_rows_file
):
    config = write_config(tmp_path, "lora", tiny_model_dir, chat_rows_file, lora={"rank": 8, "merge": False})
    done = pyflyte_run(tmp_path, *ANY, "--config", str(config))
    metrics = metrics_from_json(json.loads(only(tmp_path, "outputs/tiny/*/metrics.json").read_text()))
    assert metrics.method == "lora"
    assert metrics.training.after.loss < metrics.training.before.loss - 0.05
    adapter = Path(metrics.outputs["adapter"])
    assert metrics.outputs["model"] == str(adapter), done.stderr[-2000:]
    assert json.loads((adapter / "manifest.json").read_text())["plan"]["method"] == "lora"


@pytest.mark.slow
def test_qlora_saves_only_the_adapter_and_a_merged_model(qlora_run):
    folder, _, _ = qlora_run
    adapter = only(folder, "outputs/tiny/*/adapter")
    names = {p.name for p in adapter.iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "manifest.json"}
    # Every linear layer but the output head is adapted when nothing is named.
    targets = json.loads((adapter / "adapter_config.json").read_text())["target_modules"]
    projections = {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    assert {name.rpartition(".")[2] for name in targets} == projections
    assert only(folder, "outputs/tiny/*/model").joinpath("model.safetensors").is_file()


@pytest.fixture(scope="module")
def adapter_run(qlora_run):
    """Goes on from the adapter of the QLoRA run, and merges nothing."""
    folder, config, _ = qlora_run
    content = yaml.safe_load(config.read_text())
    content["lora"] |= {"resume_from": str(only(folder, "outputs/tiny/*/adapter")), "merge": False}
    content["name"] = "resumed"
    content["training"]["max_steps"] = 2
    resumed = folder / "resumed.yaml"
    resumed.write_text(yaml.safe_dump(content))
    return folder, resumed, pyflyte_run(folder, *QLORA, "--config", str(resumed))


@pytest.mark.slow
def test_second_run_fetches_and_prepares_nothing_and_resumes_from_the_adapter(adapter_run):
    folder, _, done = adapter_run
    adapter = only(folder, "outputs/tiny/*/adapter")
    first = json.loads((adapter / "manifest.json").read_text())["training"]["losses"]
    assert "The base model is already in" in done.stderr
    assert "The prepared dataset is already in" in done.stderr
    again = json.loads(only(folder, "outputs/resumed/*/adapter/manifest.json").read_text())["training"]["losses"]
    assert again[0] < first[0] - 0.3, "the first loss after resuming is that of a trained adapter"


UPSTREAM = """
import pandas as pd
from flytekit import task, workflow
from thriftune.config import RunConfig
from workflows.full_finetune import full_finetune_on_table
from workflows.stages import FinetuneResult

@task
def collected() -> pd.DataFrame:
    days = range(60)
    return pd.DataFrame({"q": [f"What is {i}?" for i in days], "a": [f"It is {i}." for i in days]})

@workflow
def collect_and_finetune(config: RunConfig) -> FinetuneResult:
    return full_finetune_on_table(config=config, table=collected())
"""


@pytest.fixture(scope="module")
def table_run(tmp_path_factory, tiny_model_dir):
    """Trains on what another task collected, and cannot push what came out."""
    folder = tmp_path_factory.mktemp("table")
    file = folder / "upstream.py"
    file.write_text(UPSTREAM)
    sections = {
        "data": {"source": "input:table", "format": "prompt_completion", "columns": {"prompt": "q", "completion": "a"}},
        "training": {"max_steps": 2},
        "publish": {"repository": "team/tiny"},
    }
    config = write_config(folder, "full", tiny_model_dir, Path("input:table"), **sections)
    with refusing_hub() as hub:
        variables = {"HF_ENDPOINT": hub, "HF_TOKEN": "hf_tiny"}
        done = pyflyte_run(
            folder, str(file), "collect_and_finetune", "--config", str(config), check=False, variables=variables
        )
    return folder, done


@pytest.mark.slow
def test_a_hub_that_refuses_costs_nothing_but_the_publishing(table_run):
    """The metrics and the table were lost with it."""
    folder, done = table_run
    said = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert "publish.repository = team/tiny: the hub refused the token (HTTP 403). Give a valid token with write" in said
    assert "Nothing but publishing failed" in said
    assert "held-out loss" in done.stderr
    metrics = metrics_from_json(json.loads(only(folder, "outputs/tiny/*/metrics.json").read_text()))
    assert "published" not in metrics.outputs
    assert only(folder, "outputs/tiny/*/result/result.html").is_file()
    model = Path(metrics.outputs["model"])
    assert (model / "model.safetensors").is_file()
    assert f"model: {model}" in said
    staged = model.parent / "publish"
    assert f"what was to be pushed is in {staged}" in said
    assert "(the table that the workflow was given)" in (staged / "README.md").read_text()


@pytest.mark.slow
def test_the_table_of_an_upstream_task_is_trained_on(table_run):
    tmp_path, done = table_run
    dataset = only(tmp_path, "outputs/cache/dataset-*/manifest.json").parent
    report = json.loads((dataset / "report.json").read_text())
    assert report["train"]["examples"] + report["validation"]["examples"] == 60
    assert report["sources"][0]["name"] == "input:table"
    assert (dataset / "report.html").is_file()
    assert only(tmp_path, "outputs/tiny/*/model").is_dir()
    assert "report.html" in done.stderr


@pytest.mark.slow
def test_generate_answers_with_base_and_adapters_alike(full_run, qlora_run, tiny_model_dir, tmp_path):
    adapter = str(only(qlora_run[0], "outputs/tiny/*/adapter"))
    questions = tmp_path / "questions.txt"
    questions.write_text("What colour is a cat on day 2?\n")
    done = pyflyte_run(
        tmp_path, "workflows/generate.py", "generate", "--model_dir", str(tiny_model_dir), "--prompts_file",
        str(questions), "--prompts", '["What is <red>?"]', "--adapters", json.dumps([adapter, adapter]),
        "--max_new_tokens", "8", "--output_format", "parquet",
    )  # fmt: skip
    import pyarrow.parquet as pq

    file = only(tmp_path, "outputs/generate/*/answers.parquet")
    rows = pq.read_table(file).to_pylist()
    assert [r["prompt"] for r in rows] == ["What is <red>?", "What colour is a cat on day 2?"] * 2
    assert [r["adapter"] for r in rows] == ["adapter-1", "adapter-1", "adapter-2", "adapter-2"]
    assert "> What is <red>?\n  adapter-1: " in done.stderr
    assert f"All answers: {file}" in done.stderr
    page = only(tmp_path, "outputs/generate/*/answers/answers.html")
    assert f"See {page}" in done.stderr
    text = page.read_text()
    order = [text.index(f">{column}</th>") for column in ("Prompt", "adapter-1", "adapter-2")]
    assert order == sorted(order)
    assert "What is &lt;red&gt;?" in text


BAD_RUNS = {
    "misspelt key": ({"training": {"lerning_rate": 1}}, ["training.lerning_rate", "learning_rate"]),
    "unknown format": ({"data": {"format": "dolly"}}, ["data.format", "dolly", "alpaca"]),
    "batch that does not divide": ({"training": {"global_batch": 7}}, ["training.global_batch = 7", "8"]),
    "bf16 on a T4": (
        {"hardware": {"device": "T4"}, "training": {"precision": "bf16"}},
        ["training.precision = bf16", "T4", "fp16"],
    ),
    "several at once": (
        {"training": {"lerning_rate": 1, "global_batch": 7}, "seed": "x"},
        ["training.lerning_rate", "training.global_batch", "seed"],
    ),
    "unknown ZeRO file": ({"zero": {"config": "zero9"}}, ["zero.config = zero9", "zero3_offload"]),
    "ZeRO that decides the batch": (
        {"zero": {"config": {"train_batch_size": 3, "zero_optimization": {"stage": 3}}}},
        ["zero.config.train_batch_size = 3", "training.global_batch"],
    ),
    "several nodes on a laptop": (
        {"hardware": {"nodes": 2}, "training": {"global_batch": 16}},
        ["hardware.nodes = 2", "--remote"],
    ),
    "a GPU that is not there": ({"hardware": {"device": "H100"}}, ["hardware.device = H100", "CPU"]),
    "missing data file": ({"data": {"source": "nowhere.jsonl"}}, ["data.source = nowhere.jsonl", "no such file"]),
    "missing model": ({"model": {"source": "./nowhere"}}, ["model.source = ./nowhere", "does not exist"]),
    "a table that nobody gave": ({"data": {"source": "input:table"}}, ["data.source = input:table", "_on_table"]),
    "packing and grouping": (
        {"data": {"packing": True}, "training": {"group_by_length": True}},
        ["training.group_by_length = true", "data.packing"],
    ),
    "missing column": ({"data": {"format": "alpaca"}}, ["data.format = alpaca", "instruction", "messages"]),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_RUNS)
def test_bad_input_ends_before_training_with_field_value_and_remedy(name, tmp_path, tiny_model_dir, chat_rows_file):
    overrides, expected = BAD_RUNS[name]
    config = write_config(tmp_path, "full", tiny_model_dir, chat_rows_file, **overrides)
    done = pyflyte_run(tmp_path, *FULL, "--config", str(config), check=False)
    printed = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    for text in expected:
        assert text in printed, f"{text!r} is not in: {printed[-2000:]}"
    assert "step 1/" not in printed
    assert not list(tmp_path.glob("outputs/tiny/**/manifest.json"))


def test_too_many_bad_rows_end_before_training_with_counts_and_first_rows(tmp_path, tiny_model_dir, chat_rows_file):
    rows = chat_rows_file.read_bytes().splitlines()
    rows[3], rows[10], rows[11] = b"{broken", b'{"messages": []}', b'{"messages": []}'
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join(rows))
    config = write_config(tmp_path, "full", tiny_model_dir, file)
    done = pyflyte_run(tmp_path, *FULL, "--config", str(config), check=False)
    printed = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert "data.max_rejected = 0.01: 3 of 60 rows (5.0%) cannot be used." in printed
    assert "rows.jsonl, row 11, 12: column 'messages' is empty." in printed
    assert "rows.jsonl, row 4: is not JSON" in printed


def test_empty_data_ends_before_training(tmp_path, tiny_model_dir):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    config = write_config(tmp_path, "full", tiny_model_dir, empty)
    done = pyflyte_run(tmp_path, *FULL, "--config", str(config), check=False)
    assert done.returncode != 0
    assert "data.source" in done.stdout + done.stderr
    assert not list(tmp_path.glob("outputs/**/manifest.json")) or not list(tmp_path.glob("outputs/tiny/*"))


def test_lora_target_that_matches_nothing_ends_before_training(tmp_path, tiny_model_dir, chat_rows_file):
    config = write_config(tmp_path, "qlora", tiny_model_dir, chat_rows_file, lora={"target_modules": ["query"]})
    done = pyflyte_run(tmp_path, *QLORA, "--config", str(config), check=False)
    printed = " ".join((done.stdout + done.stderr).split())
    assert done.returncode != 0
    assert "lora.target_modules = query" in printed
    assert "q_proj" in printed
    assert not list(tmp_path.glob("outputs/tiny/*/adapter"))


def test_configuration_of_the_other_method_is_refused(tmp_path, tiny_model_dir, chat_rows_file):
    config = write_config(tmp_path, "qlora", tiny_model_dir, chat_rows_file)
    done = pyflyte_run(tmp_path, *FULL, "--config", str(config), check=False)
    assert done.returncode != 0
    assert "workflows/qlora_finetune.py" in done.stdout + done.stderr


@pytest.mark.parametrize("workflow", [FULL, QLORA, ANY])
def test_help_imports_no_heavy_library(workflow):
    program = (
        "import sys\n"
        "from flytekit.clis.sdk_in_container.pyflyte import main\n"
        "try:\n"
        f"    main(['run', {workflow[0]!r}, {workflow[1]!r}, '--help'])\n"
        "except SystemExit:\n"
        "    pass\n"
        "heavy = ('transformers', 'deepspeed', 'peft', 'bitsandbytes', 'datasets', 'accelerate')\n"
        "print('HEAVY', [name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert "--config" in done.stdout
    assert "HEAVY []" in done.stdout, done.stdout[-500:] + done.stderr[-500:]
