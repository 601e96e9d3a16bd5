"""Conversations: reading them from OpenAI's and ShareGPT's rows, and checking the order of roles."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from thriftune.data.examples import NOTHING, Conversation, RowError, structure_in

# Who may speak after whom; None is the start. A system message only opens a conversation.
_FOLLOWS: dict[str | None, tuple[str, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
_LONGEST_ROLE = 20  # characters shown of what is none
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
_PASSED_ON = ("role", "content", "name", "tool_calls", "tool_call_id", *REASONING)
# Whether a turn of the assistant is trained on: as OpenAI, axolotl (twice) and ms-swift write it.
FLAGS = ("weight", "train", "training", "loss")
_FLAG_TEXTS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
MESSAGE_KEYS = (*_PASSED_ON, *FLAGS)
_SHAREGPT_KEYS = ("from", "value", *(key for key in MESSAGE_KEYS if key not in ("role", "content")))


def read_messages(messages: Any, column: str, tools: Any = None, system: str = "") -> Conversation:
    """Check a conversation and take what a chat template reads.

    Args:
        messages: A list of {role, content}, with tool_calls, tool_call_id and name where tools are used.
        column: Name of its column, for errors.
        tools: A list of function descriptions, or its JSON text, or None.
        system: What the column 'system' says, for a conversation that has its system prompt there.

    Returns:
        The conversation.

    Raises:
        RowError: Not messages, roles out of order, an empty message, or nothing to train on.
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
    return Conversation((*_opening(system, checked[0]), *checked), _tools(tools), question)


def _opening(system: str, first: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The system message that a column beside the messages stands for."""
    if not system.strip():
        return []
    if first["role"] != "system":
        return [{"role": "system", "content": system}]
    if first["content"].strip() != system.strip():
        raise RowError("column 'system' holds a system prompt, and the first message is another")
    return []


def unread_in_messages(messages: Any, column: str, *, is_sharegpt: bool = False) -> Iterator[str]:
    """Keys of messages that nothing here reads, or that say of other roles what is read of the assistant alone.

    Args:
        messages: What the column holds.
        column: Its name.
        is_sharegpt: Whether messages are {from, value}.

    Yields:
        Each as column[].key, as often as it is found.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        return
    read = _SHAREGPT_KEYS if is_sharegpt else MESSAGE_KEYS
    for message in messages:
        if not isinstance(message, Mapping):
            continue
        role = _role(message.get("from")) if is_sharegpt else message.get("role")
        for key, value in message.items():
            if value in NOTHING:
                continue
            if key not in read or (key in FLAGS and _flag(value) is None):
                yield f"{column}[].{key}"
            elif role != "assistant" and (key == "tool_calls" or (key in FLAGS and _flag(value) == 1)):
                yield f"{column}[].{key} of {role}"


def from_sharegpt(conversations: Any) -> Any:
    """ShareGPT's {from, value} as {role, content}; what is neither is handed on, for `read_messages` to refuse."""
    if not isinstance(conversations, Sequence) or isinstance(conversations, str):
        return conversations
    return [_sharegpt_turn(turn) if isinstance(turn, Mapping) else turn for turn in conversations]


def _sharegpt_turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    speaker, said = turn.get("from"), turn.get("value")
    message = {**turn, "role": _role(speaker), "content": said}
    if speaker == "function_call" and isinstance(said, str):
        message["content"], message["tool_calls"] = None, _calls_in(said)
    return message


def _role(speaker: Any) -> Any:
    """The role of ShareGPT's `from`; what is none stays as it is."""
    return _SHAREGPT_ROLES.get(str(speaker), speaker)


def _calls_in(text: str) -> list[dict[str, Any]]:
    """The calls of a turn of ShareGPT's function_call: JSON of one {name, arguments}, or of a list of them."""
    try:
        calls = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RowError("a function_call is not JSON") from error
    return [{"type": "function", "function": call} for call in (calls if isinstance(calls, list) else [calls])]


def _message(message: Any, number: int) -> dict[str, Any]:
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        found = message.get("role") if isinstance(message, Mapping) else None
        said = f" (it says {found[:_LONGEST_ROLE]!r})" if isinstance(found, str) else ""
        raise RowError(f"message {number} has no role among {', '.join(ROLES)}{said}")
    # Tables fill the keys that only some messages have with None.
    kept = {key: message[key] for key in _PASSED_ON if message.get(key) is not None} | _weight(message, number)
    content = kept.get("content")
    if "tool_calls" in kept and kept["role"] == "assistant" and kept["tool_calls"]:
        kept["tool_calls"] = [_tool_call(call, number) for call in _listed(kept["tool_calls"], number)]
        kept["content"] = content if isinstance(content, str) else ""
    elif isinstance(content, list | tuple):
        raise RowError(f"message {number} ({kept['role']}) has a list as content, and only text is read")
    elif not isinstance(content, str) or not content or content.isspace():
        raise RowError(f"message {number} ({kept['role']}) has no content")
    else:
        kept.pop("tool_calls", None)
    return kept


def _weight(message: Mapping[str, Any], number: int) -> dict[str, int]:
    """Whether a turn is trained on, as {weight: 0 or 1}, of whichever keys say so; nothing where none does."""
    said = {key: _flag(message[key]) for key in FLAGS if message.get(key) is not None}
    if "weight" in said and said["weight"] is None:
        raise RowError(f"message {number} has the weight {message['weight']!r}, and only 0 and 1 are read")
    flags = {flag for flag in said.values() if flag is not None}
    if len(flags) > 1:
        raise RowError(f"message {number} says both that it is trained on and that it is not: {', '.join(said)}")
    return {"weight": flags.pop()} if flags else {}


def _flag(value: Any) -> int | None:
    """0 or 1 where a value says no or yes, as a number, a truth value or text; None where it says neither."""
    if isinstance(value, str):
        return _FLAG_TEXTS.get(value.strip().lower())
    return int(value) if isinstance(value, bool | int | float) and value in (0, 1) else None


def _listed(value: Any, number: int) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise RowError(f"message {number} has tool_calls that are not a list")
    return list(value)


def _tool_call(call: Any, number: int) -> dict[str, Any]:
    """A call as chat templates read it: OpenAI writes the arguments as JSON text, templates want the object."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RowError(f"message {number} has a tool call without the name of a function")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise RowError(f"message {number} has a tool call whose arguments are not JSON") from error
    if not isinstance(arguments, Mapping):
        raise RowError(f"message {number} has a tool call whose arguments are not an object")
    return {**call, "function": {**function, "arguments": _without_nulls(arguments)}}


def _without_nulls(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that are there: tables give every call the arguments of all others, as None."""
    return {
        name: _without_nulls(value) if isinstance(value, Mapping) else value
        for name, value in arguments.items()
        if value is not None
    }


def _tools(tools: Any) -> tuple[Mapping[str, Any], ...]:
    tools = structure_in(tools, "tools")
    if not tools:
        return ()
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError("column 'tools' is not a list of function descriptions")
    return tuple(tools)
