"""What a gate may ask for: refused in the run file, with names that are close, before anything is trained."""

import pytest
from conftest import run_dict

from thriftune.config import RunConfig
from thriftune.config.benchmarks import GENERAL_MINI, HELD_OUT
from thriftune.config.gate_rules import unknown_metrics
from thriftune.config.publishing import GateConfig
from thriftune.errors import ConfigError

OWN = {"name": "mine", "file": "mine.jsonl", "format": "exact_answer"}
TASKS = [GENERAL_MINI, HELD_OUT, "arc_easy", OWN]


def problems(gate, tasks=TASKS):
    """The problems of a run with a gate."""
    sections = {"benchmarks": {"tasks": tasks}} if tasks else {}
    content = run_dict("qlora", publish={"repository": "me/x", "gate": gate}, **sections)
    try:
        RunConfig.model_validate(content)
    except ConfigError as error:
        return [problem for problem in error.problems if "gate" in problem.field or "benchmarks" in problem.field]
    return []


@pytest.mark.parametrize("metric", [
    "general-mini.accuracy", "general-mini.accuracy_sum", "general-mini/arithmetic.accuracy", "held_out.loss",
    "mine.exact_match", "mine/any group.exact_match", "arc_easy.acc_norm", "arc_easy.whatever", "answers.stops",
    "answers.template_text",
])  # fmt: skip
def test_what_is_measured_or_may_be_is_accepted(metric):
    assert problems({"improves": [{"metric": metric}]}) == []
    assert problems({"keeps": [{"metric": metric, "within": 0.02}]}) == []


@pytest.mark.parametrize(("metric", "message", "remedy"), [
    ("general_mini.accuracy", "which is not measured", "Did you mean general-mini"),
    ("general-mini.acuracy", "is no metric of general-mini", "Did you mean accuracy"),
    ("held_out.accuracy", "is no metric of held_out", "Its metrics are loss."),
    ("mine.accuracy", "is no metric of mine", "exact_match"),
    ("answers.stop", "is no metric of answers", "Did you mean stops"),
    ("zzz.accuracy", "which is not measured", "Measured are answers, arc_easy, general-mini, held_out, mine."),
    ("accuracy", "names no benchmark", "Measured are"),
])  # fmt: skip
def test_what_is_not_measured_is_refused_with_names_close_to_it(metric, message, remedy):
    (problem,) = problems({"keeps": [{"metric": metric}]})
    assert (problem.field, problem.value) == ("publish.gate.keeps.0.metric", metric)
    assert message in problem.message
    assert remedy in problem.remedy


def test_how_an_answer_ends_is_known_only_where_a_benchmark_lets_the_model_write():
    for name in ("stops", "length"):
        (problem,) = problems({"keeps": [{"metric": f"answers.{name}"}]}, [GENERAL_MINI])
        assert "repeats" in problem.remedy
        assert problems({"keeps": [{"metric": f"answers.{name}"}]}, [GENERAL_MINI, OWN]) == []
        assert problems({"keeps": [{"metric": f"answers.{name}"}]}, [HELD_OUT]) == [], "its first rows are answered"
    assert problems({"keeps": [{"metric": "answers.repeats"}]}, [GENERAL_MINI]) == []


@pytest.mark.parametrize(("gate", "field", "said"), [
    ({}, "publish.gate", "asks for nothing"),
    ({"improves": [{"metric": "held_out.loss", "by": -0.02}]}, "publish.gate.improves.0.by", "wrong sign"),
    ({"keeps": [{"metric": "held_out.loss", "within": -0.02}]}, "publish.gate.keeps.0.within", "Write 0.02."),
    ({"improves": [{"metric": "general-mini.accuracy", "by": 2}]}, "publish.gate.improves.0.by", "write 0.02"),
    ({"keeps": [{"metric": "answers.repeats", "within": 5}]}, "publish.gate.keeps.0.within", "accepts any loss"),
    ({"improves": [{"metric": "answers.length"}]}, "publish.gate.improves.0.metric", "neither better nor worse"),
    ({"improves": [{"metric": "held_out.loss"}] * 2}, "publish.gate.improves.1.metric", "improves.0.metric already"),
    ({"improves": [{"metric": "held_out.loss"}], "keeps": [{"metric": "held_out.loss"}]},
     "publish.gate.keeps.0.metric", "improves.0.metric already"),
])  # fmt: skip
def test_a_gate_that_cannot_be_meant_is_refused(gate, field, said):
    (problem,) = problems(gate)
    assert problem.field == field
    assert said in f"{problem.message} {problem.remedy}"


def test_a_loss_may_have_to_fall_by_more_than_one():
    assert problems({"improves": [{"metric": "held_out.loss", "by": 1.5}]}) == []


def test_a_gate_needs_benchmarks_and_their_names_are_not_its_own():
    (problem,) = problems({"improves": [{"metric": "held_out.loss"}]}, tasks=None)
    assert (problem.field, "Add the section benchmarks" in problem.remedy) == ("publish.gate", True)
    found = problems({"improves": [{"metric": "held_out.loss"}]}, [HELD_OUT, {**OWN, "name": "answers"}])
    assert [problem.field for problem in found] == ["benchmarks.tasks.1.name"]


@pytest.mark.parametrize("confidence", [0.5, 0.9999, 1])
def test_a_confidence_that_resamples_cannot_show_is_refused(confidence):
    (problem,) = problems({"improves": [{"metric": "held_out.loss"}], "confidence": confidence})
    assert problem.field == "publish.gate.confidence"


def test_groups_are_looked_up_where_they_are_known():
    gate = GateConfig.model_validate({"keeps": [{"metric": "t/a.m"}, {"metric": "t/c.m"}, {"metric": "u/c.m"}]})
    known = {"t": ["m"], "t/a": ["m"], "t/b": ["m"], "u": ["m"]}
    assert [problem.value for problem in unknown_metrics(gate, known)] == ["t/c.m"]
