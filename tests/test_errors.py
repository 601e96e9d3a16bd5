"""Errors name field, value and remedy, and survive the trip between processes."""

import pickle

import pytest

from thriftune import errors
from thriftune.data.formats import RowError
from thriftune.errors import Problem, ThriftuneError, TransientError, UserError

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
        "DivergedError",
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


def test_a_single_problem_is_counted_as_one():
    error = errors.DataError.single("data.source", 5, "is a number.", "Give a path.")
    assert isinstance(error, errors.DataError)
    assert str(error) == "The data cannot be used (1 problem):\n  - data.source = 5: is a number. Give a path."


def test_advice_comes_after_the_remedy_of_each_problem():
    error = errors.DataError(PROBLEMS).advising("Or wait.")
    assert isinstance(error, errors.DataError)
    assert [problem.remedy for problem in error.problems] == [f"{p.remedy} Or wait." for p in PROBLEMS]


def test_each_user_error_has_a_headline_of_its_own():
    assert len({e.headline for e in USER}) == len(USER)


def test_only_transient_errors_are_not_the_users():
    assert all(issubclass(e, ThriftuneError) for e in ALL)
    assert not issubclass(TransientError, UserError)
