"""What is made anew when a result is gone, what answers other prompts, and how a run ends whose result is not there."""

import logging
import os
import shutil
from contextlib import contextmanager
from dataclasses import replace

import pytest
from flytekit import FlyteContextManager, current_context
from flytekit.core.context_manager import ExecutionParameters
from flytekit.models.core.identifier import WorkflowExecutionIdentifier
from flytekit.types.directory import FlyteDirectory
from planning import compiled, planned

from tasks import ledger, platform, results, settings
from tasks.results import Versions, steps_of
from tasks.summarize import summarize
from thriftune import artifacts
from thriftune.errors import ResultError, TransientError
from thriftune.training.guards.oom import Halvings
from thriftune.training.guards.resources import Samples
from thriftune.training.held_out import EvalReport
from thriftune.training.memory_watch import MemoryUse
from thriftune.training.result import Asked, TrainingResult
from workflows.finetune import train_on_plan

VERSIONS = Versions("1", "1", "1")
STEPS = ("model", "dataset", "training", "merged")
BEFORE, AFTER = EvalReport(2.0, 7.4, 10, ["Why?"], ["A"]), EvalReport(1.0, 2.7, 10, ["Why?"], ["B"])
TRAINED = TrainingResult(
    2, 1.0, 1.0, [], [], [], [], BEFORE, AFTER, 2, [], MemoryUse(1, 1, 1, 1), 0, Halvings(0, 1, 1), [],
    Samples([], [], [], []), [], asked=Asked(["Why?"], 64),
)  # fmt: skip


@pytest.fixture
def index(monkeypatch, tmp_path):
    """A run finds the index here, as one on a cluster does."""
    monkeypatch.setattr(settings, "results_root", lambda: str(tmp_path / "index"))


@pytest.fixture
def made(index, tmp_path):
    """Make results of the steps of a run, each in its folder, as their tasks do."""

    def make(steps, **facts):
        for name in STEPS:
            step = getattr(steps, name)
            if step is None or step.is_made:
                continue
            place = tmp_path / "results" / step.cache_key
            with artifacts.writing(place, "testing") as folder:
                (folder / "weights").write_bytes(b"x" * 10)
                artifacts.write_manifest(folder, name, {})
            of_training = facts if name == "training" else {}
            results.remember(step.record, FlyteDirectory(str(place)), facts=of_training)

    return make


@pytest.fixture
def on_t4(run_config):
    """A run on T4s of the catalogue, and its plan."""

    def make(method="qlora", **sections):
        config = run_config(method, hardware={"device": "T4"}, training={"precision": "fp16"}, **sections)
        return config, planned(config)

    return make


def keys(steps):
    return {name: getattr(steps, name).cache_key for name in STEPS if getattr(steps, name)}


# What is gone, and what is made anew then: an adapter's merged model is that of the adapter there is.
GONE = [
    ((), set()),
    (("model",), {"model"}),
    (("dataset",), {"dataset"}),
    (("training",), {"training", "merged"}),
    (("merged",), {"merged"}),
    (STEPS, set(STEPS)),
]


@pytest.mark.parametrize(("gone", "anew"), GONE, ids=["+".join(gone) or "nothing" for gone, _ in GONE])
def test_what_is_gone_is_made_anew_and_nothing_else(gone, anew, on_t4, made, tmp_path, caplog):
    run = on_t4()
    first = steps_of(*run, VERSIONS)
    made(first)
    for name in gone:
        shutil.rmtree(tmp_path / "results" / keys(first)[name])
    with caplog.at_level(logging.WARNING):
        second = steps_of(*run, VERSIONS)
    assert {name for name in STEPS if keys(second)[name] != keys(first)[name]} == anew
    assert {name for name in STEPS if not getattr(second, name).is_made} == anew
    said = [line for line in caplog.records if "is made anew" in line.getMessage()]
    assert len(said) == len({*gone} - ({"merged"} if "training" in gone else set()))
    made(second)
    assert keys(steps_of(*run, VERSIONS)) == keys(second)


def test_another_name_prompt_or_place_to_publish_is_the_same_training_and_other_rows_are_not(on_t4, made):
    run = on_t4()
    made(steps_of(*run, VERSIONS))
    other = on_t4(name="other", evaluation={"prompts": ["What?"]}, publish={"repository": "me/tuned"})
    assert keys(steps_of(*other, VERSIONS)) == keys(steps_of(*run, VERSIONS))
    changed = keys(steps_of(*run, replace(VERSIONS, data="2")))
    assert {name for name in STEPS if changed[name] != keys(steps_of(*run, VERSIONS))[name]} == {
        "dataset", "training", "merged"
    }  # fmt: skip


def test_two_models_with_one_tokenizer_share_prepared_rows(on_t4, made):
    one, other = on_t4(), on_t4(model={"source": "owner/other"})
    made(steps_of(*one, VERSIONS))
    found = steps_of(*other, replace(VERSIONS, model="2"))
    assert (found.dataset.is_made, found.model.is_made, found.training.is_made) == (True, False, False)


def test_a_local_run_looks_nothing_up(on_t4):
    steps = steps_of(*on_t4(), VERSIONS)
    assert {step.record for step in (steps.model, steps.dataset, steps.training)} == {""}
    assert keys(steps) == keys(steps_of(*on_t4(), VERSIONS))


def test_an_index_that_is_refused_ends_the_run_with_one_message(on_t4, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(settings, "results_root", lambda: str(tmp_path / "file"))
    with pytest.raises(ResultError, match="what earlier runs made cannot be looked up or written down") as caught:
        steps_of(*on_t4(), VERSIONS)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].remedy


@pytest.mark.parametrize(
    ("prefix", "root"),
    [
        ("s3://b/metadata/propeller/ml-production-abc/n3/data/0", "s3://b/metadata/propeller/thriftune/ml-production"),
        ("gs://b/abc/n3/data/0", "gs://b/thriftune/ml-production"),
        ("s3://b/of/another/kind", "s3://b/thriftune/ml-production"),
    ],
)
def test_the_index_is_the_same_for_every_execution_of_a_project(prefix, root, monkeypatch):
    monkeypatch.setattr(settings, "is_local", lambda: False)
    found = []
    for name in ("abc", "xyz"):
        with in_execution(name, prefix.replace("abc", name)):
            found.append(settings.results_root())
    assert found == [f"{root}/results"] * 2


def test_a_worker_of_a_task_finds_the_ledger_of_the_project(monkeypatch):
    """The Elastic plugin tells its workers nothing of the metadata, and they wrote below a folder `None`."""
    monkeypatch.setattr(settings, "is_local", lambda: False)
    with in_execution("abc", "s3://b/metadata/propeller/ml-production-abc/n3/data/0"), settings.run_handed_down("/w"):
        there = ledger.place()
        platform.read(os.environ)  # what a worker that is spawned does first
        with in_execution("abc", None):  # as flytekit sets it up in a worker
            assert ledger.place() == there == "s3://b/metadata/propeller/thriftune/ml-production/ledger"
    assert not [name for name in os.environ if name == settings._METADATA]


@contextmanager
def in_execution(name, prefix):
    """In a task of an execution of ml/production that Flyte gave a prefix for its metadata."""
    context = FlyteContextManager.current_context()
    parameters = ExecutionParameters.builder(context.user_space_params)
    parameters.execution_id = WorkflowExecutionIdentifier("ml", "production", name)
    parameters.output_metadata_prefix = prefix
    state = context.execution_state.with_params(user_space_params=parameters.build())
    with FlyteContextManager.with_context(context.with_execution_state(state)):
        yield


@pytest.mark.parametrize(
    ("prefix", "url"),
    [
        ("s3://b/metadata/propeller/ml-production-abc/n3/data/0", "flyte://v1/ml/production/abc/n3/o/model"),
        ("s3://b/metadata/propeller/ml-production-abc/n3/data/0/dn5/0", "flyte://v1/ml/production/abc/n3/o/model"),
        ("gs://b/abc/own-name/data/1/n2/0", "flyte://v1/ml/production/abc/own-name/o/model"),
        ("s3://b/ml-production-abc", ""),
        ("s3://b/of/another/kind", ""),
    ],
)
def test_an_output_is_fetched_by_the_node_of_the_workflow_that_has_it(prefix, url, monkeypatch):
    with in_execution("abc", prefix):
        assert settings.output_url("model") == ""
        monkeypatch.setattr(settings, "is_local", lambda: False)
        assert settings.output_url("model") == url


@pytest.mark.parametrize(
    ("url", "is_other"),
    [
        ("s3://b/raw/7f/abc-n3-0-dn2-0/4be2/model", False),
        ("s3://b/raw/7f/xyz-n3-0-dn2-0/4be2/model", True),
        ("s3://b/raw/7f/abcd-n3-0-dn2-1/4be2/adapter/", True),
        ("s3://b/raw/7f/fq3kzzx7lmp5y/4be2/model", False),  # a digest in place of a long name
        ("model", False),
    ],
)
def test_a_result_that_another_execution_made_is_known_by_its_place(url, is_other, monkeypatch):
    with in_execution("abc", ""):
        assert not settings.is_of_another_run(url)
        monkeypatch.setattr(settings, "is_local", lambda: False)
        assert settings.is_of_another_run(url) is is_other


def tasks_of(nodes):
    return sorted(node.metadata.name.rpartition(".")[2] for node in nodes)


@pytest.mark.parametrize(
    ("sections", "measured"),
    [
        ({}, 0),
        ({"evaluation": {"prompts": ["Why?"]}}, 2),
        ({"evaluation": {"max_new_tokens": 7}}, 2),
        ({"evaluation": {"saved_model": True}}, 1),
        ({"evaluation": {"saved_model": True, "prompts": ["Why?"]}}, 3),
        ({"lora": {"merge": False}, "evaluation": {"prompts": ["Why?"]}}, 2),
    ],
)
def test_other_prompts_are_answered_without_training(sections, measured, on_t4, made):
    """Before and after: by the base model and by the result, on the node that results are measured on."""
    first = on_t4()
    made(steps_of(*first, VERSIONS), **Asked.of(first[0]).facts)
    config, plan = on_t4(**sections)
    nodes = compiled(train_on_plan, config, plan)
    assert tasks_of(nodes).count("evaluate") == measured
    waits_for = {node.id: node.metadata.name.rpartition(".")[2] for node in nodes}
    summary = next(node for node in nodes if node.metadata.name.endswith("summarize"))
    assert ("evaluate" in {waits_for[name] for name in summary.upstream_node_ids}) == (measured > 0)


BASE, ADAPTED, RESULT = ("fetch_model",), ("fetch_model", "train_in_one_process"), ("merge_adapter",)


@pytest.mark.parametrize(
    ("sections", "models"),
    [
        ({}, {(BASE, True), (ADAPTED, True)}),
        ({"lora": {"merge": False}}, {(BASE, True), (ADAPTED, True)}),
        ({"lora": {"resume_from": "s3://bucket/adapter"}}, {((*BASE, "s3://bucket/adapter"), True), (ADAPTED, True)}),
        ({"evaluation": {"saved_model": True}}, {(BASE, True), (ADAPTED, True), (RESULT, False)}),
        ({"evaluation": {"saved_model": True}, "lora": {"merge": False}}, {(BASE, True), (ADAPTED, True)}),
    ],
)
def test_the_models_that_trained_answer_and_not_what_was_merged_of_them(sections, models, on_t4, made, monkeypatch):
    """QLoRA's other prompts were answered by a base in 16 bits and by the merged model, which never trained."""
    monkeypatch.setattr("workflows.finetune.start_version", lambda _: "")
    first = on_t4(**sections)
    made(steps_of(*first, VERSIONS), **Asked.of(first[0]).facts)
    config, plan = on_t4(**{**sections, "evaluation": {**sections.get("evaluation", {}), "prompts": ["Why?"]}})
    nodes = compiled(train_on_plan, config, plan)
    tasks = {node.id: node.metadata.name.rpartition(".")[2] for node in nodes}
    found = set()
    for node in (node for node in nodes if tasks[node.id] == "evaluate"):
        bound = {binding.var: binding.binding for binding in node.inputs}
        held = [(b.promise and tasks[b.promise.node_id]) or uri_in(b) for b in (bound["model"], bound["adapter"])]
        found.add((tuple(filter(None, held)), bound["as_trained"].scalar.primitive.value))
    assert found == models


def uri_in(binding):
    """The URL of a directory that is no promise; empty for None."""
    value = binding.scalar.union.value.scalar
    return value.blob.uri if value.blob else ""


def test_what_is_not_reported_again_is_said(on_t4, made, caplog):
    run = on_t4()
    config = run[0].model_copy(update={"training": run[0].training.model_copy(update={"report_to": "wandb"})})
    steps = steps_of(config, run[1], VERSIONS)
    assert "nothing is reported" not in caplog.text
    made(steps)
    steps_of(config, run[1], VERSIONS)
    assert "unless it is trained anew, nothing is reported to Weights & Biases" in caplog.text


def test_a_training_that_is_still_to_be_made_answers_itself(on_t4, index):
    config, plan = on_t4(evaluation={"prompts": ["Why?"]})
    assert "evaluate" not in tasks_of(compiled(train_on_plan, config, plan))


def test_where_no_node_holds_the_result_there_are_no_answers_and_that_is_said(on_t4, made, caplog):
    first = on_t4()
    made(steps_of(*first, VERSIONS), **Asked.of(first[0]).facts)
    config, plan = on_t4(evaluation={"prompts": ["Why?"]})
    with caplog.at_level(logging.WARNING):
        assert "evaluate" not in tasks_of(compiled(train_on_plan, config, replace(plan, evaluation=None)))
    assert "there are no answers" in caplog.text


@pytest.fixture
def summary(run_config, monkeypatch, tmp_path):
    """The end of a run on a cluster whose result is in a folder here."""
    monkeypatch.setattr(settings, "is_local", lambda: False)
    place = tmp_path / "model"
    with artifacts.writing(place, "testing") as folder:
        (folder / "weights").write_bytes(b"x" * 10)
        artifacts.write_manifest(folder, "model", {})

    def make(training=TRAINED, prompts=("Why?",), **reports):
        config = run_config(evaluation={"prompts": list(prompts), "max_new_tokens": 64})
        made = {"training": training, "training_key": "training-1", "model": FlyteDirectory(str(place))}
        return summarize.task_function(config, planned(config), **made, **reports)

    return make


def test_a_run_whose_result_is_not_there_does_not_end_well(summary, tmp_path):
    """It succeeded in 45 s, and named a model of which no file was left."""
    assert summary().outputs == {"model": str(tmp_path / "model")}
    (tmp_path / "model" / "weights").unlink()
    with pytest.raises(ResultError) as caught:
        summary()
    (problem,) = caught.value.problems
    assert (problem.field, problem.value, problem.code) == ("model", str(tmp_path / "model"), "result-missing")
    assert "weights is missing." in problem.message
    assert "Start the run again" in problem.remedy
    assert not isinstance(caught.value, TransientError)


def test_answers_given_again_take_the_place_of_the_training_s_and_losses_stay(summary):
    again = {name: EvalReport(9.0, 9.0, 9, ["What?"], [name]) for name in ("before", "after")}
    training = summary(prompts=["What?"], **again).training
    assert (training.before.loss, training.after.loss) == (2.0, 1.0)
    assert (training.before.answers, training.after.answers) == (["before"], ["after"])
    assert training.after.prompts == training.before.prompts == training.asked.prompts == ["What?"]


@pytest.mark.parametrize("training", [TRAINED, replace(TRAINED, asked=None), replace(TRAINED, before=None)])
def test_answers_to_other_prompts_are_never_shown(summary, training, caplog):
    """Two runs with other prompts at once: one trains, and the other gets its result."""
    with caplog.at_level(logging.WARNING):
        metrics = summary(training, prompts=["What?"])
    found = metrics.training
    assert (found.after.prompts, found.after.answers) == ([], [])
    assert found.before is None or found.before.answers == []
    assert found.after.loss == 1.0
    for said in (caplog.text, *metrics.remarks, current_context().decks[-1].html):
        assert "another run&#39;s" in said or "another run's" in said
        assert "its answers are left out" in said


def test_the_training_s_own_answers_are_shown_without_a_warning(summary, caplog):
    """Also where it was made anew after all, beside the answers of the models it was to be served as."""
    with caplog.at_level(logging.WARNING):
        assert (summary().training, summary().remarks) == (TRAINED, [])
        again = EvalReport(9.0, 9.0, 9, ["Why?"], ["given again"])
        assert summary(before=again, after=again).training == TRAINED
    assert "left out" not in caplog.text
