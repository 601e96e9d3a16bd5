"""Conversations as rows give them: who may speak after whom, tool calls, other names and shapes of the same."""

import pytest

from thriftune.data.chat import from_sharegpt, read_messages
from thriftune.data.examples import RowError
from thriftune.data.message import ROLES

SYSTEM = {"role": "system", "content": "Be short."}
USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "So."}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "sky", "arguments": {"day": 1}}}]}
RESULT = {"role": "tool", "content": "blue"}
TOOLS = [{"type": "function", "function": {"name": "sky", "description": "Its colour."}}]


@pytest.mark.parametrize(
    "messages",
    [
        [USER, ANSWER],
        [SYSTEM, USER, ANSWER, USER, ANSWER],
        [USER, CALL, RESULT, ANSWER],
        [USER, CALL, RESULT, RESULT, CALL, RESULT, ANSWER, USER, ANSWER],
        [USER, CALL],
    ],
)
def test_roles_in_order(messages):
    conversation = read_messages(messages, "messages")
    assert [message["role"] for message in conversation.messages] == [message["role"] for message in messages]
    assert conversation.question == "Why?"
    assert conversation.tools == ()


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([ANSWER, USER, ANSWER], "assistant comes first (message 1)"),
        ([RESULT, ANSWER], "tool comes first (message 1)"),
        ([SYSTEM, ANSWER], "assistant follows system (message 2)"),
        ([SYSTEM, SYSTEM, USER, ANSWER], "system follows system (message 2)"),
        ([SYSTEM, RESULT, ANSWER], "tool follows system (message 2)"),
        ([USER, USER, ANSWER], "user follows user (message 2)"),
        ([USER, SYSTEM, ANSWER], "system follows user (message 2)"),
        ([USER, RESULT, ANSWER], "tool follows user (message 2)"),
        ([USER, ANSWER, ANSWER], "assistant follows assistant (message 3)"),
        ([USER, ANSWER, SYSTEM, USER, ANSWER], "system follows assistant (message 3)"),
        ([USER, CALL, RESULT, USER, ANSWER], "user follows tool (message 4)"),
        ([USER, CALL, RESULT, SYSTEM, ANSWER], "system follows tool (message 4)"),
        ([USER, ANSWER, RESULT, ANSWER], "tool follows an assistant that called none (message 3)"),
    ],
)
def test_roles_out_of_order_are_refused(messages, reason):
    with pytest.raises(RowError) as raised:
        read_messages(messages, "messages")
    assert str(raised.value) == f"the roles are out of order: {reason}"


TEXT, IMAGE = {"type": "text", "text": "Why?"}, {"type": "image_url", "image_url": {"url": "data:"}}
OLD_CALL = {"name": "sky", "arguments": '{"day": 1}'}


def said(role, **keys):
    return {"role": role, **keys}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "column 'talk' is not a list of messages"),
        ([], "column 'talk' is empty"),
        ("[{'role': 'user'}]", "column 'talk' is not a list of messages"),
        ({"role": "user"}, "column 'talk' is not a list of messages"),
        (["hello"], "message 1 has no role among system, user, assistant, tool"),
        ([{"role": "human", "content": "x"}, ANSWER], "message 1 has no role among system, user, assistant, tool (it"),
        ([{"content": "x"}, ANSWER], "message 1 has no role among"),
        ([{"role": ["user"], "content": "x"}, ANSWER], "message 1 has no role among"),
        ([USER, said("assistant", content=" ")], "message 2 (assistant) has no content"),
        ([USER, said("assistant", content="", tool_calls=[])], "message 2 (assistant) has no content"),
        ([said("user", content=[IMAGE]), ANSWER], "message 1 (user) has a part of type image_url in its content"),
        ([said("user", content=[TEXT, IMAGE]), ANSWER], "message 1 (user) has a part of type image_url in its content"),
        ([said("user", content=["x"]), ANSWER], "message 1 (user) has a str among the parts of its content"),
        ([said("user", content=[{"type": "text"}]), ANSWER], "message 1 (user) has a part of type text without text"),
        ([said("user", content=[]), ANSWER], "message 1 (user) has no content"),
        ([said("user", content=5), ANSWER], "message 1 (user) has content of type int, but only text is read"),
        ([USER, CALL, said("tool", content={"a": 1}), ANSWER], "message 3 (tool) has content of type dict"),
        ([USER, {**CALL, "content": 5}], "message 2 (assistant) has content of type int, but only text is read"),
        ([USER, {**CALL, "content": 0}], "message 2 (assistant) has content of type int, but only text is read"),
        ([USER, {**CALL, "content": {"a": 1}}], "message 2 (assistant) has content of type dict"),
        ([USER, {**CALL, "content": [IMAGE]}], "message 2 (assistant) has a part of type image_url in its content"),
        ([USER, {**ANSWER, "refusal": "No."}], "message 2 (assistant) has refusal, which is not read"),
        ([USER, said("assistant", content=None, refusal="No.")], "message 2 (assistant) has refusal, which is not"),
        ([USER, {**ANSWER, "audio": {"id": "a"}}], "message 2 (assistant) has audio, which is not read"),
        ([USER, {**CALL, "function_call": OLD_CALL}], "message 2 has both tool_calls and function_call"),
        ([USER, said("assistant", content="x", function_call="sky()")], "a function_call is not JSON"),
        (
            [USER, said("assistant", content="x", function_call={"arguments": "{}"})],
            "message 2 has a tool call without",
        ),
        ([{**USER, "tool_calls": CALL["tool_calls"]}, ANSWER], "message 1 (user) calls functions"),
        ([{**USER, "function_call": OLD_CALL}, ANSWER], "message 1 (user) calls functions"),
        ([said("user", tool_calls=CALL["tool_calls"]), ANSWER], "message 1 (user) has no content"),
        ([USER, CALL, said("tool", content=None), ANSWER], "message 3 (tool) has no content"),
        ([USER, ANSWER, USER], "the last message is not the assistant's, so there is no answer to train on"),
        ([USER, CALL, RESULT], "the last message is not the assistant's, so there is no answer to train on"),
        ([USER, said("assistant", tool_calls="sky()")], "message 2 has tool_calls that are not a list"),
        ([USER, said("assistant", tool_calls=["sky"])], "message 2 has a tool call without the name of a function"),
        ([USER, said("assistant", tool_calls=[{"function": {"name": None}}])], "message 2 has a tool call without"),
        ([USER, said("assistant", tool_calls=[{"function": "sky"}])], "message 2 has a tool call without"),
    ],
)
def test_messages_that_cannot_be_used_say_why(messages, reason):
    with pytest.raises(RowError) as raised:
        read_messages(messages, "talk")
    assert str(raised.value).startswith(reason)


@pytest.mark.parametrize(
    ("arguments", "read"),
    [
        ('{"day": 1, "é": [null]}', {"day": 1, "é": [None]}),
        ('{"day": null}', {"day": None}),  # in JSON text a null was meant: no table put it there
        ({"day": 1}, {"day": 1}),
        ("", {}),
        (None, {}),
        ([], {}),
        ("{}", {}),
    ],
)
def test_the_arguments_of_a_call_may_be_json_text_as_openai_writes_them(arguments, read):
    call = {"id": "call_1", "type": "function", "function": {"name": "sky", "arguments": arguments}}
    result = {"role": "tool", "tool_call_id": "call_1", "name": "sky", "content": "blue"}
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}, result, ANSWER]
    _user, asked, answered, _answer = read_messages(messages, "messages").messages
    expected = {"id": "call_1", "type": "function", "function": {"name": "sky", "arguments": read}}
    assert asked == {"role": "assistant", "content": "", "tool_calls": [expected]}
    assert answered == result
    assert call["function"]["arguments"] == arguments, "the row itself stays as it is"


# Brackets a hundred thousand deep once ended the run with a RecursionError.
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{day: 1}", "not JSON"),
        ("sky(1)", "not JSON"),
        ("[" * 100_000, "nested more than 64 levels deep"),
        ('{"a": ' * 100_000, "nested more than 64 levels deep"),
        ('{"a": ' * 65 + "1" + "}" * 65, "nested more than 64 levels deep"),
    ],
)
def test_what_is_not_json_is_refused(text, reason):
    call = {"function": {"name": "sky", "arguments": text}}
    with pytest.raises(RowError, match=f"message 2 has a tool call whose arguments are {reason}"):
        read_messages([USER, {"role": "assistant", "tool_calls": [call]}], "messages")
    with pytest.raises(RowError, match=f"column 'tools' is {reason}"):
        read_messages([USER, ANSWER], "messages", text)


def test_tools_may_be_a_list_or_its_json_text():
    text = '[{"type": "function", "function": {"name": "sky", "description": "Its colour."}}]'
    assert read_messages([USER, ANSWER], "messages", TOOLS).tools == tuple(TOOLS)
    assert read_messages([USER, ANSWER], "messages", text).tools == tuple(TOOLS)


@pytest.mark.parametrize("nothing", [None, "", " ", [], "[]", "null"])
def test_there_may_be_no_tools(nothing):
    conversation = read_messages([USER, ANSWER], "messages", nothing)
    assert [message["content"] for message in conversation.messages] == ["Why?", "So."]
    assert conversation.tools == ()


@pytest.mark.parametrize("tools", [["sky"], '["sky"]', {"name": "sky"}, '"sky"', 1])
def test_tools_that_are_not_descriptions_are_refused(tools):
    with pytest.raises(RowError, match="column 'tools' is not a list of function descriptions"):
        read_messages([USER, ANSWER], "messages", tools)


@pytest.mark.parametrize(
    ("sharegpt", "role"),
    [
        ("human", "user"), ("user", "user"), ("gpt", "assistant"), ("chatgpt", "assistant"), ("model", "assistant"),
        ("assistant", "assistant"), ("system", "system"), ("tool", "tool"), ("observation", "tool"),
        ("function_response", "tool"),
    ],
)  # fmt: skip
def test_sharegpt_has_other_names_for_the_roles(sharegpt, role):
    (message,) = from_sharegpt([{"from": sharegpt, "value": "x"}])
    assert (message["role"], message["content"]) == (role, "x")
    assert role in ROLES


@pytest.mark.parametrize("conversations", [None, "text", 1, {}, [None], ["x"], [{"from": "bing", "value": "x"}], [{}]])
def test_what_is_not_sharegpt_is_refused_as_messages_are(conversations):
    with pytest.raises(RowError, match=r"not a list of messages|message 1 has no role"):
        read_messages(from_sharegpt(conversations), "conversations")


def test_keys_that_a_table_filled_with_none_are_as_if_they_were_not_there():
    import pyarrow as pa

    messages = [USER, {**CALL, "content": ""}, {**RESULT, "name": "sky"}, ANSWER]
    (row,) = pa.Table.from_pylist([{"messages": messages}]).to_pylist()
    assert row["messages"][0] == {"role": "user", "content": "Why?", "tool_calls": None, "name": None}
    assert read_messages(row["messages"], "messages") == read_messages(messages, "messages")
    assert read_messages(row["messages"], "messages").messages[0] == USER


def test_arguments_that_a_table_filled_with_none_are_left_out():
    """Two calls with other arguments in one Arrow table each got the other's, as null, and were trained on it."""
    call = {"function": {"name": "f", "arguments": {"city": "Rome", "day": None, "at": {"hour": 1, "minute": None}}}}
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [call]}]
    conversation = read_messages(messages, "messages")
    arguments = conversation.messages[1]["tool_calls"][0]["function"]["arguments"]
    assert arguments == {"city": "Rome", "at": {"hour": 1}}


@pytest.mark.parametrize("arguments", ["5", "[1]", '"a"', "null", 0, False, [1]])
def test_arguments_that_are_no_object_are_refused(arguments):
    call = {"function": {"name": "f", "arguments": arguments}}
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "tool_calls": [call]}]
    with pytest.raises(RowError, match="message 2 has a tool call whose arguments are not an object"):
        read_messages(messages, "messages")


def test_sharegpt_calls_functions_in_a_turn_of_their_own():
    """No conversation with an observation in it could be used: the calls before it were not read."""
    call = '{"name": "sky", "arguments": {"day": 1}}'
    turns = [("human", "Why?"), ("function_call", call), ("observation", "blue"), ("gpt", "It is blue.")]
    rows = [{"from": speaker, "value": said} for speaker, said in turns]
    conversation = read_messages(from_sharegpt(rows), "conversations")
    assert [m["role"] for m in conversation.messages] == ["user", "assistant", "tool", "assistant"]
    assert conversation.messages[1]["tool_calls"][0]["function"] == {"name": "sky", "arguments": {"day": 1}}
    with pytest.raises(RowError, match="a function_call is not JSON"):
        from_sharegpt([{"from": "function_call", "value": "sky(1)"}])
    (message,) = from_sharegpt([{"from": "function_call", "value": {"name": "sky", "arguments": {}}}])
    assert message["tool_calls"] == [{"type": "function", "function": {"name": "sky", "arguments": {}}}]


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "text": "I look."}, {"type": "text", "text": "Now."}],
        [{"type": "output_text", "text": "I look."}, {"text": "Now.", "image_url": None, "type": None}],
    ],
)
@pytest.mark.parametrize("calls", [{}, {"tool_calls": CALL["tool_calls"]}, {"function_call": OLD_CALL}])
def test_parts_that_are_texts_are_read_as_one_text(content, calls):
    """They were dropped without a word beside a call, and refused elsewhere."""
    messages = [said("user", content=content), said("assistant", content=content, **calls)]
    asked, answered = read_messages(messages, "messages").messages
    assert asked == {"role": "user", "content": "I look.\nNow."}
    assert answered["content"] == "I look.\nNow."
    assert bool(calls) == ("tool_calls" in answered)


def test_a_tool_may_return_parts():
    parts = said("tool", content=[{"type": "text", "text": "blue"}], tool_call_id="1")
    assert read_messages([USER, CALL, parts, ANSWER], "messages").messages[2] == {**RESULT, "tool_call_id": "1"}


@pytest.mark.parametrize("content", [None, "", "I look."])
def test_a_function_call_is_a_call(content):
    """OpenAI's older way to write a call was dropped, and with it all that the turn was about."""
    result = {"role": "function", "name": "sky", "content": "blue"}
    messages = [USER, said("assistant", content=content, function_call=OLD_CALL), result, ANSWER]
    conversation = read_messages(messages, "messages")
    call = {"type": "function", "function": {"name": "sky", "arguments": {"day": 1}}}
    assert conversation.messages[1] == {"role": "assistant", "content": content or "", "tool_calls": [call]}
    assert conversation.messages[2] == {"role": "tool", "name": "sky", "content": "blue"}
    assert messages[1]["function_call"] == OLD_CALL, "the row itself stays as it is"


@pytest.mark.parametrize("nothing", [None, {}, "", {"name": None, "arguments": None}])
def test_a_function_call_that_a_table_filled_with_nothing_is_none(nothing):
    assert read_messages([USER, {**ANSWER, "function_call": nothing}], "messages").messages == (USER, ANSWER)


def test_a_developer_is_the_system():
    developer = {"role": "developer", "content": "Be short."}
    assert read_messages([developer, USER, ANSWER], "messages").messages == (SYSTEM, USER, ANSWER)
    with pytest.raises(RowError, match="system follows system"):
        read_messages([SYSTEM, developer, USER, ANSWER], "messages")


@pytest.mark.parametrize("key", ["weight", "train", "training", "loss"])
@pytest.mark.parametrize(
    ("value", "weight"),
    [(0, 0), (1, 1), (0.0, 0), ("0", 0), ("1", 1), (False, 0), ("true", 1), (" False", 0), (None, None)],
)
def test_whether_a_turn_is_trained_on_is_read_however_it_is_written(key, value, weight):
    """Only the number 0 under `weight` was: "0" and `train: false` were trained on."""
    conversation = read_messages([USER, {**ANSWER, key: value}], "messages")
    assert conversation.messages[1].get("weight") == weight
    assert set(conversation.messages[1]) <= {"role", "content", "weight"}


@pytest.mark.parametrize("weight", [0.5, "half", 2, [0]])
def test_a_weight_that_is_neither_is_refused(weight):
    """It was trained on as if it were 1."""
    with pytest.raises(RowError, match="message 2 has the weight .*, but only 0 and 1 are read"):
        read_messages([USER, {**ANSWER, "weight": weight}], "messages")


def test_keys_that_contradict_each_other_are_refused():
    with pytest.raises(RowError, match="says both that it is trained on and that it is not: weight, train"):
        read_messages([USER, {**ANSWER, "weight": 1, "train": False}], "messages")
