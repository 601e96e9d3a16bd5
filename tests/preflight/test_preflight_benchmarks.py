"""The preflight of benchmarks: what is missing, damaged, too long, or among the rows to train on."""

import json

import pytest
from preflighting import Checking, codes

from thriftune.config import RunConfig
from thriftune.errors import ConfigError
from thriftune.inference.benchmarks import preparing

CHOICE = {"id": "1", "question": "Which of these is a fruit?", "choices": ["fig", "car"], "answer": 0}


@pytest.fixture
def check(tiny_model_dir, chat_rows_file):
    return Checking(tiny_model_dir, chat_rows_file)


def items(folder, *rows, name="mine.jsonl"):
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": "mine", "file": str(file), "format": "multiple_choice"}


def said(result, code):
    return [found for found in result.findings if found.code == code]


def test_good_benchmarks_have_versions_and_no_findings(check, tmp_path):
    tasks = ["held_out", items(tmp_path, CHOICE)]
    result = check(benchmarks={"tasks": tasks})
    assert codes(result) == set()
    run = check.run(benchmarks={"tasks": tasks})
    assert json.loads(result.facts.benchmarks_version) == preparing.versions(run.benchmarks)
    assert check().facts.benchmarks_version == ""


def test_every_bad_benchmark_is_named(check, tmp_path):
    tasks = [
        items(tmp_path, CHOICE, CHOICE, {**CHOICE, "id": "2", "choices": ["fig", "fig"]}),
        {"name": "gone", "file": "gone.jsonl", "format": "multiple_choice"},
        "held-out",
        {**items(tmp_path, CHOICE, name="other.jsonl"), "name": "arc_easy"},
        {**items(tmp_path, CHOICE, name="other.jsonl"), "name": "shown", "few_shot": 1},
    ]
    result = check(benchmarks={"tasks": tasks})
    assert codes(result) == {"benchmark-item", "benchmark-unknown", "config-invalid", "data-not-found"}
    fields = [found.field for found in result.findings if found.severity == "error"]
    assert fields == [
        f"{tmp_path / 'mine.jsonl'}:2", f"{tmp_path / 'mine.jsonl'}:3", "benchmarks.tasks.1.file", "benchmarks.tasks.2",
        "benchmarks.tasks.3.name", "benchmarks.tasks.4.few_shot",
    ]  # fmt: skip
    assert any("Did you mean held_out" in found.remedy for found in said(result, "benchmark-unknown"))
    assert result.facts.benchmarks_version == ""
    assert all(found.message and found.remedy for found in result.errors)


@pytest.mark.parametrize("kind", ["multiple_choice", "exact_answer"])
def test_an_item_longer_than_the_positions_is_named(kind, check, tmp_path):
    row = {**CHOICE, "question": "why " * 300}
    if kind == "exact_answer":
        row = {"id": "1", "question": "Why is that so?", "answer": "so"}
    task = {**items(tmp_path, row), "format": kind}
    result = check(benchmarks={"tasks": [task], "max_new_tokens": 250})
    (found,) = said(result, "benchmark-too-long")
    assert (found.field, found.value) == ("benchmarks.tasks.0", "mine/1")
    assert "and the model has 256 positions" in found.message


def test_items_in_the_training_rows_are_named_with_their_share(check, tmp_path):
    rows = [
        {**CHOICE, "id": "a", "question": "what COLOUR is the sky on day 0", "choices": ["red", "it is red"]},
        {**CHOICE, "id": "b", "question": "What colour is a cat on day 3?", "choices": ["gold", "pink"]},
        {**CHOICE, "id": "c"},
    ]
    (found,) = said(check(benchmarks={"tasks": [items(tmp_path, *rows)]}), "benchmark-contaminated")
    assert found.severity == "warning"
    assert found.value == "mine"
    assert found.message.startswith("2 of its 3 items (66.7%) are in the rows to train on, 1 of them letter by letter")
    assert "what COLOUR is the sky on day 0; What colour is a cat on day 3?" in found.message


def test_a_task_of_the_harness_is_checked_down_to_its_items(check, tmp_path):
    import yaml

    lines = [{"question": "What colour is the sky on day 0?", "choices": ["red", "blue"], "answer": 0}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    content = {
        "task": "colours", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "test.jsonl"}},
        "output_type": "multiple_choice", "test_split": "test", "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}", "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    file = tmp_path / "colours.yaml"
    file.write_text(yaml.safe_dump(content))
    task = {"name": "colours", "file": str(file)}
    result = check(benchmarks={"tasks": [task]})
    assert codes(result) == set()
    assert "1 of its 1 items (100.0%)" in said(result, "benchmark-contaminated")[0].message
    file.write_text(yaml.safe_dump({**content, "doc_to_text": "{{question * 60}}"}))
    (found,) = said(check(benchmarks={"tasks": [task]}), "benchmark-too-long")
    assert found.value == "colours/0"


@pytest.mark.parametrize(
    ("tasks", "field"),
    [
        (["general-mini", "general-mini"], "benchmarks.tasks.1.name"),
        ([{"name": "mine", "file": "a.jsonl"}], "benchmarks.tasks.0.file"),
        ([{"name": "mine", "format": "exact_answer"}], "benchmarks.tasks.0.format"),
        ([{"name": "mine", "file": "a.yaml", "format": "exact_answer"}], "benchmarks.tasks.0.format"),
        ([{"name": "mine", "file": "a.csv", "format": "exact_answer"}], "benchmarks.tasks.0.file"),
        ([{"name": "general-mini", "file": "a.jsonl", "format": "exact_answer"}], "benchmarks.tasks.0.name"),
        ([{"name": "held_out", "few_shot": 2}], "benchmarks.tasks.0.few_shot"),
        (["answers"], "benchmarks.tasks.0.name"),
    ],
)
def test_what_the_file_alone_shows_is_refused_when_it_is_read(tasks, field, check):
    with pytest.raises(ConfigError) as caught:
        _loaded(check, {"tasks": tasks})
    assert [problem.field for problem in caught.value.problems] == [field]


def test_a_classifier_answers_no_questions(check, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "fine", "label": "good"}\n')
    data = {"source": str(rows), "format": "labelled"}
    options = {"task": "classification", "classification": {"labels": ["good", "bad"]}, "data": data}
    with pytest.raises(ConfigError) as caught:
        _loaded(check, {"tasks": ["held_out"]}, **options)
    assert [problem.field for problem in caught.value.problems] == ["benchmarks"]


def _loaded(check: Checking, benchmarks, **options) -> RunConfig:
    from thriftune.config.rules import check as rules_of

    run = check.run(benchmarks=benchmarks, **options)
    if problems := list(rules_of(run)):
        raise ConfigError(problems)
    return run
