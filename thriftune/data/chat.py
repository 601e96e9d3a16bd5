"""Conversations: reading them from OpenAI's and ShareGPT's rows, and checking the order of roles."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from thriftune.data.examples import NOTHING, Conversation, RowError, require_moderate, structure_in
from thriftune.data.message import FLAGS, MESSAGE_KEYS, calls_in, flag, read_message

# Who may speak after whom; None is the start. A system message only opens a conversation.
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
    """Check a conversation and take what a chat template reads.

    Args:
        messages: A list of {role, content}, with tool_calls (or function_call), tool_call_id and name where tools are
            used. Content is a text, or a list of parts that are texts, which are joined by line breaks.
        column: Name of its column, for errors.
        tools: A list of function descriptions, or its JSON text, or None.
        system: What the column 'system' says, for a conversation that has its system prompt there.

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
            if key not in read or (key in FLAGS and flag(value) is None):
                yield f"{column}[].{key}"
            elif role != "assistant" and (key == "tool_calls" or (key in FLAGS and flag(value) == 1)):
                yield f"{column}[].{key} of {role}"


def from_sharegpt(conversations: Any) -> Any:
    """ShareGPT's {from, value} as {role, content}; what is neither is handed on, for `read_messages` to refuse."""
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
    """The role of ShareGPT's `from`; what is none stays as it is."""
    return _SHAREGPT_ROLES.get(str(speaker), speaker)


def _tools(tools: Any) -> tuple[Mapping[str, Any], ...]:
    tools = structure_in(tools, "tools")
    if not tools:
        return ()
    if not isinstance(tools, list | tuple) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError("column 'tools' is not a list of function descriptions")
    return tuple(tools)
