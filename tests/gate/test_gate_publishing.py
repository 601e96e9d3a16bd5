"""What a gate does at the end of a run: what passes is pushed with its evidence, what does not is kept, and said."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import run_dict
from flytekit.types.directory import FlyteDirectory
from huggingface_hub import ModelCard
from planning import planned
from planted_results import answers, pair_of_models, results, rows
from test_results import TRAINED

from tasks import settings
from tasks.publish import publish
from tasks.results import require_there
from thriftune import artifacts
from thriftune.config import PublishConfig, RunConfig
from thriftune.errors import GateError, from_json, to_json
from thriftune.inference.gate.comparing import compare
from thriftune.inference.gate.evidence import card_rows
from thriftune.inference.gate.verdict import decide
from thriftune.inference.model_card import model_card
from thriftune.inference.report import RunMetrics, metrics_from_json
from thriftune.training.run_record import RunRecord

RULES = {"improves": [{"metric": "choice.accuracy"}], "keeps": [{"metric": "rows.loss", "within": 0.3}]}
CHANGES = {"passes": (0.15, 0.02), "fails": (0.02, 0.15), "undecided": (0.05, 0.05)}
PLACE = "me/tuned"


@pytest.fixture
def ended(tmp_path, monkeypatch):
    """The last task of a run whose result is better, worse or much the same, with a gate."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("THRIFTUNE_OUTPUTS", str(tmp_path / "outputs"))

    def end(outcome, measured=True, **gate):
        to = PublishConfig.model_validate({"repository": PLACE, "dry_run": True, "gate": {**RULES, **gate}})
        config = RunConfig.model_validate(run_dict("qlora"))
        record = RunRecord(config, planned(config), "1", "rows", TRAINED)
        with artifacts.writing(tmp_path / "adapter", "testing") as folder:
            (folder / "adapter_model.safetensors").write_bytes(b"x" * 100)
            artifacts.write_manifest(folder, "adapter", record.as_json())
        comparison = compared(outcome)
        metrics = RunMetrics("tiny", "qlora", TRAINED, {"adapter": str(tmp_path / "adapter")})
        metrics.outputs["model"] = metrics.outputs["adapter"]
        if measured:
            verdict = decide(comparison, to.gate)
            assert verdict.outcome == outcome
            metrics = replace(metrics, comparison=comparison, verdict=verdict)
        return publish.task_function(FlyteDirectory(str(tmp_path / "adapter")), config, to, metrics)

    return end


def compared(outcome):
    """A comparison of models that are better, worse or much the same."""
    base, tuned = pair_of_models(300, *CHANGES[outcome], seed=0)
    more = rows([20, 30] * 20, [10] * 40), answers(["It is four."] * 10)
    return compare([results(base.items, *more)], results(tuned.items, *more))


def test_what_passes_is_pushed_with_what_it_was_decided_by(ended):
    metrics = ended("passes")
    place = Path(metrics.outputs["published"])
    assert {file.name for file in place.iterdir()} == {
        "README.md", "gate.json", "manifest.json", "adapter_model.safetensors",
    }  # fmt: skip
    assert json.loads((place / "gate.json").read_text())["verdict"]["outcome"] == "passes"
    assert "The gate passes: all 2 rules hold" in (place / "README.md").read_text()
    assert (metrics.remarks, "evidence" in metrics.outputs) == ([], False)


@pytest.mark.parametrize("outcome", ["fails", "undecided"])
def test_what_does_not_pass_is_held_back_and_nothing_of_it_is_lost(ended, outcome, tmp_path, monkeypatch):
    metrics = ended(outcome)
    assert metrics.outputs["published"] == ""
    assert Path(metrics.outputs["adapter"], "adapter_model.safetensors").is_file()
    place = Path(metrics.outputs["evidence"])
    assert {file.name for file in place.iterdir()} == {"README.md", "gate.json", "manifest.json"}
    assert json.loads((place / "gate.json").read_text())["verdict"]["outcome"] == outcome
    (remark,) = metrics.remarks
    assert remark.startswith("Nothing is published. The gate")
    assert metrics.verdict.sentence in remark
    assert ("on_undecided: publish" in remark) == (outcome == "undecided")
    (written,) = tmp_path.glob("outputs/tiny/*/metrics.json")
    assert metrics_from_json(json.loads(written.read_text())) == metrics
    monkeypatch.setattr(settings, "is_local", lambda: False)
    require_there({"published": metrics.outputs["published"]})  # an empty place is not looked at


def test_undecided_is_published_where_the_file_says_so(ended):
    metrics = ended("undecided", on_undecided="publish")
    assert Path(metrics.outputs["published"], "gate.json").is_file()
    (remark,) = metrics.remarks
    assert remark.startswith("Published all the same")
    assert "The gate is undecided" in remark


def test_a_run_that_asks_for_it_fails_when_everything_is_kept(ended, tmp_path):
    with pytest.raises(GateError) as caught:
        ended("fails", on_fail="error")
    (problem,) = caught.value.problems
    assert (problem.field, problem.value, problem.code) == ("publish.gate.improves", "choice.accuracy", "gate-failed")
    assert "evidence: " in problem.remedy
    assert from_json(to_json(caught.value)).problems == caught.value.problems
    (written,) = tmp_path.glob("outputs/tiny/*/metrics.json")
    assert metrics_from_json(json.loads(written.read_text())).outputs["published"] == ""
    assert ended("undecided", on_fail="error").outputs["published"] == "", "undecided is no failure"


def test_with_a_gate_that_was_never_asked_nothing_is_pushed(ended):
    with pytest.raises(RuntimeError, match="were not compared"):
        ended("passes", measured=False)


def test_a_card_shows_benchmarks_as_people_and_the_hub_read_them():
    config = RunConfig.model_validate(run_dict("qlora"))
    record = RunRecord(config, planned(config), "1", "rows", TRAINED)
    found = compared("passes")
    metrics = RunMetrics("tiny", "qlora", TRAINED, {}, comparison=found, contamination={"choice": 0.25})
    text = str(model_card(record, metrics, PLACE, is_adapter=True))
    for line in ("## Benchmarks", "| Metric | Items | Base | Result | Change |", "| choice.accuracy | 300 | ",
                 "| choice/grammar.accuracy | 60 | ", "| answers.stops | 10 | ", "25.0% are in"):  # fmt: skip
        assert line in text, line
    read = ModelCard(text)  # the hub's own parser of the header
    assert read.data.model_name == "tuned"
    by_name = {(one.dataset_name, one.metric_type): one for one in read.data.eval_results}
    assert set(by_name) == {("choice", "accuracy"), ("rows", "loss"), ("written", "exact_match")}
    accuracy = by_name["choice", "accuracy"]
    assert accuracy.metric_value == pytest.approx(found.of("choice.accuracy").tuned.value, abs=1e-5)
    assert (accuracy.task_type, accuracy.dataset_args) == ("text-generation", {"version": "v1"})
    assert "95% interval" in accuracy.metric_name
    assert "base " in accuracy.metric_name
    assert str(ModelCard(str(read))) == text, "nothing is lost by reading and writing it"


def test_a_name_with_a_bar_is_one_cell_of_the_card():
    base = pair_of_models(20, 0, 0, seed=0)[0]
    model = results([replace(item, group="a|b") for item in base.items])
    assert [row[0] for row in card_rows(compare([model], model))] == ["choice.accuracy", "choice/a\\|b.accuracy"]


def test_a_card_without_benchmarks_is_as_before():
    config = RunConfig.model_validate(run_dict("qlora"))
    record = RunRecord(config, planned(config), "1", "rows", TRAINED)
    text = str(model_card(record, RunMetrics("tiny", "qlora", TRAINED, {}), PLACE, is_adapter=True))
    assert "Benchmarks" not in text
    assert "model-index" not in text
