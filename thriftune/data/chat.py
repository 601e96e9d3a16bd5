"""Conversations: reading them, checking the order of roles, and finding the assistant's turns in the rendered text."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from thriftune.data.examples import Conversation, MarkedText, RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}
_MARKS_TURNS = re.compile(r"{%-?\s*generation\s*-?%}")
_REASONING = ("reasoning_content", "thinking")
_PASSED_ON = ("role", "content", "name", "tool_calls", "tool_call_id", *_REASONING)


def read_messages(messages: Any, column: str, tools: Any = None) -> Conversation:
    """Check a conversation and take what a chat template reads.

    Args:
        messages: A list of {role, content}, with tool_calls, tool_call_id and name where tools are used.
        column: Name of its column, for errors.
        tools: A list of function descriptions, or its JSON text, or None.

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
    return Conversation(tuple(checked), _tools(tools), question)


def from_sharegpt(conversations: Any) -> Any:
    """ShareGPT's {from, value} as {role, content}; what is neither is handed on, for `read_messages` to refuse."""
    if not isinstance(conversations, Sequence) or isinstance(conversations, str):
        return conversations
    return [
        {"role": _SHAREGPT_ROLES.get(str(turn.get("from")), turn.get("from")), "content": turn.get("value")}
        if isinstance(turn, Mapping)
        else turn
        for turn in conversations
    ]


def _message(message: Any, number: int) -> dict[str, Any]:
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise RowError(f"message {number} has no role among {', '.join(ROLES)}")
    # Tables fill the keys that only some messages have with None.
    kept = {key: message[key] for key in _PASSED_ON if message.get(key) is not None}
    content = kept.get("content")
    if "tool_calls" in kept and kept["role"] == "assistant" and kept["tool_calls"]:
        kept["tool_calls"] = [_tool_call(call, number) for call in _listed(kept["tool_calls"], number)]
        kept["content"] = content if isinstance(content, str) else ""
    elif not isinstance(content, str) or not content or content.isspace():
        raise RowError(f"message {number} ({kept['role']}) has no content")
    else:
        kept.pop("tool_calls", None)
    return kept


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


def render(conversation: Conversation, tokenizer: "PreTrainedTokenizerBase") -> MarkedText:
    """Apply the chat template, and find each assistant turn in the text it makes.

    Where the template marks the assistant's turns itself ({% generation %}), they are taken from it. Else a turn is
    what the template adds between the prompt for it and the conversation up to and including it: found in characters,
    so no token can be miscounted.

    Args:
        conversation: The messages.
        tokenizer: A tokenizer with a chat template.

    Returns:
        The text with every assistant turn marked, up to its closing token.

    Raises:
        RowError: The template refuses the conversation, leaves out a part of it, or changes earlier turns when later
            ones come.
    """
    messages = [dict(m) for m in conversation.messages]
    text = _apply(messages, conversation.tools, tokenizer, prompt=False)
    _require_everything(messages, conversation.tools, text)
    if _MARKS_TURNS.search(str(tokenizer.chat_template)):
        spans = _marked_by_template(messages, conversation.tools, tokenizer)
        spans = tuple((start, start + len(text[start:end].rstrip())) for start, end in spans)  # as below
        return MarkedText(text, spans, conversation.question, is_rendered=True)
    answers = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _apply(messages[:number], conversation.tools, tokenizer, prompt=True)
        is_last = number == len(messages) - 1
        through = text if is_last else _apply(messages[: number + 1], conversation.tools, tokenizer, prompt=False)
        if not through.startswith(before) or not text.startswith(through):
            raise RowError(
                "the chat template rewrites earlier turns when later ones come, so answers cannot be located in it"
            )
        # White space after the closing token is the template's, not the model's to say.
        answers.append((len(before), len(through.rstrip())))
    return MarkedText(text, tuple(answers), conversation.question, is_rendered=True)


def _require_everything(messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], text: str) -> None:
    """Refuse a template that silently leaves out what a message says: many know nothing of tools, some of systems."""
    names = [
        str(tool.get("function", tool).get("name", ""))
        for tool in tools
        if isinstance(tool.get("function", tool), Mapping)
    ]
    if not all(name in text for name in names):
        raise RowError("the model's chat template leaves out the tools")
    for number, message in enumerate(messages, 1):
        said = [message["content"].strip(), *(str(message[key]).strip() for key in _REASONING if key in message)]
        said += [call["function"]["name"] for call in message.get("tool_calls", ())]
        # Many templates write what a tool returned as JSON.
        if not all(part in text or json.dumps(part, ensure_ascii=False)[1:-1] in text for part in said):
            raise RowError(f"the model's chat template leaves out what message {number} ({message['role']}) says")


def _marked_by_template(
    messages: list[dict[str, Any]], tools: Sequence[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[tuple[int, int], ...]:
    from transformers.utils.chat_template_utils import render_jinja_template

    functions: list[Any] | None = list(tools) or None
    special: dict[str, Any] = dict(tokenizer.special_tokens_map)
    rendered: Any = render_jinja_template(
        conversations=[messages],
        tools=functions,
        chat_template=tokenizer.get_chat_template(tools=functions),
        return_assistant_tokens_mask=True,
        **special,
    )
    return tuple((int(start), int(end)) for start, end in rendered[1][0])


def _apply(
    messages: list[dict[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    prompt: bool,
) -> str:
    from jinja2 import TemplateError

    functions: list[Any] | None = list(tools) or None
    try:
        return str(
            tokenizer.apply_chat_template(messages, tools=functions, tokenize=False, add_generation_prompt=prompt)
        )
    except TemplateError as error:
        raise RowError(f"the model's chat template refuses it: {error}") from error
    except (  # out of a template's expressions, or of arguments nested too deep for it
        TypeError,
        LookupError,
        AttributeError,
        ValueError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise RowError(f"the model's chat template cannot render it ({type(error).__name__})") from error
