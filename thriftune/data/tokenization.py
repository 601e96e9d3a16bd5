"""From marked text to token ids and labels. Labels come from token offsets, never from counting a prompt's tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from thriftune.data.formats import Conversation, MarkedText, RowError
from thriftune.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # The label that torch's cross entropy leaves out of the loss.


@dataclass(frozen=True)
class TokenRow:
    """One row of tokens.

    Attributes:
        input_ids: Shape [length].
        labels: Shape [length]; the token id where the model is trained, `IGNORED` elsewhere.
        truncated: Whether tokens were cut off at the end.
    """

    input_ids: list[int]
    labels: list[int]
    truncated: bool = False

    @property
    def trained_tokens(self) -> int:
        """Number of tokens that carry loss. The first one never does: nothing comes before it to predict it from."""
        return sum(label != IGNORED for label in self.labels[1:])


def tokenize(
    texts: Sequence[MarkedText],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int,
    train_on_inputs: bool = False,
) -> list[list[TokenRow]]:
    """Tokenize a batch of texts of one kind, in one call.

    Args:
        texts: What the rows say; with or without BOS in them, but all alike.
        tokenizer: A fast tokenizer (one that knows character offsets).
        max_length: Longest row, in tokens.
        train_on_inputs: Label every token, not only answers.

    Returns:
        For each text its token rows: one, or several for a text that was split. EOS closes each text exactly once,
        BOS opens it exactly once if the tokenizer uses one.
    """
    if not texts:
        return []
    encoded = tokenizer(
        [text.text for text in texts],
        add_special_tokens=not texts[0].has_special_tokens,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    eos = int(tokenizer.eos_token_id)
    return [
        _fit(_label(ids, offsets, text.answers, eos, train_on_inputs), max_length, text.split_when_long)
        for ids, offsets, text in zip(encoded["input_ids"], encoded["offset_mapping"], texts, strict=True)
    ]


def as_text(item: MarkedText | Conversation, tokenizer: "PreTrainedTokenizerBase") -> MarkedText:
    """What a row says as marked text; a conversation goes through the tokenizer's chat template.

    Raises:
        RowError: The template refuses the conversation, or changes earlier turns when later ones come.
    """
    return item if isinstance(item, MarkedText) else _render(item, tokenizer)


def _render(conversation: Conversation, tokenizer: "PreTrainedTokenizerBase") -> MarkedText:
    """Apply the chat template, and find each assistant turn in the text it makes.

    The turn is what the template adds between the prompt for it and the conversation up to and including it: found
    in characters, so no token can be miscounted.
    """
    messages = [dict(m) for m in conversation.messages]
    if messages[0]["role"] == "assistant":
        raise RowError("the conversation opens with the assistant, so there is nothing that it answers")
    text = _apply_template(messages, tokenizer, prompt=False)
    answers = []
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = _apply_template(messages[:number], tokenizer, prompt=True)
        through = _apply_template(messages[: number + 1], tokenizer, prompt=False)
        if not through.startswith(before) or not text.startswith(through):
            raise RowError(
                "the chat template rewrites earlier turns when later ones come, so answers cannot be located in it"
            )
        # White space after the closing token is the template's, not the model's to say.
        answers.append((len(before), len(through.rstrip())))
    return MarkedText(text, tuple(answers), has_special_tokens=True)


def require_usable(tokenizer: "PreTrainedTokenizerBase", format_name: str) -> None:
    """Refuse a tokenizer that cannot do what the format needs.

    Raises:
        DataError: No character offsets, no EOS token, or no chat template for chat rows.
    """
    name = tokenizer.name_or_path
    if not tokenizer.is_fast:
        raise DataError.single(
            "model.source", name, "its tokenizer knows no character offsets.", "Add a tokenizer.json to the model."
        )
    if tokenizer.eos_token_id is None:
        raise DataError.single("model.source", name, "its tokenizer has no EOS token.", "Set eos_token in it.")
    if format_name == "chat" and not tokenizer.chat_template:
        raise DataError.single(
            "data.format",
            "chat",
            "this model's tokenizer has no chat template (a base model has none).",
            "Use an instruct model, add chat_template.jinja to the model, or use format alpaca.",
        )


def _apply_template(messages: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase", *, prompt: bool) -> str:
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt))
    except TemplateError as error:
        raise RowError(f"the model's chat template refuses it: {error}") from error


def _label(
    ids: list[int],
    offsets: list[tuple[int, int]],
    answers: Sequence[tuple[int, int]],
    eos: int,
    train_on_inputs: bool,
) -> TokenRow:
    """Label the tokens that lie in an answer, and close the row with EOS if its last answer does not end in one."""
    # A token that straddles the border holds part of the answer and is trained; an empty one (BOS) is not.
    in_answer = [any(s < end and e > start for start, end in answers) for s, e in offsets]
    last = max((i for i, is_answer in enumerate(in_answer) if is_answer), default=-1)
    if ids and ids[-1] == eos:
        in_answer[-1] = True  # A tokenizer that appends EOS itself gives it the empty offset (0, 0).
    elif not ids or ids[last] != eos:
        ids, in_answer = [*ids, eos], [*in_answer, True]
    labels = [t if is_answer or train_on_inputs else IGNORED for t, is_answer in zip(ids, in_answer, strict=True)]
    return TokenRow(list(ids), labels)


def _fit(row: TokenRow, max_length: int, split: bool) -> list[TokenRow]:
    if len(row.input_ids) <= max_length:
        return [row]
    if not split:
        return [TokenRow(row.input_ids[:max_length], row.labels[:max_length], truncated=True)]
    # Each piece starts with the last token of the one before: the first token of a row has nothing to be predicted
    # from, so without the overlap one prediction per piece would be lost, at worst the EOS.
    return [
        TokenRow(
            row.input_ids[start : start + max_length],
            row.labels[:max_length] if start == 0 else [IGNORED, *row.labels[start + 1 : start + max_length]],
        )
        for start in range(0, len(row.input_ids) - 1, max_length - 1)
    ]
