"""The preflight of a gate and its benchmarks: what a person writes wrongly is named before any GPU is asked for."""

import json

import pytest
from preflighting import Checking, codes

from thriftune.config.benchmark_run import BenchmarkRun
from thriftune.preflight import benchmark_run

ITEM = {"id": "1", "question": "Which of these is a fruit?", "choices": ["fig", "car"], "answer": 0, "group": "food"}
NO_ANSWER = {key: value for key, value in ITEM.items() if key != "answer"}
LONG = {**ITEM, "question": "why " * 300}
MINE = {"name": "mine", "file": "mine.jsonl", "format": "multiple_choice"}
CLOSED = {"name": "own", "file": "http://127.0.0.1:9/own.jsonl", "format": "exact_answer"}


@pytest.fixture
def check(tiny_model_dir, chat_rows_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Checking(tiny_model_dir, chat_rows_file)


def write(*rows):
    with open("mine.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def gated(gate, *tasks):
    return {"benchmarks": {"tasks": tasks}, "publish": {"repository": "me/x", "dry_run": True, "gate": gate}}


def of_benchmarks(result):
    return [found for found in result.findings if found.field.startswith(("benchmarks", "mine.jsonl", "publish.gate"))]


@pytest.mark.parametrize(
    ("task", "rows", "field", "value", "message", "remedy"),
    [
        ("arc_eazy", [], "benchmarks.tasks.0", "arc_eazy", "is no benchmark of thriftune", "Did you mean arc_easy"),
        ("held-out", [], "benchmarks.tasks.0", "held-out", "is no benchmark of thriftune", "Did you mean held_out?"),
        ("arc_easy", [], "benchmarks.tasks.0.name", "arc_easy", "allenai/ai2_arc: the hub cannot be reached", "Try"),
        (CLOSED, [], "benchmarks.tasks.0.file", CLOSED["file"], "the store cannot be reached", "Try again"),
        (MINE, [], "mine.jsonl", "", "holds no items", 'Write {"id"'),
        (MINE, [ITEM, ITEM], "mine.jsonl:2", "1", "is the id of line 1 too", "an id of its own"),
        (MINE, [NO_ANSWER], "mine.jsonl:1", "1", "has no answer", 'Write {"id"'),
        (MINE, [{**ITEM, "choices": ["fig", "fig "]}], "mine.jsonl:1", "fig ", "is a choice twice", 'Write {"id"'),
        (MINE, [LONG], "benchmarks.tasks.0", "mine/1", "the model has 256 positions", "Shorten or remove it"),
        (MINE, [{**ITEM, "question": "What colour is the sky on day 0?"}], "benchmarks.tasks", "mine",
         "1 of its 1 items (100.0%) are in the rows to train on", "Remove them"),
    ],
)  # fmt: skip
def test_a_bad_benchmark_is_one_line_with_field_value_and_remedy(
    task, rows, field, value, message, remedy, check, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write(*rows)
    (found,) = of_benchmarks(check(benchmarks={"tasks": [task]}))
    assert (found.field, found.value) == (field, value)
    assert message in found.message
    assert remedy in found.remedy
    assert "\n" not in str(found)


@pytest.mark.parametrize(
    ("task", "metric", "message", "remedy"),
    [
        ("arc_easy", "arc_easy.acc_nrom", "is no metric of arc_easy", "acc_norm"),
        ("gsm8k", "gsm8k.exact_match", "is no metric of gsm8k", "exact_match,flexible-extract, exact_match,strict-mat"),
        ("ai2_arc", "ai2_arc/arc_eazy.acc", "is of ai2_arc/arc_eazy, which is not measured", "ai2_arc/arc_easy"),
        (MINE, "mine/fod.accuracy", "is of mine/fod, which is not measured", "mine/food"),
        ("arc_easy", "answers.stops", "is no metric of answers", "empty, other_language"),
    ],
)
def test_a_gate_on_what_is_not_measured_is_refused_with_names_close_to_it(
    task, metric, message, remedy, check, monkeypatch
):
    """It was noticed when everything had been trained and measured."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write(ITEM)
    run = gated({"keeps": [{"metric": metric, "within": 0.9}]}, task)
    (found,) = [each for each in check(**run).errors if each.field.startswith("publish.gate")]
    assert (found.field, found.value) == ("publish.gate.keeps.0.metric", metric)
    assert message in found.message
    assert remedy in found.remedy


@pytest.mark.parametrize("metric", ["arc_easy.acc_norm", "ai2_arc/arc_challenge.acc", "gsm8k.exact_match,strict-match"])
def test_what_the_harness_measures_is_accepted(metric, check, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    name = metric.rpartition(".")[0].partition("/")[0]
    run = gated({"keeps": [{"metric": metric, "within": 0.02}, {"metric": "answers.empty", "within": 0.02}]}, name)
    assert [each.field for each in of_benchmarks(check(**run))] == ["benchmarks.tasks.0.name"], "only the hub's answer"


def test_too_few_items_for_a_decision_are_a_warning(check):
    write(*({**ITEM, "id": str(number), "group": "food" if number < 30 else ""} for number in range(200)))
    asked = ["mine.accuracy", "mine/food.accuracy", "held_out.loss"]
    gate = {"keeps": [{"metric": metric, "within": 0.02} for metric in asked]}
    share = {"validation_share": 0.05}  # three rows of sixty
    result = check(**gated(gate, MINE, "held_out"), data=share)
    assert codes(result) == set()
    found = {each.value: each for each in of_benchmarks(result)}
    assert set(found) == {"mine/food.accuracy", "held_out.loss"}
    assert {each.code for each in found.values()} == {"gate-too-few-items"}
    assert "has 30 items" in found["mine/food.accuracy"].message
    assert "has 3 items" in found["held_out.loss"].message
    result = check(**gated(gate, {**MINE, "limit": 50}, "held_out"), data=share)
    assert "has 50 items" in {each.value: each for each in of_benchmarks(result)}["mine.accuracy"].message


def test_the_gate_of_a_run_that_only_measures_is_checked_too(check, tiny_model_dir):
    write(ITEM)
    keeps = [{"metric": "mine/fod.accuracy"}, {"metric": "mine.accuracy", "within": 0.02}]
    run = BenchmarkRun.model_validate({
        "name": "measuring", "model": {"source": str(tiny_model_dir)}, "adapters": {"one": "gone"},
        "benchmarks": {"tasks": [MINE]}, "gate": {"keeps": keeps},
    })  # fmt: skip
    found = {each.field: each.code for each in benchmark_run.check(run, None).preflight.findings}
    assert found["gate.keeps.0.metric"] == "config-invalid"
    assert found["gate.keeps.1.metric"] == "gate-too-few-items"
