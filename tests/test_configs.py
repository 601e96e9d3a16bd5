"""Every file in configs/ is one a person can run as it stands: loaded, planned, and with a header that is true."""

import re
from pathlib import Path
from typing import Any

import yaml
from documents import run_files
from holding import holds_for_every
from pydantic import BaseModel

from thriftune.config import ModelConfig, RunConfig
from thriftune.config.choices import METHODS, STRATEGIES
from thriftune.models import architecture
from thriftune.planning import catalogue, offers, planner
from thriftune.training_plan import TrainingPlan

CONFIGS = Path(__file__).parent.parent / "configs"
FILES = run_files()
EXPECTED = {
    "demo-full",
    "demo-qlora",
    "llama2-7b-full",
    "llama2-13b-full",
    "llama2-7b-qlora",
    "llama2-7b-qlora-ddp",
    "llama2-7b-top-layers",
    "llama2-7b-prefix",
    "llama2-7b-adapter",
    "llama2-13b-qlora",
    "llama2-70b-qlora",
    "llama2-70b-qlora-layers",
    "mistral-7b-qlora",
    "mistral-7b-lora-fsdp",
    "english-quotes",
    "grammar",
    "demo-fsdp",
    "demo-ddp-lora",
    "mixtral-8x7b-qlora",
    "sandbox-qlora",
}
# Their commit is not known here, where there is no hub: a run resolves and records it, as the files say.
UNPINNED = {"Abirate/english_quotes", "jhu-clsp/jfleg"}
SETTINGS = CONFIGS / "sandbox.env"

for_every_file = holds_for_every("file", FILES, lambda file: file.name)


def content_of(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def header_of(file: Path) -> str:
    lines = file.read_text(encoding="utf-8").splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.removeprefix("#").strip() for line in lines[:end])


def is_local(run: RunConfig) -> bool:
    """Whether a run is for the machine that it is started on."""
    return run.hardware.device == "CPU" and run.hardware.instance is None


def plan_of(run: RunConfig) -> TrainingPlan:
    is_here = is_local(run)
    # The demo's model is not there in a fresh clone; its architecture is shipped.
    model = ModelConfig(source="HuggingFaceTB/SmolLM2-135M-Instruct") if is_here else run.model
    shape = architecture.of(model)
    return planner.plan(run, catalogue.load(), architecture=shape, here=offers.this_machine() if is_here else None)


def unknown_keys(section: type[BaseModel], content: dict[str, Any], path: str = "") -> list[str]:
    unknown = []
    for key, value in content.items():
        if key not in section.model_fields:
            unknown.append(f"{path}{key}")
            continue
        annotation = section.model_fields[key].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        inner = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        if inner and isinstance(value, dict):
            unknown += unknown_keys(inner, value, f"{path}{key}.")
    return unknown


def test_the_folder_holds_exactly_the_documented_files():
    assert {f.stem for f in FILES} == EXPECTED
    assert {f.name for f in CONFIGS.iterdir()} == {
        SETTINGS.name,
        "benchmark-general.yaml",
        "demo-sweep.yaml",
        "llama2-7b-qlora-sweep.yaml",
        *(f"{name}.yaml" for name in EXPECTED),
    }


@for_every_file
def test_a_file_loads_and_is_named_after_itself(file):
    content = content_of(file)
    assert RunConfig.model_validate(content).name == file.stem
    assert unknown_keys(RunConfig, content) == []


@for_every_file
def test_the_header_names_the_command_for_this_very_file(file):
    run = RunConfig.model_validate(content_of(file))
    workflow = METHODS[run.method].workflow
    options = "" if is_local(run) else "--remote --copy all "
    commands = [line for line in header_of(file).splitlines() if line.startswith("pyflyte run")]
    assert commands == [
        f"pyflyte run {options}workflows/{workflow}.py {workflow} --config configs/{file.name}",
    ]
    assert (CONFIGS.parent / "workflows" / f"{workflow}.py").is_file()


@for_every_file
def test_the_header_says_hardware_and_cost(file):
    header = header_of(file)
    run = RunConfig.model_validate(content_of(file))
    assert "Hardware:" in header
    assert "Cost:" in header
    if run.hardware.device == "CPU":
        return
    assert plan_of(run).instance in header
    assert "on paper and not measured" in header
    assert "list price, check yours" in header
    assert "If it does not fit:" in header


@for_every_file
def test_the_step_count_in_the_cost_follows_from_the_batch(file):
    run = RunConfig.model_validate(content_of(file))
    stated = re.search(r"(\d+) steps x S", header_of(file))
    if run.data.source != "tatsu-lab/alpaca":
        assert stated is None
        return
    rows = 52_002
    trained = rows - round(rows * run.data.validation_share)
    assert stated is not None
    assert int(stated[1]) == -(-trained // run.training.global_batch)


@for_every_file
def test_a_file_fits_what_it_asks_for_and_its_header_says_what_that_is(file):
    """Mixtral's asked for eight T4, and transformers would not have placed its layers on them."""
    run = RunConfig.model_validate(content_of(file))
    plan = plan_of(run)
    ranks = plan.nodes * plan.processes_per_node
    assert ranks == (plan.nodes * plan.devices_per_node if STRATEGIES[plan.strategy].is_distributed else 1)
    assert plan.micro_batch * plan.accumulation * ranks == run.training.global_batch
    if run.hardware.device == "T4":
        assert plan.precision == "fp16"
        assert "bf16" not in yaml.safe_dump(content_of(file))
    if run.hardware.device != "CPU":
        header = header_of(file)
        assert f"{plan.nodes} x {plan.instance}" in header
        assert f"{plan.memory.device_gib:.1f} of {plan.device_limit_gib:.1f} GiB" in header
        assert f"{plan.memory.host_gib:.0f} of {plan.host_limit_gib:.0f} GiB" in header
        assert f"{plan.price_per_hour:.2f} {plan.currency}" in header


@for_every_file
def test_what_comes_from_the_hub_is_pinned_to_a_commit(file):
    run = RunConfig.model_validate(content_of(file))
    for section in (run.model, run.data):
        if section.source in UNPINNED:
            assert section.revision is None
            assert "its commit is resolved when the run starts, and recorded" in file.read_text(encoding="utf-8")
        elif "/" in section.source and not section.source.startswith("build/"):
            assert re.fullmatch(r"[0-9a-f]{40}", section.revision or "")


@for_every_file
def test_every_section_of_a_file_says_something(file):
    """`lora:` with nothing under it reads as null: the section would silently be the default one."""
    assert [key for key, value in content_of(file).items() if value is None] == []
