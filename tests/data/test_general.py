"""The general questions that ship with the package are sound, and their check finds what is not."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from thriftune.data.general import general_digest, general_items

ROOT = Path(__file__).parents[2]
CHECK = runpy.run_path(str(ROOT / "scripts" / "general_check.py"))
problems_of, table = CHECK["problems"], CHECK["table"]
GROUPS = {"arithmetic", "common_sense", "grammar_spelling", "general_knowledge", "instruction_following"}


def changed(position, **values):
    items = list(general_items())
    items[position] = replace(items[position], **values)
    return items


def test_there_are_five_groups_of_sound_items():
    items = general_items()
    assert problems_of(items) == []
    assert len(items) >= 300
    assert {item.group for item in items} == GROUPS
    assert all(item.accepted == (item.choices[item.answer],) for item in items)
    assert len(general_digest()) == 64


def test_the_page_has_the_table_of_the_check():
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8")
    assert table(general_items()) in page


def test_a_question_that_is_there_twice_is_found():
    first, second = general_items()[:2]
    problems = problems_of(changed(1, question=first.question.upper()))
    assert f"{first.id} and {second.id} ask the same." in problems


def test_an_item_in_other_words_is_found():
    first, second = general_items()[:2]
    told = changed(1, question=f"Say: {first.question}", choices=first.choices[::-1])
    assert any(f"{first.id} and {second.id} have" in problem for problem in problems_of(told))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"id": general_items()[1].id}, "an id is there twice"),
        ({"choices": ("a", "a", "b", "c")}, "has no four different choices"),
        ({"choices": ("a", "b", "c")}, "has no four different choices"),
        ({"answer": 4}, "has no choice 4"),
        ({"question": "What is  this?"}, "has spaces too many"),
        ({"question": "caf\u00e9?"}, "not plain"),
        ({"question": ""}, "empty"),
        ({"group": "another"}, "not 5 groups of one size"),
    ],
)
def test_what_is_wrong_with_one_item_is_said(values, said):
    assert any(said in problem for problem in problems_of(changed(0, **values)))


def test_answers_that_are_mostly_first_or_mostly_long_are_found():
    first = [
        replace(item, answer=0, choices=(item.accepted[0], *(c for c in item.choices if c != item.accepted[0])))
        for item in general_items()
    ]
    assert any("arithmetic: the right choice is not at each place" in problem for problem in problems_of(first))
    long = [
        replace(item, accepted=(said,), choices=_with(item, said))
        for item in general_items()
        for said in [f"{item.accepted[0]}, which is long and right"]
    ]
    assert any("all groups: who always takes the longest" in problem for problem in problems_of(long))


def _with(item, text):
    return (*item.choices[: item.answer], text, *item.choices[item.answer + 1 :])


def test_a_question_that_names_the_answer_of_another_is_found():
    items = general_items()
    place = next(i for i, item in enumerate(items) if item.accepted == ("Photosynthesis",))
    other = next(i for i, item in enumerate(items) if item.group == "general_knowledge" and i != place)
    problems = problems_of(changed(other, question="What does photosynthesis need?"))
    assert f"{items[other].id} mentions the answer of {items[place].id}: photosynthesis." in problems
