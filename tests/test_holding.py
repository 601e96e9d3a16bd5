"""A rule over many things fails where one of them breaks it, and names every one that does."""

import pytest
from holding import holds_for_every


@pytest.fixture
def limit():
    return 2


@holds_for_every("number", [0, 1])
def test_the_other_arguments_of_a_rule_are_fixtures(limit, number):
    assert number < limit


def test_every_thing_that_breaks_a_rule_is_named_with_the_line_and_the_reason():
    @holds_for_every("number", [1, 2, 0, 3], lambda number: f"the {number}")
    def small(number, limit):
        assert 6 / number > limit, "too large"

    with pytest.raises(AssertionError) as caught:
        small(limit=2)
    told = str(caught.value).splitlines()
    line = small.__wrapped__.__code__.co_firstlineno + 2
    assert told[0] == "2 of 4 break it:"
    assert f"the 0 (test_holding.py:{line}): ZeroDivisionError: division by zero" in told
    assert f"the 3 (test_holding.py:{line}): AssertionError: too large" in told
    assert not any("the 1" in text or "the 2" in text for text in told)


def test_a_rule_over_nothing_fails():
    @holds_for_every("number", [])
    def small(number):
        assert number

    with pytest.raises(AssertionError, match="there is nothing to look at"):
        small()


def test_a_rule_without_the_argument_is_an_error():
    with pytest.raises(AssertionError, match="has no argument file"):
        holds_for_every("file", [1])(lambda number: None)
