"""What a row means in each format, which rows are refused, and what other columns and templates make of it."""

import re

import pytest

from thriftune.config import DataConfig
from thriftune.config.formats import template_fields
from thriftune.data.examples import Conversation, MarkedText, RowError, all_values
from thriftune.data.formats import FORMATS, format_of, question_prompt, template_format

USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}


def read(name, row, **source):
    return list(format_of(name, **source).read(row))


def only(name, row, **source):
    (example,) = read(name, row, **source)
    return example


def answers(example):
    return [example.text[start:end] for start, end in example.answers]


def test_the_formats_of_the_run_file_are_the_formats_there_are():
    (names, _none) = DataConfig.model_fields["format"].annotation.__args__
    assert {*FORMATS, "template"} == set(names.__args__)


def test_an_alpaca_row_is_the_stanford_prompt_and_its_output_is_the_answer():
    example = only("alpaca", {"instruction": "Add.", "input": "1 and 2", "output": "3"})
    assert example.text == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n1 and 2\n\n### Response:\n3"
    )
    assert answers(example) == ["3"]
    assert example.question == "Add.\n1 and 2"
    assert not example.is_document
    assert not example.is_rendered


@pytest.mark.parametrize("row", [{}, {"input": None}, {"input": ""}, {"input": "  \n"}])
def test_an_alpaca_row_without_input_uses_the_short_prompt(row):
    example = only("alpaca", {"instruction": "Sing.", "output": "La", **row})
    assert example.text == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSing.\n\n### Response:\nLa"
    )
    assert answers(example) == ["La"]
    assert example.question.strip() == "Sing."


@pytest.mark.parametrize("history", [[["Sing.", "La"], ["More.", "La la"]], '[["Sing.", "La"], ["More.", "La la"]]'])
def test_an_alpaca_row_has_its_system_prompt_and_its_earlier_turns(history):
    """Both columns were left out without a word, and the answer was to a question that nobody could understand."""
    row = {"instruction": "Again.", "input": "Louder", "output": "LA LA", "system": "You are a bird."}
    example = only("alpaca", {**row, "history": history})
    assert example.text == (
        "You are a bird.\n\n### Instruction:\nSing.\n\n### Response:\nLa"
        "\n\n### Instruction:\nMore.\n\n### Response:\nLa la"
        "\n\n### Instruction:\nAgain.\n\n### Input:\nLouder\n\n### Response:\nLA LA"
    )
    assert answers(example) == ["La", "La la", "LA LA"]
    assert example.question == "Again.\nLouder"


@pytest.mark.parametrize(
    "nothing", [{"system": ""}, {"system": None, "history": None}, {"history": []}, {"history": ""}]
)
def test_an_alpaca_row_without_system_and_history_is_as_ever(nothing):
    row = {"instruction": "Sing.", "output": "La"}
    assert only("alpaca", {**row, **nothing}) == only("alpaca", row)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"system": 3}, "column 'system' holds a int, not text"),
        ({"history": "[["}, "column 'history' is not JSON"),
        ({"history": [["Sing."]]}, "column 'history' is not a list of [instruction, response] pairs"),
        ({"history": [["Sing.", None]]}, "column 'history' is not a list of [instruction, response] pairs"),
        ({"history": {"a": "b"}}, "column 'history' is not a list of [instruction, response] pairs"),
    ],
)
def test_a_system_prompt_or_history_that_is_none_is_refused(row, reason):
    with pytest.raises(RowError, match=re.escape(reason)):
        read("alpaca", {"instruction": "Sing.", "output": "La", **row})


@pytest.mark.parametrize("name", ["chat", "sharegpt"])
def test_a_system_prompt_beside_the_messages_opens_the_conversation(name):
    """ShareGPT rows often have it there: it was left out without a word."""
    turns = {
        "chat": {"messages": [USER, ANSWER]},
        "sharegpt": {"conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "Because."}]},
    }[name]
    assert only(name, {**turns, "system": "Be brief."}).messages == (
        {"role": "system", "content": "Be brief."}, USER, ANSWER,
    )  # fmt: skip
    assert only(name, {**turns, "system": " "}) == only(name, turns)
    assert only(name, {**turns, "rules": "Be brief."}, columns={"system": "rules"}).messages[0]["role"] == "system"


def test_a_system_prompt_that_stands_twice_is_used_once_and_two_are_refused():
    row = {"messages": [{"role": "system", "content": "Be brief."}, USER, ANSWER]}
    assert only("chat", {**row, "system": "Be brief.\n"}) == only("chat", row)
    with pytest.raises(RowError, match="column 'rules' holds a system prompt, but the first message is also one"):
        read("chat", {**row, "rules": "Be long."}, columns={"system": "rules"})


def test_a_prompt_and_its_completion_are_joined_as_they_are():
    example = only("prompt_completion", {"prompt": "2 + 2 =", "completion": " 4\n"})
    assert example == MarkedText("2 + 2 = 4\n", ((7, 10),), "2 + 2 =")
    assert answers(example) == [" 4\n"]


def test_a_text_row_is_all_answer_and_a_document():
    assert only("text", {"text": "abc"}) == MarkedText("abc", ((0, 3),), "abc", is_document=True)
    assert only("text", {"text": "a" * 500}).question == "a" * 200


@pytest.mark.parametrize(
    ("author", "named"),
    [
        ("Oscar Wilde", "Oscar Wilde"),
        ("Oscar Wilde,", "Oscar Wilde"),
        ("  Oscar Wilde, ", "Oscar Wilde"),
        ("Martin Luther King, Jr.,", "Martin Luther King, Jr."),
    ],
)
def test_the_author_of_a_quote_loses_the_comma_that_stands_before_a_book(author, named):
    example = only("quotes", {"quote": "“Be yourself.”", "author": author, "tags": ["be"]})
    assert example.text == f"Quote by {named}:\n“Be yourself.”"
    assert answers(example) == ["“Be yourself.”"]
    assert example.question == f"A quote by {named}"


def test_a_grammar_row_is_one_example_for_each_correction():
    row = {"sentence": "She go. ", "corrections": [" She goes.", "She went. "]}
    assert [(example.text, answers(example), example.question) for example in read("grammar", row)] == [
        ("Correct this to standard English:\nShe go.\n\nCorrected:\nShe goes.", ["She goes."], "She go."),
        ("Correct this to standard English:\nShe go.\n\nCorrected:\nShe went.", ["She went."], "She go."),
    ]


def test_a_single_correction_may_be_a_text():
    assert read("grammar", {"sentence": "a", "corrections": "b"}) == read(
        "grammar", {"sentence": "a", "corrections": ["b"]}
    )
    assert answers(only("grammar", {"sentence": "a", "corrections": "bc"})) == ["bc"]


def test_an_empty_correction_leaves_the_others():
    """JFLEG has rows in which only some corrections are empty: each is refused by itself."""
    first, second, third, fourth = read("grammar", {"sentence": "a", "corrections": ["b", " ", "c", None]})
    assert (answers(first), answers(third)) == (["b"], ["c"])
    assert isinstance(second, RowError)
    assert isinstance(fourth, RowError)
    assert [str(second), str(fourth)] == [f"correction {n} is empty or not text" for n in (2, 4)]


def test_a_chat_row_is_a_conversation():
    row = {"messages": [USER, ANSWER, {"role": "user", "content": "And?"}, ANSWER]}
    assert only("chat", row) == Conversation(tuple(row["messages"]), question="And?")


def test_a_sharegpt_row_is_the_same_conversation():
    turns = [
        {"from": "system", "value": "Be."},
        {"from": "human", "value": "Why?"},
        {"from": "gpt", "value": "Because."},
    ]
    system = {"role": "system", "content": "Be."}
    assert only("sharegpt", {"conversations": turns, "id": "1"}) == only("chat", {"messages": [system, USER, ANSWER]})


BRACES = "{input} {0} {} {{x}} }{ %s {% if %}"


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("alpaca", {"instruction": BRACES, "input": BRACES, "output": BRACES}, [BRACES] * 3),
        ("prompt_completion", {"prompt": BRACES, "completion": BRACES}, [BRACES] * 2),
        ("text", {"text": BRACES}, [BRACES]),
        ("quotes", {"author": BRACES, "quote": BRACES}, [BRACES] * 2),
        ("grammar", {"sentence": BRACES, "corrections": [BRACES]}, [BRACES] * 2),
        ("template", {"a": BRACES, "b": BRACES}, [BRACES] * 2),
    ],
)
def test_braces_in_a_row_are_text(name, row, expected):
    example = only(name, row, template="{a}: {b}" if name == "template" else None)
    assert example.text.count(BRACES) == len(expected)
    assert answers(example) == [BRACES]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("alpaca", {"instruction": "Sing.", "output": "La"}),
        ("prompt_completion", {"prompt": "Sing.", "completion": "La"}),
        ("quotes", {"author": "Sing.", "quote": "La"}),
        ("grammar", {"sentence": "Sing.", "corrections": ["La"]}),
    ],
)
def test_a_question_is_put_to_the_model_as_it_was_trained_on(name, row):
    assert question_prompt(name, "Sing.") + "La" == only(name, row).text


def test_a_question_for_a_template_or_a_chat_is_left_as_it_is():
    assert [question_prompt(name, "{Sing}") for name in ("template", "chat", "sharegpt", "text")] == ["{Sing}"] * 4


# Templates.


def test_the_last_field_of_a_template_is_the_answer():
    example = only("template", {"q": "Why?", "a": "So."}, template="Q: {q}\nA: {a}\n")
    assert example == MarkedText("Q: Why?\nA: So.\n", ((11, 14),), "Why?")


def test_any_fields_of_a_template_may_be_answers():
    row = {"title": "T", "why": "w", "so": "s"}
    example = only("template", row, template="{why} {title} {so} {why}", trained_fields=("so", "why"))
    assert example.text == "w T s w"
    assert answers(example) == ["w", "s", "w"]
    assert example.question == "T"


def test_doubled_braces_of_a_template_are_braces():
    example = only("template", {"a": "x"}, template='{{"answer": "{a}"}}')
    assert example.text == '{"answer": "x"}'
    assert answers(example) == ["x"]


def test_the_fields_of_a_template_are_its_columns_each_once():
    assert template_fields("{b} {a} {b} {an-other} {and this}") == ("b", "a", "an-other", "and this")
    assert template_format("{b} {a} {b}").columns == ("b", "a")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("no field", "it names no column"),
        ("{{a}}", "it names no column"),
        ("", "it names no column"),
        ("{} {a}", "the field {} is not a column name"),
        ("{a.b}", "the field {a.b} is not"),
        ("{a[0]}", "the field {a[0]} is not"),
        ("{0}", "the field {0} is not"),
        ("{a!r}", "the field {a} is not"),
        ("{a:>10}", "the field {a} is not"),
        ("{a", "expected '}'"),
        ("a}", "Single '}'"),
    ],
)
def test_a_template_that_is_none_says_why(template, reason):
    for read_template in (template_fields, template_format):
        with pytest.raises(ValueError) as raised:
            read_template(template)
        assert reason in str(raised.value)


# Columns with other names.


@pytest.mark.parametrize(
    ("name", "row", "columns"),
    [
        ("alpaca", {"instruction": "i", "input": "j", "output": "o"}, {"instruction": "Q", "input": "C"}),
        ("prompt_completion", {"prompt": "i", "completion": "o"}, {"prompt": "completion", "completion": "prompt"}),
        ("text", {"text": "i"}, {"text": "content"}),
        ("quotes", {"quote": "i", "author": "o"}, {"quote": "says"}),
        ("grammar", {"sentence": "i", "corrections": ["o"]}, {"corrections": "fixed"}),
        ("chat", {"messages": [USER, ANSWER], "tools": [{"name": "f"}]}, {"messages": "talk", "tools": "functions"}),
        ("sharegpt", {"conversations": [{"from": "human", "value": "i"}, {"from": "gpt", "value": "o"}]},
         {"conversations": "talk"}),
    ],
)  # fmt: skip
def test_columns_may_have_other_names(name, row, columns):
    renamed = {columns.get(column, column): value for column, value in row.items()}
    assert read(name, renamed, columns=columns) == read(name, row)
    mapped = format_of(name, columns=columns)
    assert set(renamed) <= set(mapped.all_columns)
    assert (mapped.prompt, mapped.is_chat) == (FORMATS[name].prompt, FORMATS[name].is_chat)


def test_an_optional_column_that_was_renamed_may_be_missing():
    row_format = format_of("alpaca", columns={"input": "context", "output": "answer"})
    assert (row_format.columns, row_format.optional) == (("instruction", "answer"), ("context", "system", "history"))
    (example,) = row_format.read({"instruction": "Sing.", "answer": "La", "output": "not this"})
    assert "### Input" not in example.text
    assert answers(example) == ["La"]


def test_fields_of_a_template_may_have_other_columns():
    row_format = format_of("template", template="{q}: {a}", columns={"q": "the question"})
    assert row_format.columns == ("the question", "a")
    (example,) = row_format.read({"the question": "Why", "a": "So", "q": "not this"})
    assert (example.text, answers(example)) == ("Why: So", ["So"])


def test_every_text_of_the_columns_is_found_however_deep():
    row = {"messages": [{"role": "user", "content": ("a", {"k": ["b", 1, None]})}], "tools": None, "other": "c"}
    found = list(all_values(row, ("messages", "tools")))
    assert {name for name, _text in found} == {"messages"}
    assert sorted(text for _name, text in found) == ["a", "b", "content", "k", "role", "user"]


# Rows that cannot be used.


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("alpaca", {"instruction": "x", "output": ""}, "column 'output' is empty"),
        ("alpaca", {"instruction": "  ", "output": "x"}, "column 'instruction' is empty"),
        ("alpaca", {"instruction": "x", "output": None}, "column 'output' holds nothing"),
        ("alpaca", {"instruction": "x"}, "column 'output' holds nothing"),
        ("alpaca", {"instruction": "x", "output": 4}, "column 'output' holds a int, not text"),
        ("alpaca", {"instruction": "x", "output": "y", "input": ["z"]}, "column 'input' holds a list, not text"),
        ("prompt_completion", {"prompt": "x", "completion": {}}, "column 'completion' holds a dict"),
        ("prompt_completion", {"completion": "x"}, "column 'prompt' holds nothing"),
        ("text", {"text": None}, "column 'text' holds nothing"),
        ("text", {"text": "\u2003\n"}, "column 'text' is empty"),
        ("text", {"text": b"x"}, "column 'text' holds a bytes"),
        ("quotes", {"quote": "x", "author": None}, "column 'author' holds nothing"),
        ("quotes", {"quote": "\t", "author": "x"}, "column 'quote' is empty"),
        ("quotes", {"quote": "x", "author": " ,"}, "column 'author' is empty"),  # once "Quote by :"
        ("grammar", {"sentence": "", "corrections": ["x"]}, "column 'sentence' is empty"),
        ("grammar", {"sentence": "x", "corrections": []}, "column 'corrections' holds no correction"),
        ("grammar", {"sentence": "x", "corrections": {"a": "b"}}, "column 'corrections' holds no correction"),
        ("grammar", {"sentence": "x"}, "column 'corrections' holds no correction"),
        ("template", {"a": "x", "b": " "}, "column 'b' is empty"),
        ("template", {"b": "x"}, "column 'a' holds nothing"),
        ("chat", {"tools": []}, "column 'messages' is not a list"),  # once a KeyError, which ended the run
        ("sharegpt", {"id": 1}, "column 'conversations' is not a list"),  # the same
    ],
)
def test_a_row_that_cannot_be_used_says_why(name, row, reason):
    with pytest.raises(RowError, match=reason):
        read(name, row, template="{a} {b}" if name == "template" else None)


def test_a_reason_names_the_column_of_the_data():
    with pytest.raises(RowError, match="column 'response' is empty"):
        read("alpaca", {"question": "Why?", "response": ""}, columns={"instruction": "question", "output": "response"})


def test_a_column_that_is_mapped_is_not_also_the_optional_one_whose_name_it_has():
    """The input was put in once more, as the system prompt."""
    row = {"instruction": "Answer.", "system": "The sky.", "output": "Blue."}
    mapped = only("alpaca", row, columns={"input": "system"})
    assert mapped.text == only("alpaca", {"instruction": "Answer.", "input": "The sky.", "output": "Blue."}).text
    assert mapped.text.count("The sky.") == 1
