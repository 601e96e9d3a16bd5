"""The text of an answer while it is made: what was shown never changes, and in the end it is what decoding gives."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")  # a byte of a character that a SentencePiece vocabulary lacks
_UNFINISHED = "\ufffd"  # what decoding writes for a part of a character
# A long answer is decoded every few tokens only: from its start each time, which has to stay cheap.
_DECODED_AT_ONCE = 128


class AnswerText:
    """Turns tokens into text as they come.

    The whole answer is decoded again each time, since tokenizers decode in context: the first token loses its space, a
    run of bytes becomes a character or none. Held back is what later tokens may change: white space at the end, a part
    of a character, and the start of a stop text.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", stop: Sequence[str], *, is_streamed: bool) -> None:
        """Start an answer.

        Args:
            tokenizer: The model's tokenizer.
            stop: Texts before which the answer ends.
            is_streamed: Whether text is wanted before the end.
        """
        self.tokens: list[int] = []
        self.is_stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._is_looked_at = is_streamed or bool(stop)
        self._is_streamed = is_streamed
        self._is_cleaned = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
        self._shown = ""

    def add(self, token: int) -> str:
        """Add a token.

        Args:
            token: Its id.

        Returns:
            The text that can be shown now; empty for an answer that is not streamed. `is_stopped` says whether it ends.
        """
        self.tokens.append(token)
        if not self._is_looked_at or len(self.tokens) % (1 + len(self.tokens) // _DECODED_AT_ONCE):
            return ""
        text = self._settled()
        if (cut := self._cut(text)) is not None:
            self.is_stopped = True
            return self._show(cut)
        return self._show(text[: len(text) - self._held_back(text)].rstrip()) if self._is_streamed else ""

    def end(self) -> str:
        """The rest of the text, when no token comes any more."""
        if self.is_stopped:
            return ""
        text = str(self._tokenizer.decode(self.tokens, skip_special_tokens=True)).strip()
        if (cut := self._cut(text)) is not None:
            self.is_stopped, text = True, cut
        return self._show(text)

    def _show(self, text: str) -> str:
        """What a text adds to the one that was shown; nothing while tokens decode to another beginning."""
        if not text.startswith(self._shown):
            return ""
        new = text[len(self._shown) :]
        self._shown = text
        return new

    def _settled(self) -> str:
        """The text as far as later tokens leave it as it is."""
        end = len(self.tokens)
        while end and _BYTE.fullmatch(str(self._tokenizer.convert_ids_to_tokens(self.tokens[end - 1]))):
            end -= 1
        text = str(self._tokenizer.decode(self.tokens[:end], skip_special_tokens=True)).lstrip()
        text = text.rstrip().rstrip(_UNFINISHED).rstrip()
        if self._is_cleaned:  # " n't" loses its space when the last letter comes
            text = text[: max(text.rfind(" "), 0)].rstrip()
        return text

    def _cut(self, text: str) -> str | None:
        """The text before the first stop text in it; None without one."""
        places = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        return text[: min(places)].rstrip() if places else None

    def _held_back(self, text: str) -> int:
        """Characters at the end of a text that may be the start of a stop text."""
        return max(
            (n for stop in self._stop for n in range(1, min(len(stop), len(text) + 1)) if text.endswith(stop[:n])),
            default=0,
        )
