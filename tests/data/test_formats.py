"""What a row means in each format, and which rows are refused."""

import pytest

from thriftune.config import DataConfig
from thriftune.data.formats import FORMATS, Conversation, MarkedText, RowError, alpaca_prompt

USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}


def test_the_formats_of_the_run_file_are_the_formats_there_are():
    assert set(FORMATS) == set(DataConfig.model_fields["format"].annotation.__args__)


def test_an_alpaca_row_is_the_stanford_prompt_and_its_output_is_the_answer():
    item = FORMATS["alpaca"].read({"instruction": "Add.", "input": "1 and 2", "output": "3"})
    assert item.text == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n3"
    )
    ((start, end),) = item.answers
    assert item.text[start:end] == "3"
    assert not item.split_when_long


@pytest.mark.parametrize("row", [{}, {"input": None}, {"input": ""}, {"input": "  \n"}])
def test_an_alpaca_row_without_input_uses_the_short_prompt(row):
    item = FORMATS["alpaca"].read({"instruction": "Sing.", "output": "La", **row})
    assert item.text == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSing.\n\n### Response:\nLa"
    )


def test_braces_in_a_row_are_text():
    item = FORMATS["alpaca"].read({"instruction": "{input} {0}", "input": "{instruction}", "output": "{}"})
    assert "### Instruction:\n{input} {0}\n" in item.text
    assert item.text.endswith("{}")


def test_the_prompt_for_inference_is_the_one_that_is_trained_on():
    item = FORMATS["alpaca"].read({"instruction": "Sing.", "output": "La"})
    assert item.text == alpaca_prompt("Sing.") + "La"


def test_a_text_row_is_all_answer_and_continues_in_the_next_row():
    assert FORMATS["text"].read({"text": "abc"}) == MarkedText("abc", ((0, 3),), split_when_long=True)


def test_a_chat_row_keeps_role_and_content_only():
    row = {"messages": [{**USER, "name": "Ann", "tool_calls": None}, ANSWER]}
    assert FORMATS["chat"].read(row) == Conversation((USER, ANSWER))


@pytest.mark.parametrize(
    ("format_name", "row", "reason"),
    [
        ("alpaca", {"instruction": "x", "output": ""}, "column 'output' is empty"),
        ("alpaca", {"instruction": "  ", "output": "x"}, "column 'instruction' is empty"),
        ("alpaca", {"instruction": "x", "output": None}, "column 'output' holds nothing"),
        ("alpaca", {"instruction": "x", "output": 4}, "column 'output' holds a int"),
        ("alpaca", {"instruction": "x", "output": "y", "input": ["z"]}, "column 'input' holds a list"),
        ("text", {"text": None}, "column 'text' holds nothing"),
        ("text", {"text": " "}, "column 'text' is empty"),
        ("chat", {"messages": None}, "not a list"),
        ("chat", {"messages": []}, "not a list"),
        ("chat", {"messages": "[{'role': 'user'}]"}, "not a list"),
        ("chat", {"messages": ["hello"]}, "message 1 has no role among system, user, assistant, tool"),
        ("chat", {"messages": [{"role": "human", "content": "x"}, ANSWER]}, "message 1 has no role"),
        (
            "chat",
            {"messages": [USER, {"role": "assistant", "content": " "}]},
            r"message 2 \(assistant\) has no content",
        ),
        ("chat", {"messages": [{"role": "user"}, ANSWER]}, r"message 1 \(user\) has no content"),
        ("chat", {"messages": [USER, ANSWER, USER]}, "the last message is not the assistant's"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(format_name, row, reason):
    with pytest.raises(RowError, match=reason):
        FORMATS[format_name].read(row)


@pytest.mark.parametrize(
    ("format_name", "row", "question"),
    [
        ("alpaca", {"instruction": "Add.", "input": "1 and 2", "output": "3"}, "Add.\n1 and 2"),
        ("alpaca", {"instruction": "Sing.", "input": None, "output": "La"}, "Sing."),
        ("chat", {"messages": [USER, ANSWER, {"role": "user", "content": "And?"}, ANSWER]}, "And?"),
        ("text", {"text": "a" * 500}, "a" * 200),
    ],
)
def test_the_question_is_what_a_person_asked(format_name, row, question):
    assert FORMATS[format_name].question(row) == question
