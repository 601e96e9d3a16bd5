"""Rendering a conversation with a tokenizer's chat template, and how the template ends an assistant's turn."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thriftune.errors import ModelSourceError
from thriftune.limits import SIMPLEST_PART
from thriftune.models import template_sandbox
from thriftune.models.template_costs import OverBudgetError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ANSWER = "Four."
_SYSTEM, _USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is two and two?"}
_ASSISTANT = {"role": "assistant", "content": _ANSWER}
# Templates accept different conversations: one of these should work.
SIMPLEST_CONVERSATIONS = (
    [_USER, _ASSISTANT],
    [_SYSTEM, _USER, _ASSISTANT],
    [_USER, _ASSISTANT, _USER, _ASSISTANT],
)


class TemplateFailsError(ValueError):
    """A chat template cannot render a conversation; the message says why."""


class TemplateNeverEndsError(TemplateFailsError):
    """A chat template exceeds the limits on steps, time or text for a conversation."""


@dataclass(frozen=True)
class TurnEnd:
    """The text that a chat template writes after an answer.

    Attributes:
        text: The text up to and including the token that ends the turn, or all of it if there is no such token; without
            white space around it.
        token: The token that ends the turn: EOS, or another that the tokenizer never produces from other text. None if
            the turn ends in plain text, or in nothing.
    """

    text: str
    token: str | None


def apply(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    tools: Sequence[Mapping[str, Any]] = (),
    prompt: bool = False,
) -> str:
    """Apply the chat template of a tokenizer.

    Args:
        messages: The conversation.
        tokenizer: A tokenizer with a chat template.
        tools: Descriptions of the functions that the assistant may call.
        prompt: Whether to open another turn of the assistant at the end.

    Returns:
        The text.

    Raises:
        TemplateFailsError: The template refuses the conversation, fails on it, or exceeds the limits.
    """
    plain: list[Any] = [dict(message) for message in messages]
    functions: list[Any] | None = list(tools) or None
    with _explained():
        return str(tokenizer.apply_chat_template(plain, tools=functions, tokenize=False, add_generation_prompt=prompt))


def text_of(tokenizer: "PreTrainedTokenizerBase") -> str:
    """The chat template that conversations without tools are rendered with; empty if there is none.

    Args:
        tokenizer: A tokenizer; it may have several templates by name.
    """
    found: Any = tokenizer.chat_template
    if isinstance(found, dict):
        found = found.get("default")
    return found if isinstance(found, str) else ""


def marked_turns(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    tools: Sequence[Mapping[str, Any]] = (),
) -> tuple[tuple[int, int], ...]:
    """The turns of the assistant that a chat template itself marks, with {% generation %}.

    Args:
        messages: The conversation.
        tokenizer: A tokenizer whose chat template marks them.
        tools: Descriptions of the functions that the assistant may call.

    Returns:
        Half-open (start, end) character ranges in the text that `apply` returns.

    Raises:
        TemplateFailsError: As from `apply`.
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    functions: list[Any] | None = list(tools) or None
    special: dict[str, Any] = dict(tokenizer.special_tokens_map)
    with _explained():
        rendered: Any = render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            tools=functions,
            chat_template=tokenizer.get_chat_template(tools=functions),
            return_assistant_tokens_mask=True,
            **special,
        )
    return tuple((int(start), int(end)) for start, end in rendered[1][0])


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what a template raises into this module's errors."""
    from jinja2 import TemplateError

    with template_sandbox.budget():
        try:
            yield
        except OverBudgetError as error:
            raise TemplateNeverEndsError(f"the model's chat template {error}") from error
        except TemplateError as error:
            raise TemplateFailsError(f"the model's chat template refuses it: {error}") from error
        except Exception as error:  # a template is a program: it can raise anything
            raise TemplateFailsError(f"the model's chat template cannot render it ({type(error).__name__})") from error


def turn_end(tokenizer: "PreTrainedTokenizerBase") -> TurnEnd | None:
    """How a turn of the assistant ends, found by rendering a conversation and looking at what follows its answer.

    Many templates end a turn with a token that is not the tokenizer's EOS: ChatML's on the tokenizer of a base model,
    or Gemma's.

    Args:
        tokenizer: Any tokenizer.

    Returns:
        The end, or None if there is no chat template, or it renders none of the simplest conversations.

    Raises:
        ModelSourceError: The template does not finish rendering the simplest conversation.
    """
    if not tokenizer.chat_template:
        return None
    for messages in SIMPLEST_CONVERSATIONS:
        try:
            with template_sandbox.budget(SIMPLEST_PART):
                text = apply(messages, tokenizer)
        except TemplateNeverEndsError as error:
            raise never_ends(tokenizer, f"for the simplest conversation, {error}") from error
        except TemplateFailsError:
            continue
        _before, found, after = text.rpartition(_ANSWER)
        if found:
            return _end_in(after, tokenizer)
    return None


def never_ends(tokenizer: "PreTrainedTokenizerBase", what: str) -> ModelSourceError:
    """The error for a chat template that exceeds the limits for any conversation.

    Args:
        tokenizer: The tokenizer that it belongs to.
        what: What it did.
    """
    remedy = "Repair chat_template.jinja, or use another instruct model."
    return ModelSourceError.single(
        "model.source", tokenizer.name_or_path, f"{what}.", remedy, code="chat-template-fails"
    )


def closings(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """The texts that can close a turn of the assistant: the template's end of a turn, and EOS."""
    end = turn_end(tokenizer)
    texts = (end.text if end else "", str(tokenizer.eos_token or ""))
    return tuple(dict.fromkeys(filter(None, texts)))


def _end_in(after: str, tokenizer: "PreTrainedTokenizerBase") -> TurnEnd:
    """The end of a turn in the text after an answer: up to the first token that no other text produces."""
    # Some tokenizers have special tokens for runs of white space, which end nothing.
    tokens = {token.content for token in tokenizer.added_tokens_decoder.values() if token.content.strip()}
    if tokenizer.eos_token:
        tokens.add(str(tokenizer.eos_token))
    longest_first = sorted(tokens, key=len, reverse=True)
    found = re.search("|".join(map(re.escape, longest_first)), after) if tokens else None
    return TurnEnd(after[: found.end()].strip(), found[0]) if found else TurnEnd(after.strip(), None)
