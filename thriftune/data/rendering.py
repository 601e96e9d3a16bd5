"""Rendering conversations with the tokenizer's chat template, and finding the assistant's turns in the text."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from thriftune.data.examples import Conversation, MarkedText, RowError, TemplateRowError
from thriftune.data.message import REASONING
from thriftune.models import chat_template, template_sandbox
from thriftune.models.template_costs import OverBudgetError
from thriftune.models.template_sandbox import Budget

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKS_TURNS = re.compile(r"{%-?\s*generation\s*-?%}")
_SEARCHED_IN_A_STEP = 1000  # characters
STAND_IN = "\u2063thriftune\u2063"  # with invisible separators, so that it occurs in no row


class OverrunError(TemplateRowError):
    """A row for which the chat template exceeds the limits."""


def render(
    conversation: Conversation, tokenizer: "PreTrainedTokenizerBase", closings: tuple[str, ...] = ()
) -> MarkedText:
    """Apply the chat template, and find each turn of the assistant in its text.

    If the template itself marks the assistant's turns ({% generation %}), its marks are used. Else a turn is the text
    that the template adds between the prompt for it and the conversation that ends with it: located in characters, so
    no token can be miscounted.

    Args:
        conversation: The messages.
        tokenizer: A tokenizer with a chat template.
        closings: Result of `chat_template.closings`; if empty, it is computed here, which takes as long as a row.

    Returns:
        The text with every assistant turn to train on marked, up to its closing token, and the last question.

    Raises:
        OverrunError: The template exceeds the limits for it.
        RowError: The template refuses the conversation, leaves out a part of it, or changes earlier turns when later
            ones follow.
    """
    with template_sandbox.budget() as spent:
        try:
            return _rendered(conversation, tokenizer, closings, spent)
        except chat_template.TemplateNeverEndsError as error:
            raise OverrunError(str(error)) from error
        except OverBudgetError as error:
            raise OverrunError(f"locating its messages in the text of the model's chat template {error}") from error
        except chat_template.TemplateFailsError as error:
            raise TemplateRowError(str(error)) from error


def _rendered(
    conversation: Conversation, tokenizer: "PreTrainedTokenizerBase", closings: tuple[str, ...], spent: Budget
) -> MarkedText:
    messages = [dict(m) for m in conversation.messages]
    text = chat_template.apply(messages, tokenizer, tools=conversation.tools, prompt=False)
    _require_everything(messages, conversation.tools, text, spent)
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    functions: list[Any] | None = list(conversation.tools) or None
    if _MARKS_TURNS.search(tokenizer.get_chat_template(tools=functions)):  # of several, the template for this row
        spans = list(chat_template.marked_turns(messages, tokenizer, tools=conversation.tools))
    else:
        spans = _located(text, turns, messages, conversation.tools, tokenizer)
    if len(spans) != len(turns):
        message = f"the chat template marks {len(spans)} turns of the assistant, but there are {len(turns)}"
        raise TemplateRowError(message)
    # OpenAI's weight: 0 marks a turn that is read but not trained on.
    learned = [pair for pair in zip(turns, spans, strict=True) if messages[pair[0]].get("weight") != 0]
    if not learned:
        raise RowError("every turn of the assistant has weight 0, so there is no answer to train on")
    closings = closings or chat_template.closings(tokenizer)
    answers = tuple(_closed(text, span, closings) for _, span in learned)
    asked = (m["content"] for m in reversed(messages[: learned[-1][0]]) if m["role"] == "user")
    return MarkedText(text, answers, next(asked, conversation.question), is_rendered=True)


def _closed(text: str, span: tuple[int, int], closings: tuple[str, ...]) -> tuple[int, int]:
    """A turn up to its closing token, which a template may write outside its marks, without white space after it.

    White space after the closing token is written by the template, not by the model.
    """
    start, end = span
    said = text[start:end].rstrip()
    if said.endswith(closings):
        return start, start + len(said)
    gap = len(text[end:]) - len(text[end:].lstrip())
    closing = next((closing for closing in closings if text.startswith(closing, end + gap)), "")
    return (start, end + gap + len(closing)) if closing else (start, start + len(said))


def _located(
    text: str,
    turns: list[int],
    messages: list[dict[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
) -> list[tuple[int, int]]:
    """The character range that the template adds for each turn of the assistant."""
    spans = []
    for number in turns:
        before = chat_template.apply(messages[:number], tokenizer, tools=tools, prompt=True)
        is_last = number == len(messages) - 1
        through = text if is_last else chat_template.apply(messages[: number + 1], tokenizer, tools=tools, prompt=False)
        if through.startswith(before) and text.startswith(through):
            spans.append((len(before), len(through)))
        elif is_last:
            raise TemplateRowError("the chat template does not start an answer in the same way as the prompt for it")
        else:
            spans.append(_located_by_content(text, number, messages, tools, tokenizer))
    return spans


def _located_by_content(
    text: str,
    number: int,
    messages: list[dict[str, Any]],
    tools: Sequence[Mapping[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
) -> tuple[int, int]:
    """The position of a message: the part of the text that changes when something else takes its place.

    For templates that write earlier turns differently when later ones follow, such as those that drop the thoughts of
    earlier turns.
    """
    said = messages[number]["content"].strip()
    replaced = [{**m, "content": STAND_IN} if i == number else m for i, m in enumerate(messages)]
    other = chat_template.apply(replaced, tokenizer, tools=tools, prompt=False)
    before, found, after = other.partition(STAND_IN)
    if not said or not found or text != before + said + after:
        raise TemplateRowError(
            "the chat template rewrites earlier turns when later ones follow, so answers cannot be located in it"
        )
    return len(before), len(before) + len(said)


def _require_everything(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], text: str, spent: Budget
) -> None:
    """Refuse a template that silently drops content of messages: many do not support tools, some no system prompt."""

    def holds(part: str) -> bool:
        spent.step(1 + len(text) // _SEARCHED_IN_A_STEP)
        return part in text

    names = [
        str(tool.get("function", tool).get("name", ""))
        for tool in tools
        if isinstance(tool.get("function", tool), Mapping)
    ]
    if not all(map(holds, names)):
        raise TemplateRowError("the model's chat template leaves out the tools")
    for number, message in enumerate(messages, 1):
        said = [message["content"].strip(), *(str(message[key]).strip() for key in REASONING if key in message)]
        said += [call["function"]["name"] for call in message.get("tool_calls", ())]
        # Many templates write a tool's result as JSON.
        if not all(holds(part) or holds(json.dumps(part, ensure_ascii=False)[1:-1]) for part in said):
            left_out = f"message {number} ({message['role']})"
            raise TemplateRowError(f"the model's chat template leaves out the content of {left_out}")
