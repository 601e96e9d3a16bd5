"""One message of a conversation, as OpenAI writes it: role, content, calls, and whether it is trained on."""

from collections.abc import Mapping
from typing import Any

from thriftune.data.examples import RowError, json_in

_LONGEST_ROLE = 20  # characters shown of an invalid role
ROLES = ("system", "user", "assistant", "tool")
REASONING = ("reasoning_content", "thinking")
_PASSED_ON = ("name", "tool_call_id", *REASONING)
_OTHER_NAMES = {"developer": "system", "function": "tool"}  # OpenAI's newer name, and an older one
_TEXT_PARTS = ("text", "input_text", "output_text")
_BESIDE_CONTENT = ("refusal", "audio")  # where OpenAI keeps an assistant's output instead of content
# Keys that say whether a turn of the assistant is trained on, in OpenAI, axolotl (two keys) and ms-swift.
FLAGS = ("weight", "train", "training", "loss")
_FLAG_TEXTS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
MESSAGE_KEYS = ("role", "content", "tool_calls", "function_call", *_BESIDE_CONTENT, *_PASSED_ON, *FLAGS)


def read_message(message: Any, number: int) -> dict[str, Any]:
    """Keep what a chat template reads in a message.

    Args:
        message: {role, content}, with other optional keys.
        number: Number of the message in its conversation, from 1, for errors.

    Raises:
        RowError: It has no role, has no content, or its content is not text.
    """
    role = message.get("role") if isinstance(message, Mapping) else None
    role = _OTHER_NAMES.get(role, role) if isinstance(role, str) else None
    if role not in ROLES:
        found = message.get("role") if isinstance(message, Mapping) else None
        said = f" (it says {found[:_LONGEST_ROLE]!r})" if isinstance(found, str) else ""
        raise RowError(f"message {number} has no role among {', '.join(ROLES)}{said}")
    where = f"message {number} ({role})"
    if beside := next((key for key in _BESIDE_CONTENT if message.get(key)), None):
        raise RowError(f"{where} has {beside}, which is not read; write it as content")
    content = _content(message.get("content"), where)
    calls = [_tool_call(call, number) for call in _calls(message, number)]
    if (not content or content.isspace()) and not (calls and role == "assistant"):
        raise RowError(f"{where} has no content")
    if calls and role != "assistant":
        raise RowError(f"{where} calls functions, which only the assistant can")
    # Tables fill keys that only some messages have with None.
    kept = {key: message[key] for key in _PASSED_ON if message.get(key) is not None}
    kept |= {"role": role, "content": content, **_weight(message, number)}
    return {**kept, "tool_calls": calls} if calls else kept


def _content(content: Any, where: str) -> str:
    """The content of a message, as one text."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list | tuple):
        raise RowError(f"{where} has content of type {type(content).__name__}, but only text is read")
    # As vLLM and llama.cpp pass parts to a template that takes texts.
    return "\n".join(_text_of_part(part, where) for part in content)


def _text_of_part(part: Any, where: str) -> str:
    """The text of a part of a content, in OpenAI's form: {type: text, text}."""
    if not isinstance(part, Mapping):
        raise RowError(f"{where} has a {type(part).__name__} among the parts of its content, but only text is read")
    kind = part.get("type") or "text"  # tables fill missing keys with None
    if kind not in _TEXT_PARTS:
        raise RowError(f"{where} has a part of type {kind} in its content, but only text is read")
    if not isinstance(part.get("text"), str):
        raise RowError(f"{where} has a part of type {kind} without text in its content")
    return str(part["text"])


def _calls(message: Mapping[str, Any], number: int) -> list[Any]:
    """The calls of a message: tool_calls, or OpenAI's older, single function_call."""
    calls, older = message.get("tool_calls"), message.get("function_call")
    if isinstance(older, Mapping) and all(value is None for value in older.values()):
        older = None  # how a table says that there is none
    if calls and older:
        raise RowError(f"message {number} has both tool_calls and function_call")
    return calls_in(older) if older else _listed(calls, number) if calls else []


def _weight(message: Mapping[str, Any], number: int) -> dict[str, int]:
    """Whether a turn is trained on, as {weight: 0 or 1}, from whichever key says so; empty if none does."""
    said = {key: flag(message[key]) for key in FLAGS if message.get(key) is not None}
    if "weight" in said and said["weight"] is None:
        raise RowError(f"message {number} has the weight {message['weight']!r}, but only 0 and 1 are read")
    flags = {flag for flag in said.values() if flag is not None}
    if len(flags) > 1:
        raise RowError(f"message {number} says both that it is trained on and that it is not: {', '.join(said)}")
    return {"weight": flags.pop()} if flags else {}


def flag(value: Any) -> int | None:
    """0 or 1 if a value means no or yes, as a number, a truth value or text; None if it means neither."""
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
    arguments = function.get("arguments")
    if arguments in (None, "", []):  # PHP writes an empty object as a list
        arguments = {}
    elif isinstance(arguments, Mapping):
        arguments = _without_nulls(arguments)
    elif isinstance(arguments, str):  # a null inside it is intended
        arguments = json_in(arguments, f"message {number} has a tool call whose arguments are")
    if not isinstance(arguments, Mapping):
        raise RowError(f"message {number} has a tool call whose arguments are not an object")
    return {**call, "function": {**function, "arguments": arguments}}


def _without_nulls(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments without empty ones: tables give every call the arguments of all others, as None."""
    return {
        name: _without_nulls(value) if isinstance(value, Mapping) else value
        for name, value in arguments.items()
        if value is not None
    }


def calls_in(calls: Any) -> list[dict[str, Any]]:
    """The calls of a function_call, ShareGPT's or OpenAI's: {name, arguments}, a list of them, or their JSON."""
    if isinstance(calls, str):
        calls = json_in(calls, "a function_call is")
    return [{"type": "function", "function": call} for call in (calls if isinstance(calls, list) else [calls])]
