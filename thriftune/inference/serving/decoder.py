"""Decoding answers of many requests at once, each with its own adapter, which come and go at any token."""

import logging
from collections.abc import Sequence

from thriftune.errors import in_a_line
from thriftune.inference.serving.asking import Ask, Finish, Piece, Report
from thriftune.inference.serving.batch import Batch, Row
from thriftune.inference.serving.choosing import choice_of
from thriftune.inference.serving.loaded import Loaded
from thriftune.inference.serving.text import AnswerText

logger = logging.getLogger(__name__)


class Decoder:
    """One model, its adapters, and the answers that are being made.

    All rows that peft can batch are decoded in one forward pass; for the others there is a batch of each adapter. The
    batches take turns, so that no adapter waits for another's answers to end.
    """

    def __init__(self, loaded: Loaded, max_batch: int) -> None:
        """Make a decoder without any answers.

        Args:
            loaded: The model and its adapters.
            max_batch: Most answers at once, in all batches together.
        """
        self._loaded = loaded
        self._max_batch = max_batch
        self._batches = {batch.name: Batch(loaded, batch) for batch in loaded.batches}
        self._waiting: list[Ask] = []
        self._turn = 0

    @property
    def is_busy(self) -> bool:
        """Whether there is anything to decode."""
        return bool(self._waiting) or self._rows > 0

    @property
    def _rows(self) -> int:
        return sum(len(batch.rows) for batch in self._batches.values())

    def add(self, ask: Ask) -> None:
        """Take a request, which joins as soon as there is a place.

        Args:
            ask: The request.
        """
        self._waiting.append(ask)

    def cancel(self, uid: str) -> None:
        """Forget a request, and free its row.

        Args:
            uid: Its identity. One that has ended already is no error: the two may have crossed.
        """
        self._waiting = [ask for ask in self._waiting if ask.uid != uid]
        for batch in self._batches.values():
            batch.drop([row for row in batch.rows if row.ask.uid == uid])

    def step(self) -> Report:
        """Take in who waits, and decode one token of each row of the batch whose turn it is.

        Returns:
            What is new.
        """
        pieces = self._join()
        busy = [batch for batch in self._batches.values() if batch.rows]
        rows = 0
        if busy:
            self._turn += 1
            batch = busy[self._turn % len(busy)]
            rows = len(batch.rows)
            pieces += self._decode(batch)
        return Report(tuple(pieces), rows, len(self._waiting))

    def _join(self) -> list[Piece]:
        """Take in those that wait, in order, while there are places. Newcomers get their first token at once."""
        free = self._max_batch - self._rows
        newcomers, self._waiting = self._waiting[:free], self._waiting[free:]
        pieces: list[Piece] = []
        by_batch: dict[str, list[Row]] = {}
        for ask in newcomers:
            try:
                by_batch.setdefault(self._loaded.batch_of(ask.model).name, []).append(self._row(ask))
            except Exception as error:  # noqa: BLE001 - one request must not end the others
                pieces.append(_failed(ask, 0, error))
        for name, rows in by_batch.items():
            pieces += self._guarded(rows, self._batches[name], joining=True)
        return pieces

    def _row(self, ask: Ask) -> Row:
        choice = choice_of(ask.temperature, ask.top_p, ask.seed, self._loaded.penalty)
        return Row(ask, AnswerText(self._loaded.tokenizer, ask.stop, is_streamed=ask.is_streamed), choice)

    def _decode(self, batch: Batch) -> list[Piece]:
        return self._guarded(list(batch.rows), batch, joining=False)

    def _guarded(self, rows: Sequence[Row], batch: Batch, *, joining: bool) -> list[Piece]:
        """One forward pass; if it fails, the rows in it end with an error, and the decoder goes on."""
        try:
            tokens = batch.join(rows) if joining else batch.step()
        except Exception as error:  # a library's: out of memory most of all
            logger.exception("A forward pass over %d answers failed", len(rows))
            batch.drop(rows)
            self._loaded.free_memory()
            return [_failed(row.ask, len(row.text.tokens), error) for row in rows]
        taken = [self._take(row, token) for row, token in zip(rows, tokens, strict=True)]
        batch.drop([row for row, piece in zip(rows, taken, strict=True) if piece.is_last])
        return [piece for piece in taken if piece.text or piece.is_last]

    def _take(self, row: Row, token: int | None) -> Piece:
        """What a token adds to an answer."""
        if token is None:
            message = "the scores of the next token are not finite; try --bits 32, or another adapter"
            return Piece(row.ask.uid, "", len(row.text.tokens), error=message)
        if token in self._loaded.stops:
            return self._last(row, "", "stop")
        text = row.text.add(token)
        row.seen.append(token)
        if row.text.is_stopped:
            return self._last(row, text, "stop")
        if len(row.text.tokens) == row.ask.max_tokens:
            return self._last(row, text, "length")
        return Piece(row.ask.uid, text, len(row.text.tokens))

    def _last(self, row: Row, text: str, finish: Finish) -> Piece:
        text += row.text.end()
        return Piece(row.ask.uid, text, len(row.text.tokens), "stop" if row.text.is_stopped else finish)


def _failed(ask: Ask, tokens: int, error: Exception) -> Piece:
    return Piece(ask.uid, "", tokens, error=in_a_line(error))
