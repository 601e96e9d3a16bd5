"""Conversations: reading them from OpenAI's and ShareGPT's rows, and checking the order of roles."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from thriftune.data.examples import Conversation, RowError

# Who may speak after whom; None is the start. A system message only opens a conversation.
_FOLLOWS: dict[str | None, tuple[str, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
ROLES = ("system", "user", "assistant", "tool")
_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "function_call": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
REASONING = ("reasoning_content", "thinking")
_PASSED_ON = ("name", "tool_call_id", "weight", *REASONING)
_OTHER_NAMES = {"developer": "system", "function": "tool"}  # OpenAI's newer name, and its older
_TEXT_PARTS = ("text", "input_text", "output_text")
_BESIDE_CONTENT = ("refusal", "audio")  # where OpenAI keeps what an assistant says in place of content


def read_messages(messages: Any, column: str, tools: Any = None) -> Conversation:
    """Check a conversation and take what a chat template reads.

    Args:
        messages: A list of {role, content}, with tool_calls (or function_call), tool_call_id and name where tools are
            used. Content is a text, or a list of parts that are texts, which are joined by line breaks.
        column: Name of its column, for errors.
        tools: A list of function descriptions, or its JSON text, or None.

    Returns:
        The conversation.

    Raises:
        RowError: Not messages, roles out of order, a message that is empty or says what is no text, or nothing to
            train on.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise RowError(f"column {column!r} is not a list of messages")
    if not messages:
        raise RowError(f"column {column!r} is empty")
    checked = [_message(message, number) for number, message in enumerate(messages, 1)]
    speaker: str | None = None
    for number, message in enumerate(checked, 1):
        role = message["role"]
        if role not in _FOLLOWS[speaker]:
            follows = f"follows {speaker}" if speaker else "comes first"
            raise RowError(f"the roles are out of order: {role} {follows} (message {number})")
        if role == "tool" and speaker == "assistant" and not checked[number - 2].get("tool_calls"):
            raise RowError(f"the roles are out of order: tool follows an assistant that called none (message {number})")
        speaker = role
    if speaker != "assistant":
        raise RowError("the last message is not the assistant's, so there is no answer to train on")
    question = next((m["content"] for m in reversed(checked) if m["role"] == "user"), "")
    return Conversation(tuple(checked), _tools(tools), question)


def from_sharegpt(conversations: Any) -> Any:
    """ShareGPT's {from, value} as {role, content}; what is neither is handed on, for `read_messages` to refuse."""
    if not isinstance(conversations, Sequence) or isinstance(conversations, str):
        return conversations
    return [_sharegpt_turn(turn) if isinstance(turn, Mapping) else turn for turn in conversations]


def _sharegpt_turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    speaker, said = turn.get("from"), turn.get("value")
    message = {**turn, "role": _SHAREGPT_ROLES.get(str(speaker), speaker), "content": said}
    if speaker == "function_call" and said:
        message["content"], message["tool_calls"] = None, _calls_in(said)
    return message


def _calls_in(calls: Any) -> list[dict[str, Any]]:
    """The calls of a function_call, ShareGPT's or OpenAI's: {name, arguments}, a list of them, or their JSON."""
    if isinstance(calls, str):
        try:
            calls = json.loads(calls)
        except (ValueError, RecursionError) as error:
            raise RowError("a function_call is not JSON") from error
    return [{"type": "function", "function": call} for call in (calls if isinstance(calls, list) else [calls])]


def _message(message: Any, number: int) -> dict[str, Any]:
    role = message.get("role") if isinstance(message, Mapping) else None
    role = _OTHER_NAMES.get(role, role) if isinstance(role, str) else None
    if role not in ROLES:
        raise RowError(f"message {number} has no role among {', '.join(ROLES)}")
    where = f"message {number} ({role})"
    if beside := next((key for key in _BESIDE_CONTENT if message.get(key)), None):
        raise RowError(f"{where} has {beside}, which is not read; write what is said as content")
    content = _content(message.get("content"), where)
    calls = [_tool_call(call, number) for call in _calls(message, number)]
    if (not content or content.isspace()) and not (calls and role == "assistant"):
        raise RowError(f"{where} has no content")
    if calls and role != "assistant":
        raise RowError(f"{where} calls functions, which only the assistant can")
    # Tables fill the keys that only some messages have with None.
    kept = {key: message[key] for key in _PASSED_ON if message.get(key) is not None}
    kept |= {"role": role, "content": content}
    return {**kept, "tool_calls": calls} if calls else kept


def _content(content: Any, where: str) -> str:
    """What a message says, as one text."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list | tuple):
        raise RowError(f"{where} has content of type {type(content).__name__}, and only text is read")
    # As vLLM and llama.cpp put parts to a template that takes texts.
    return "\n".join(_text_of_part(part, where) for part in content)


def _text_of_part(part: Any, where: str) -> str:
    """The text of a part of a content, as OpenAI writes it: {type: text, text}."""
    if not isinstance(part, Mapping):
        raise RowError(f"{where} has a {type(part).__name__} among the parts of its content, and only text is read")
    kind = part.get("type") or "text"  # tables fill what is missing with None
    if kind not in _TEXT_PARTS:
        raise RowError(f"{where} has a part of type {kind} in its content, and only text is read")
    if not isinstance(part.get("text"), str):
        raise RowError(f"{where} has a part of type {kind} without text in its content")
    return str(part["text"])


def _calls(message: Mapping[str, Any], number: int) -> list[Any]:
    """The calls of a message: tool_calls, or the single function_call that OpenAI wrote before."""
    calls, older = message.get("tool_calls"), message.get("function_call")
    if isinstance(older, Mapping) and all(value is None for value in older.values()):
        older = None  # a table's way to say that there is none
    if calls and older:
        raise RowError(f"message {number} has both tool_calls and function_call")
    return _calls_in(older) if older else _listed(calls, number) if calls else []


def _listed(value: Any, number: int) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise RowError(f"message {number} has tool_calls that are not a list")
    return list(value)


def _tool_call(call: Any, number: int) -> dict[str, Any]:
    """A call as chat templates read it: OpenAI writes the arguments as JSON text, templates want the object."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError(f"message {number} has a tool call without the name of a function")
    arguments = function.get("arguments")
    if arguments in (None, "", []):  # an empty object is a list where PHP wrote it
        arguments = {}
    elif isinstance(arguments, Mapping):
        arguments = _without_nulls(arguments)
    elif isinstance(arguments, str):  # in which a null was meant
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise RowError(f"message {number} has a tool call whose arguments are not JSON") from error
    if not isinstance(arguments, Mapping):
        raise RowError(f"message {number} has a tool call whose arguments are not an object")
    return {**call, "function": {**function, "arguments": arguments}}


def _without_nulls(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that are there: tables give every call the arguments of all others, as None."""
    return {
        name: _without_nulls(value) if isinstance(value, Mapping) else value
        for name, value in arguments.items()
        if value is not None
    }


def _tools(tools: Any) -> tuple[Mapping[str, Any], ...]:
    if isinstance(tools, str):
        try:
            tools = json.loads(tools) if tools.strip() else ()
        except (ValueError, RecursionError) as error:
            raise RowError("column 'tools' is not JSON") from error
    if not tools:
        return ()
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError("column 'tools' is not a list of function descriptions")
    return tuple(tools)
