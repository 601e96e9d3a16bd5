"""From marked texts to token ids and labels. Labels come from token offsets, not from counting a prompt's tokens."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from thriftune.config import LongRows
from thriftune.data.examples import MarkedText
from thriftune.errors import DataError
from thriftune.models.chat_template import turn_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # The label that torch's cross entropy leaves out of the loss.


@dataclass(frozen=True)
class TokenRow:
    """One row of tokens.

    Attributes:
        input_ids: Shape [length].
        labels: Shape [length]; the token id where the model is trained, `IGNORED` elsewhere. The first is always
            `IGNORED`: there is nothing before it to predict it from. A row with a class has its number at the end.
        answers: Half-open (start, end) token ranges, in order, of the answers that start in the row. Empty for a text
            that is all answer.
    """

    input_ids: list[int]
    labels: list[int]
    answers: tuple[tuple[int, int], ...] = ()

    @property
    def trained_tokens(self) -> int:
        """Number of tokens that carry loss."""
        return len(self.labels) - self.labels.count(IGNORED)


class Tokenization:
    """Tokenizes marked texts with one tokenizer; made once in each worker."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, train_on_inputs: bool = False) -> None:
        """Prepare a tokenizer.

        Args:
            tokenizer: A fast tokenizer (one with character offsets) that has an EOS token.
            train_on_inputs: Label every token, not only answers.
        """
        self.tokenizer = tokenizer
        self.eos = int(tokenizer.eos_token_id)
        self._train_on_inputs = train_on_inputs
        # Bypass transformers' wrapper: it turns every offset of every token into Python objects first.
        self._backend: Any = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._opening, self.closing = self._tokens_around_text()

    def tokenize(self, texts: Sequence[MarkedText]) -> list[TokenRow]:
        """Tokenize a batch of texts, in one call.

        Args:
            texts: The texts of the rows.

        Returns:
            A row for each. EOS ends its last answer exactly once; BOS starts it exactly once if the tokenizer uses it.
            A text with a class has the tokens that the tokenizer makes of it.
        """
        # If everything is trained on, nothing must be located, so the tokenizer need not track offsets.
        texts = [text if text.label is not None else self._without_space_at_eos(text) for text in texts]
        encode = self._backend.encode_batch_fast if all(map(_is_all_answer, texts)) else self._backend.encode_batch
        encodings = encode([text.text for text in texts], add_special_tokens=False)
        return [self._labelled(encoding, text) for encoding, text in zip(encodings, texts, strict=True)]

    def _without_space_at_eos(self, text: MarkedText) -> MarkedText:
        """A rendered text without the white space that the template puts between two conversations.

        If the template does not end with EOS, EOS is added directly after it. After white space, which is not trained
        on, a model would never reach it.
        """
        stripped = text.text.rstrip()
        is_closed = stripped.endswith(str(self.tokenizer.eos_token))
        if stripped == text.text or is_closed == text.is_rendered:
            return text
        answers = tuple((start, min(end, len(stripped))) for start, end in text.answers)
        return replace(text, text=stripped, answers=answers)

    def _tokens_around_text(self) -> tuple[list[int], list[int]]:
        """The tokens that the tokenizer puts before every text (BOS, or none), and after it.

        Those after it end labelled rows only; after an answer, EOS is added here.
        """
        bare = self._backend.encode("a", add_special_tokens=False).ids
        dressed = self._backend.encode("a", add_special_tokens=True).ids
        start = next(i for i in range(len(dressed)) if dressed[i : i + len(bare)] == bare)
        return list(dressed[:start]), list(dressed[start + len(bare) :])

    def _labelled(self, encoding: Any, text: MarkedText) -> TokenRow:
        ids: list[int] = encoding.ids
        is_open = text.is_rendered or ids[: len(self._opening)] == self._opening
        opening = [] if is_open else self._opening
        if text.label is not None:
            return classified([*opening, *ids, *self.closing], text.label)
        is_all = self._train_on_inputs or _is_all_answer(text)
        labels = list(ids) if is_all else [IGNORED] * len(ids)
        answers = []
        for answer in () if _is_all_answer(text) else text.answers:
            first, last = _token_span(encoding, answer, len(ids))
            labels[first : last + 1] = ids[first : last + 1]
            if first <= last:
                answers.append((first + len(opening), last + 1 + len(opening)))
        ids, labels = opening + ids, [IGNORED] * len(opening) + labels
        ids, labels = self._ended(ids, labels, answers[-1][1] - 1 if answers else len(ids) - 1, text)
        labels[0] = IGNORED
        return TokenRow(ids, labels, tuple(answers))

    def _ended(self, ids: list[int], labels: list[int], closing: int, text: MarkedText) -> tuple[list[int], list[int]]:
        """A row with EOS after its last answer, or at its end.

        Args:
            ids: Its tokens.
            labels: Their labels.
            closing: Index of the last token of its last answer.
            text: Its text.
        """
        if ids and ids[closing] != self.eos and ids[closing + 1 : closing + 2] == [self.eos]:
            closing += 1  # a template may close the turn outside the part that it marks
        if ids and ids[closing] == self.eos:
            labels[closing] = self.eos
            return ids, labels
        if not (ids and ids[-1] == self.eos):
            ids, labels = [*ids, self.eos], [*labels, IGNORED]
        # What follows the last answer to train on is not learned, and neither is the end of the conversation.
        rest = text.text[text.answers[-1][1] :].strip() if text.is_rendered else ""
        if self._train_on_inputs or rest in ("", str(self.tokenizer.eos_token)):
            labels[-1] = self.eos
        return ids, labels


def classified(ids: list[int], label: int) -> TokenRow:
    """The row of a text with a class: its label stands at the last token, whose output classifiers take.

    Args:
        ids: Its tokens.
        label: Number of its class.
    """
    return TokenRow(ids, [*[IGNORED] * (len(ids) - 1), label])


def _is_all_answer(text: MarkedText) -> bool:
    return text.answers == ((0, len(text.text)),)


def _token_span(encoding: Any, answer: tuple[int, int], tokens: int) -> tuple[int, int]:
    """The first and last token with characters of an answer; (0, -1) if there is none.

    A token across the border holds a part of the answer, so it belongs to it. White space between tokens may belong to
    no token, and one character may be several tokens (bytes of an emoji).
    """
    start, end = answer
    first = next((t for c in range(start, end) if (t := encoding.char_to_token(c)) is not None), None)
    if first is None:
        return 0, -1
    last: int = next(t for c in range(end - 1, start - 1, -1) if (t := encoding.char_to_token(c)) is not None)
    while last + 1 < tokens and (span := encoding.token_to_chars(last + 1)) and span[0] < end and span[1] > start:
        last += 1
    return first, last


def fit(row: TokenRow, max_length: int, policy: LongRows) -> list[TokenRow]:
    """Limit a row to the maximum length.

    Args:
        row: Any row.
        max_length: Longest row, in tokens.
        policy: What happens to a longer row.

    Returns:
        The row; or its start, its pieces, or nothing. Pieces overlap by one token: the first token of a row cannot be
        predicted from anything, so without the overlap one prediction per piece would be lost, at worst the EOS.
    """
    length = len(row.input_ids)
    if length <= max_length:
        return [row]
    if policy == "drop":
        return []
    if policy == "truncate":
        return [_piece(row, 0, max_length)]
    return [_piece(row, start, start + max_length) for start in range(0, length - 1, max_length - 1)]


def _piece(row: TokenRow, start: int, end: int) -> TokenRow:
    """The tokens of a row from `start` to `end`."""
    answers = tuple((first - start, min(last, end) - start) for first, last in row.answers if start < first < end)
    return TokenRow(row.input_ids[start:end], [IGNORED, *row.labels[start + 1 : end]], answers)


def digest(text: MarkedText, piece: int) -> bytes:
    """16 bytes that are equal for two pieces of examples only if their texts and trained parts are equal."""
    hashed = hashlib.blake2b(text.text.encode(), digest_size=16)
    labelled = (text.label,) if text.label is not None else ()  # a text with two labels is two examples
    hashed.update(repr((text.answers, piece, *labelled)).encode())
    return hashed.digest()


class ForbiddenText:
    """Finds text that no row may contain: NUL, invalid Unicode and, unless allowed, the tokenizer's special tokens.

    A special token spelled out in a row would be read as the token itself: a quoted "</s>" would end the text, and
    "<|im_start|>system" would be a system message written by a user.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, allow_special_tokens: bool = False) -> None:
        """Collect the special tokens of a tokenizer."""
        added = tokenizer.added_tokens_decoder.values()
        names = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        end = turn_end(tokenizer)
        if end is not None and end.token is not None:
            names.add(end.token)  # it need not be marked as special
        spelled = [] if allow_special_tokens else sorted(names, key=len, reverse=True)
        self._openings = {name[0] for name in spelled}  # searched first: searching for a hundred names is slow
        self._special = re.compile("|".join(map(re.escape, spelled)))

    def reasons(self, texts: Iterable[tuple[str, str]]) -> Iterator[str]:
        """Why a row cannot be used: one reason for each (column, text) with forbidden content."""
        for column, text in texts:
            if "\0" in text:
                yield f"column {column!r} holds a NUL character"
            if not text.isascii() and not is_unicode(text):
                yield f"column {column!r} is not UTF-8"
            if found := self.spelled_out(text):
                yield f"column {column!r} spells out the special token {found[0]!r}"

    def spelled_out(self, text: str) -> list[str]:
        """The special tokens spelled out in a text, in order."""
        return self._special.findall(text) if any(opening in text for opening in self._openings) else []


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: not if it has half a surrogate pair, or a byte that was not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_usable(tokenizer: "PreTrainedTokenizerBase", *, needs_chat_template: bool) -> None:
    """Refuse a tokenizer that cannot do what the formats need.

    Args:
        tokenizer: The tokenizer.
        needs_chat_template: Whether a source has conversations.

    Raises:
        DataError: It has no character offsets, no EOS token, or no chat template for conversations.
    """
    name = tokenizer.name_or_path
    if not tokenizer.is_fast:
        raise DataError.single(
            "model.source",
            name,
            "its tokenizer gives no character offsets.",
            "Add a tokenizer.json to the model.",
            code="tokenizer-slow",
        )
    if tokenizer.eos_token_id is None:
        raise DataError.single(
            "model.source", name, "its tokenizer has no EOS token.", "Set eos_token in it.", code="tokenizer-no-eos"
        )
    if needs_chat_template and not tokenizer.chat_template:
        raise DataError.single(
            "data.format",
            "chat",
            "this model's tokenizer has no chat template (a base model has none).",
            "Use an instruct model, add chat_template.jinja to the model, or use format alpaca.",
            code="chat-template-missing",
        )
