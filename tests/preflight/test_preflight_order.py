"""No task that could have a GPU is started before the preflight has passed: in the graph of every workflow, and run."""

import json
from dataclasses import replace

import pytest
from conftest import run_dict
from flytekit.core.base_task import PythonTask
from preflighting import broken_copy, plan_for

from tasks.evaluate import evaluate
from tasks.preflight import _writes_here, preflight
from tasks.train import train_in_one_process, training_task
from thriftune.config import RunConfig
from thriftune.config.rules import NODE_COUNTS
from thriftune.errors import TransientError
from workflows.finetune import finetune, finetune_on_table
from workflows.full_finetune import full_finetune, full_finetune_on_table
from workflows.plan import preflight as preflight_workflow
from workflows.qlora_finetune import qlora_finetune, qlora_finetune_on_table

WORKFLOWS = (
    finetune, finetune_on_table, full_finetune, full_finetune_on_table, qlora_finetune, qlora_finetune_on_table
)  # fmt: skip
# Before it stands only what makes the plan.
BEFORE = {"tasks.pin.pin", "tasks.plan.plan"}
FREE = {*BEFORE, "tasks.preflight.preflight"}


def name_of(node):
    return node.flyte_entity.name


def ancestors(node):
    """Every node that must have ended well before this one starts."""
    found, pending = set(), list(node.upstream_nodes)
    while pending:
        other = pending.pop()
        if other.id not in {f.id for f in found}:
            found.add(other)
            pending += other.upstream_nodes
    return {name_of(other) for other in found}


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.name)
def test_every_node_but_the_plan_waits_for_the_preflight(workflow):
    nodes = {name_of(node): node for node in workflow.nodes}
    assert "tasks.preflight.preflight" in nodes
    assert len(nodes) == 4
    waiting = [name for name, node in nodes.items() if "tasks.preflight.preflight" in ancestors(node)]
    assert set(nodes) - set(waiting) == FREE


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.name)
def test_plan_preflight_and_what_follows_stand_in_a_line(workflow):
    """Model, data and training are nodes of what follows: there tests/test_training_order.py looks."""
    nodes = {name_of(node): node for node in workflow.nodes}
    trains = next(name for name in nodes if name.endswith("_on_plan"))
    line = ["tasks.pin.pin", "tasks.plan.plan", "tasks.preflight.preflight", trains]
    for number, name in enumerate(line):
        assert set(line[:number]) <= ancestors(nodes[name])


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.name)
def test_tasks_with_a_gpu_are_only_in_the_part_that_waits(workflow, tiny_model_dir):
    """They are made when that part runs: none is a node of the workflow itself."""
    on_nodes = [replace(plan_for("full", tiny_model_dir), nodes=nodes) for nodes in NODE_COUNTS]
    with_gpu = {task.name for task in (evaluate, train_in_one_process, *map(training_task, on_nodes))}
    assert len(with_gpu) == 2 + len(NODE_COUNTS) >= 8
    assert not with_gpu & {name_of(node) for node in workflow.nodes}


def test_the_preflight_itself_asks_for_no_gpu():
    for task in (preflight, preflight_workflow.nodes[0].flyte_entity):
        assert task.resources.requests.gpu is None
        assert task.resources.limits.gpu is None
        assert task.enable_deck


@pytest.fixture
def started(monkeypatch, tmp_path):
    """The names of all tasks that are started, in order."""
    names = []
    execute = PythonTask.dispatch_execute

    def recorded(self, *arguments, **options):
        names.append(self.name)
        return execute(self, *arguments, **options)

    monkeypatch.setattr(PythonTask, "dispatch_execute", recorded)
    monkeypatch.setenv("THRIFTUNE_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("HF_TOKEN", "")
    return names


def broken_run(kind, folder, model, rows):
    method = "qlora" if kind == "adapter" else "full"
    content = run_dict(method, model={"source": str(model)}, data={"source": str(rows)})
    if kind == "tokenizer":
        changed = broken_copy(model, folder, change={"tokenizer_config.json": {"eos_token": None}})
        content["model"]["source"] = str(changed)
    elif kind == "rows":
        file = folder / "rows.jsonl"
        file.write_text('{"messages": []}\n' * 30)
        content["data"]["source"] = str(file)
    elif kind == "length":
        content["data"]["max_length"] = 12
    elif kind == "adapter":
        content["lora"] = {"resume_from": str(folder / "nowhere")}
    else:
        content["publish"] = {"repository": "me/tuned"}
    return RunConfig.model_validate(content)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("tokenizer", "tokenizer-no-eos"),
        ("rows", "too-many-rejected"),
        ("length", "all-rows-too-long"),
        ("adapter", "adapter-not-found"),
        ("token", "publish-no-token"),
    ],
)
def test_of_a_broken_run_nothing_after_the_preflight_is_started(
    kind, code, started, tmp_path, tiny_model_dir, chat_rows_file
):
    run = broken_run(kind, tmp_path, tiny_model_dir, chat_rows_file)
    workflow = qlora_finetune if run.method == "qlora" else full_finetune
    with pytest.raises(Exception, match=rf"\[{code}\]"):
        workflow(config=run)
    assert started == ["tasks.pin.pin", "tasks.plan.plan", "tasks.preflight.preflight"]
    (file,) = tmp_path.glob("outputs/tiny/*/preflight/preflight.json")
    assert code in {found["code"] for found in json.loads(file.read_text())["findings"]}
    assert code in file.with_name("preflight.html").read_text()


def test_a_run_is_checked_alone_with_its_plan_s_error_among_the_findings(
    started, tmp_path, tiny_model_dir, chat_rows_file
):
    content = run_dict(
        model={"source": str(tiny_model_dir)},
        data={"source": str(chat_rows_file), "max_length": 12},
        hardware={"nodes": 2},
        training={"global_batch": 8},
    )
    with pytest.raises(Exception) as caught:
        preflight_workflow(config=RunConfig.model_validate(content))
    assert "[plan-does-not-fit]" in str(caught.value)
    assert "[all-rows-too-long]" in str(caught.value)
    assert started == ["tasks.preflight.preflight_alone"]


def test_a_good_run_passes_alone(started, tmp_path, tiny_model_dir, chat_rows_file):
    run = run_dict(model={"source": str(tiny_model_dir)}, data={"source": str(chat_rows_file)})
    report = json.loads(preflight_workflow(config=RunConfig.model_validate(run)))
    assert report["ok"]
    assert report["facts"]["plan"]


def test_this_disk_is_of_no_matter_to_a_run_that_is_planned_for_a_cluster(tiny_model_dir):
    """A checkpoint of 301 GiB, for nodes that have the room, is no matter of the laptop that only looks at it."""
    here = plan_for("full", tiny_model_dir)
    assert _writes_here(here)
    assert not _writes_here(replace(here, instance="g4dn.metal"))
    assert _writes_here(TransientError("no plan"))
