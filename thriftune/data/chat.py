"""Conversations: reading them from rows in OpenAI's and ShareGPT's formats, and checking the order of roles."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from thriftune.data.examples import NOTHING, Conversation, RowError, require_moderate, structure_in
from thriftune.data.message import FLAGS, MESSAGE_KEYS, calls_in, flag, read_message

# The roles that may follow each role; None is the start. A system message may only come first.
_FOLLOWS: dict[str | None, tuple[str, ...]] = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
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
_SHAREGPT_KEYS = ("from", "value", *(key for key in MESSAGE_KEYS if key not in ("role", "content")))


def read_messages(messages: Any, column: str, tools: Any = None, system: str = "") -> Conversation:
    """Check a conversation, and keep what a chat template reads.

    Args:
        messages: A list of {role, content}, with tool_calls (or function_call), tool_call_id and name if tools are
            used. Content is a text, or a list of text parts, which are joined by line breaks.
        column: Name of its column, for errors.
        tools: A list of function descriptions, or its JSON text, or None.
        system: The text of the column 'system', for a conversation with its system prompt there.

    Returns:
        The conversation.

    Raises:
        RowError: It is not a list of messages, roles are out of order, a message is empty or not text, or there is
            nothing to train on.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise RowError(f"column {column!r} is not a list of messages")
    if not messages:
        raise RowError(f"column {column!r} is empty")
    require_moderate(0, len(messages))
    checked = [read_message(message, number) for number, message in enumerate(messages, 1)]
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
    """The system message from its own column."""
    if not system.strip():
        return []
    if first["role"] != "system":
        return [{"role": "system", "content": system}]
    if first["content"].strip() != system.strip():
        raise RowError("column 'system' holds a system prompt, but the first message is also one")
    return []


def unread_in_messages(messages: Any, column: str, *, is_sharegpt: bool = False) -> Iterator[str]:
    """Keys of messages that are not read, or that are only read in the assistant's messages.

    Args:
        messages: The value of the column.
        column: Its name.
        is_sharegpt: Whether messages are {from, value}.

    Yields:
        Each as column[].key, once per occurrence.
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
            if key not in read or (key in FLAGS and flag(value) is None):
                yield f"{column}[].{key}"
            elif role != "assistant" and (key == "tool_calls" or (key in FLAGS and flag(value) == 1)):
                yield f"{column}[].{key} of {role}"


def from_sharegpt(conversations: Any) -> Any:
    """ShareGPT's {from, value} as {role, content}; anything else is passed on, for `read_messages` to refuse."""
    if not isinstance(conversations, Sequence) or isinstance(conversations, str):
        return conversations
    return [_sharegpt_turn(turn) if isinstance(turn, Mapping) else turn for turn in conversations]


def _sharegpt_turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    speaker, said = turn.get("from"), turn.get("value")
    message = {**turn, "role": _role(speaker), "content": said}
    if speaker == "function_call" and said:
        message["content"], message["tool_calls"] = None, calls_in(said)
    return message


def _role(speaker: Any) -> Any:
    """The role for ShareGPT's `from`; an unknown value is returned unchanged."""
    return _SHAREGPT_ROLES.get(str(speaker), speaker)


def _tools(tools: Any) -> tuple[Mapping[str, Any], ...]:
    tools = structure_in(tools, "tools")
    if not tools:
        return ()
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError("column 'tools' is not a list of function descriptions")
    return tuple(tools)
