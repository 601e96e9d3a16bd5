"""Errors name field, value and remedy, and survive the trip between processes."""

import ast
import pickle
from pathlib import Path

import pytest

from thriftune import errors
from thriftune.codes import CODES, UNREACHABLE
from thriftune.data.formats import RowError
from thriftune.errors import Problem, ThriftuneError, TransientError, UserError

ROOT = Path(__file__).resolve().parent.parent
ALL = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
USER = [error for error in ALL if issubclass(error, UserError)]
PROBLEMS = [
    Problem("training.micro_batch", "3", "does not divide.", "Use 4."),
    Problem("data.source", "", "is missing.", "Add it."),
]


def test_there_are_errors_to_test():
    assert {e.__name__ for e in USER} == {
        "UserError",
        "ConfigError",
        "DataError",
        "ModelSourceError",
        "AdapterError",
        "PublishError",
        "GateError",
        "ExportError",
        "ParityError",
        "ResultParityError",
        "DivergedError",
        "ResultError",
        "PodError",
        "BudgetError",
        "StoppedEarlyError",
    }
    assert TransientError in ALL


@pytest.mark.parametrize("error_class", ALL)
def test_every_error_pickles_with_its_message(error_class):
    error = error_class(PROBLEMS) if issubclass(error_class, UserError) else error_class("the hub sleeps")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is error_class
    assert str(copy) == str(error)
    assert str(copy)
    assert getattr(copy, "problems", None) == getattr(error, "problems", None)


def test_a_row_error_pickles_with_its_message():
    assert str(pickle.loads(pickle.dumps(RowError("column 'x' is empty")))) == "column 'x' is empty"


@pytest.mark.parametrize("error_class", USER)
def test_user_errors_name_field_value_and_remedy(error_class):
    text = str(error_class(PROBLEMS))
    assert text.startswith(f"{error_class.headline} (2 problems):\n")
    assert "  - training.micro_batch = 3: does not divide. Use 4." in text
    assert "  - data.source: is missing. Add it." in text


@pytest.mark.parametrize("error_class", [error for error in ALL if error is not ThriftuneError])
def test_every_error_goes_to_another_process_as_text_with_the_codes_of_its_problems(error_class):
    coded = [*PROBLEMS, Problem.coded("pad-is-eos", "model.source", 1, "has one token for both.")]
    error = error_class(coded) if issubclass(error_class, UserError) else error_class("the hub sleeps")
    copy = errors.from_json(errors.to_json(error))
    assert type(copy) is error_class
    assert str(copy) == str(error)
    assert getattr(copy, "problems", None) == getattr(error, "problems", None)


@pytest.mark.parametrize("error_class", USER)
def test_a_problem_has_the_code_of_its_error_unless_it_has_its_own(error_class):
    coded = Problem.coded("pad-is-eos", "model.source", 1, "has one token for both.")
    found = error_class([*PROBLEMS, coded]).problems
    assert [problem.code for problem in found] == [error_class.code, error_class.code, "pad-is-eos"]
    assert [problem.severity for problem in found] == ["error", "error", "warning"]
    assert error_class.single("a", 1, "b.", "c.").problems[0].code == error_class.code
    assert error_class.single("a", 1, "b.", "c.", code="data-empty").problems[0].code == "data-empty"
    assert [p.code for p in error_class.of("data-empty", [*PROBLEMS, coded]).problems] == [
        "data-empty", "data-empty", "pad-is-eos",
    ]  # fmt: skip


def test_every_code_in_the_table_is_given_and_every_code_given_is_in_the_table():
    """The table is the one of docs/preflight.md: tests/preflight/test_preflight_findings.py."""
    texts, given = set(), set()
    for file in (*(ROOT / "thriftune").rglob("*.py"), *(ROOT / "tasks").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        if file.name != "codes.py":
            texts |= {n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            if ast.unparse(call.func) == "RefusedError":  # answers of the server, whose codes are for its clients
                continue
            named = [keyword.value for keyword in call.keywords if keyword.arg == "code"]
            if ast.unparse(call.func).endswith((".coded", "Error.of")):
                named += call.args[:1]
            given |= {value.value for value in named if isinstance(value, ast.Constant) and value.value}
    assert len(given) > 40
    assert given <= CODES.keys()
    assert CODES.keys() - texts == {UNREACHABLE}


def test_a_single_problem_is_counted_as_one():
    error = errors.DataError.single("data.source", 5, "is a number.", "Give a path.")
    assert isinstance(error, errors.DataError)
    assert str(error) == "The data cannot be used (1 problem):\n  - data.source = 5: is a number. Give a path."


def test_advice_comes_once_after_the_remedy_of_the_last_problem():
    error = errors.DataError(PROBLEMS).advising("Or wait.")
    assert isinstance(error, errors.DataError)
    assert [problem.remedy for problem in error.problems] == ["Use 4.", "Add it. Or wait."]


def test_each_user_error_has_a_headline_of_its_own():
    assert len({e.headline for e in USER}) == len(USER)


def test_only_transient_errors_are_not_the_users():
    assert all(issubclass(e, ThriftuneError) for e in ALL)
    assert not issubclass(TransientError, UserError)
