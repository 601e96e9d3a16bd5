"""Items of benchmarks in our own formats: every problem of a file is named with its line."""

import json

import pytest

from thriftune.data.items import Item, in_turn, load_items, read_items, write_items
from thriftune.errors import DataError

GOOD = {"id": "1", "question": "Which is a fruit?", "choices": ["fig", "car"], "answer": 0, "group": "food"}
WRITTEN = {"id": 2, "question": "What is 2 + 2?", "answer": ["4", "four"]}


def lines(folder, *rows):
    file = folder / "items.jsonl"
    content = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    file.write_bytes(b"\n".join(content) + b"\n")
    return file


def problems(folder, *rows, kind="multiple_choice"):
    with pytest.raises(DataError) as caught:
        read_items(lines(folder, *rows), kind, "mine.jsonl")
    return [(problem.field, problem.value, problem.message) for problem in caught.value.problems]


def test_both_formats_are_read(tmp_path):
    assert read_items(lines(tmp_path, GOOD), "multiple_choice") == (
        Item("1", "Which is a fruit?", ("fig", "car"), 0, ("fig",), "food"),
    )
    assert read_items(lines(tmp_path, WRITTEN), "exact_answer") == (
        Item("2", "What is 2 + 2?", (), None, ("4", "four")),
    )


def test_items_are_kept_word_for_word(tmp_path):
    items = (Item("1", "Line\u2028one\n", ("a", "é"), 1, ("é",)), Item("2", "Q", (), None, ("4", "four"), "sums"))
    write_items(items, tmp_path / "kept.jsonl")
    assert load_items(tmp_path / "kept.jsonl") == items


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": None}, "has no answer."),
        ({"answer": 2}, "is no index of one of the 2 choices"),
        ({"answer": -1}, "is no index of one of the 2 choices"),
        ({"answer": True}, "is no index of one of the 2 choices"),
        ({"answer": "fig"}, "is no index of one of the 2 choices"),
        ({"choices": ["fig", "fig"]}, "is a choice twice"),
        ({"choices": ["fig", " fig "]}, "is a choice twice"),
        ({"choices": ["fig"]}, "is no list of two choices or more"),
        ({"choices": "fig"}, "is no list of two choices or more"),
        ({"choices": ["fig", " "]}, "is an empty choice"),
        ({"question": "  "}, "is an empty question"),
        ({"question": None}, "has no question"),
        ({"question": 3}, "is no text, as question has to be"),
        ({"id": None}, "has no id"),
        ({"answr": 1}, "is no key of multiple_choice, which has id, question, answer, group, choices"),
        ({"group": "a.b"}, "is no name of a group"),
        ({"question": "\ud800"}, "is a question that is not UTF-8"),
    ],
)
def test_what_is_wrong_with_a_line_is_said(change, message, tmp_path):
    ((field, _value, said),) = problems(tmp_path, GOOD, {**GOOD, "id": "2", **change})
    assert field == "mine.jsonl:2"
    assert message in said


@pytest.mark.parametrize(
    ("answer", "message"), [([], "has no answer."), ([""], "is an empty answer"), (4, "is no text")]
)
def test_a_written_answer_has_to_be_text(answer, message, tmp_path):
    ((field, _value, said),) = problems(tmp_path, {**WRITTEN, "answer": answer}, kind="exact_answer")
    assert field == "mine.jsonl:1"
    assert message in said


def test_every_problem_of_a_file_is_said_at_once(tmp_path):
    found = problems(tmp_path, GOOD, b"{", GOOD, b"\xff", {**GOOD, "id": "3", "answer": 9}, ["no object"])
    assert [field for field, _, _ in found] == [f"mine.jsonl:{line}" for line in (2, 3, 4, 5, 6)]
    assert "is not JSON" in found[0][2]
    assert found[1][1:] == ("1", "is the id of line 1 too.")
    assert "is not UTF-8" in found[2][2]


def test_a_thousand_problems_are_counted(tmp_path):
    found = problems(tmp_path, *[{**GOOD, "id": str(number), "answer": 7} for number in range(1000)])
    assert len(found) == 51
    assert found[-1] == ("mine.jsonl", "", "has 950 more problems.")


def test_an_empty_file_is_refused(tmp_path):
    assert problems(tmp_path, b"") == [("mine.jsonl", "", "holds no items.")]


def test_items_of_each_group_come_in_turn():
    items = [Item(str(n), "Why?", (), None, ("so",), group) for n, group in enumerate(["a", "a", "a", "", "b", ""])]
    assert [item.id for item in in_turn(items)] == ["0", "3", "4", "1", "5", "2"]
