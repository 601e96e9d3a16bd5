"""From marked text to token ids and labels. Labels come from token offsets, never from counting a prompt's tokens."""

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
            `IGNORED`: nothing comes before it to predict it from.
        answers: Half-open (start, end) ranges of tokens, in order, of the answers that begin in it. Empty for a text
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
        """Take what is needed of a tokenizer.

        Args:
            tokenizer: A fast tokenizer (one that knows character offsets) with an EOS token.
            train_on_inputs: Label every token, not only answers.
        """
        self.tokenizer = tokenizer
        self.eos = int(tokenizer.eos_token_id)
        self._train_on_inputs = train_on_inputs
        # Underneath transformers' wrapper: that turns every offset of every token into Python objects first.
        self._backend: Any = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._opening = self._tokens_before_text()

    def tokenize(self, texts: Sequence[MarkedText]) -> list[TokenRow]:
        """Tokenize a batch of texts, in one call.

        Args:
            texts: What the rows say.

        Returns:
            A row for each. EOS closes its last answer exactly once; BOS opens it exactly once if the tokenizer uses it.
        """
        # Where everything is trained on, nothing has to be located, and the tokenizer need not keep track of places.
        texts = [self._without_space_at_eos(text) for text in texts]
        encode = self._backend.encode_batch_fast if all(map(_is_all_answer, texts)) else self._backend.encode_batch
        encodings = encode([text.text for text in texts], add_special_tokens=False)
        return [self._labelled(encoding, text) for encoding, text in zip(encodings, texts, strict=True)]

    def _without_space_at_eos(self, text: MarkedText) -> MarkedText:
        """A text that a template was applied to without what the template puts between two conversations.

        Where the template ends with something else than EOS, EOS is added here: right behind it. Behind white space,
        which is not trained, a model would never come to it.
        """
        stripped = text.text.rstrip()
        is_closed = stripped.endswith(str(self.tokenizer.eos_token))
        if stripped == text.text or is_closed == text.is_rendered:
            return text
        answers = tuple((start, min(end, len(stripped))) for start, end in text.answers)
        return replace(text, text=stripped, answers=answers)

    def _tokens_before_text(self) -> list[int]:
        """What the tokenizer puts before every text: BOS, or nothing. What it puts after it is EOS, added here."""
        bare = self._backend.encode("a", add_special_tokens=False).ids
        dressed = self._backend.encode("a", add_special_tokens=True).ids
        start = next(i for i in range(len(dressed)) if dressed[i : i + len(bare)] == bare)
        return list(dressed[:start])

    def _labelled(self, encoding: Any, text: MarkedText) -> TokenRow:
        ids: list[int] = encoding.ids
        is_open = text.is_rendered or ids[: len(self._opening)] == self._opening
        opening = [] if is_open else self._opening
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
        """A row with EOS behind its last answer, or at its end.

        Args:
            ids: Its tokens.
            labels: Their labels.
            closing: Index of the last token of its last answer.
            text: What it says.
        """
        if ids and ids[closing] != self.eos and ids[closing + 1 : closing + 2] == [self.eos]:
            closing += 1  # a template may close the turn outside of what it marks as the assistant's
        if ids and ids[closing] == self.eos:
            labels[closing] = self.eos
            return ids, labels
        if not (ids and ids[-1] == self.eos):
            ids, labels = [*ids, self.eos], [*labels, IGNORED]
        # What a conversation goes on with after its last answer to train on is not to be learned, nor is its end.
        rest = text.text[text.answers[-1][1] :].strip() if text.is_rendered else ""
        if self._train_on_inputs or rest in ("", str(self.tokenizer.eos_token)):
            labels[-1] = self.eos
        return ids, labels


def _is_all_answer(text: MarkedText) -> bool:
    return text.answers == ((0, len(text.text)),)


def _token_span(encoding: Any, answer: tuple[int, int], tokens: int) -> tuple[int, int]:
    """The first and last token that hold characters of an answer; (0, -1) when none does.

    A token that straddles the border holds part of the answer, so it belongs to it. White space between tokens may
    belong to none, and one character may be several tokens (bytes of an emoji).
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
    """Bring a row to the maximum length.

    Args:
        row: Any row.
        max_length: Longest row, in tokens.
        policy: What becomes of a longer one.

    Returns:
        The row; or its beginning, its pieces, or nothing. Pieces overlap by one token: the first token of a row has
        nothing to be predicted from, so without the overlap one prediction per piece would be lost, at worst the EOS.
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
    """16 bytes that are equal for two pieces of examples only when they say and train the same."""
    hashed = hashlib.blake2b(text.text.encode(), digest_size=16)
    hashed.update(repr((text.answers, piece)).encode())
    return hashed.digest()


class ForbiddenText:
    """Finds what no row may spell out: NUL, what is not Unicode, and, unless allowed, the tokenizer's special tokens.

    A special token that a row spells out would be read as the token itself: a quoted "</s>" would end the text, and
    "<|im_start|>system" would be a system message that a user wrote.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, allow_special_tokens: bool = False) -> None:
        """Collect the special tokens of a tokenizer."""
        added = tokenizer.added_tokens_decoder.values()
        names = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        end = turn_end(tokenizer)
        if end is not None and end.token is not None:
            names.add(end.token)  # which need not be marked as special
        spelled = [] if allow_special_tokens else sorted(names, key=len, reverse=True)
        self._openings = {name[0] for name in spelled}  # looked for first: a hundred names are slow to search for
        self._special = re.compile("|".join(map(re.escape, spelled)))

    def reasons(self, texts: Iterable[tuple[str, str]]) -> Iterator[str]:
        """Why a row cannot be used: one reason for each (column, text) with something forbidden in it."""
        for column, text in texts:
            if "\0" in text:
                yield f"column {column!r} holds a NUL character"
            if not text.isascii() and not is_unicode(text):
                yield f"column {column!r} is not UTF-8"
            if found := self.spelled_out(text):
                yield f"column {column!r} spells out the special token {found[0]!r}"

    def spelled_out(self, text: str) -> list[str]:
        """The special tokens that a text spells out, in order."""
        return self._special.findall(text) if any(opening in text for opening in self._openings) else []


def is_unicode(text: str) -> bool:
    """Whether a text can be encoded: half a surrogate pair, or a byte that was not UTF-8, cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_usable(tokenizer: "PreTrainedTokenizerBase", *, needs_chat_template: bool) -> None:
    """Refuse a tokenizer that cannot do what the formats need.

    Raises:
        DataError: No character offsets, no EOS token, or no chat template for chat rows.
    """
    name = tokenizer.name_or_path
    if not tokenizer.is_fast:
        raise DataError.single(
            "model.source",
            name,
            "its tokenizer knows no character offsets.",
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
