"""What the HTTP process knows of its requests: how many are accepted, and who waits for which answer."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Literal

from thriftune.inference.serving.asking import Ask, Cancel, Piece, Report
from thriftune.inference.serving.limits import Limits
from thriftune.inference.serving.metrics import Metrics
from thriftune.inference.serving.refusals import RefusedError, draining, loading, too_slow

State = Literal["loading", "ready", "draining", "broken"]
_RETRY_SECONDS = 1  # an answer usually leaves its place within seconds


@dataclass
class Told:
    """What is logged and counted of a request, filled in as it becomes known.

    Attributes:
        model: Served name; empty while unknown.
        prompt_tokens: Tokens of its question.
        completion_tokens: Tokens of its answers.
        outcome: HTTP status, where it is not the one in the response's head: a stream that broke off.
    """

    model: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    outcome: int | None = None


@dataclass
class Answering:
    """An accepted request.

    Attributes:
        asks: One for each of its choices.
        told: What is counted of it.
        deadline: Loop time at which it is given up.
        pieces: What the decoder has said, for all choices; an error ends them.
        began: When it was accepted, by the monotonic clock.
        unfinished: The choices that go on.
    """

    asks: Sequence[Ask]
    told: Told
    deadline: float
    pieces: "asyncio.Queue[Piece | RefusedError]" = field(default_factory=asyncio.Queue)
    began: float = field(default_factory=time.monotonic)
    unfinished: set[str] = field(default_factory=set)


class Desk:
    """Takes requests in while there is room, hands them to the decoder, and passes its pieces on."""

    def __init__(self, limits: Limits, send: Callable[[Ask | Cancel], None]) -> None:
        """Open the desk; nothing is taken in before the state is `ready`.

        Args:
            limits: How much is taken in.
            send: Gives the decoder something to do.
        """
        from prometheus_client import CollectorRegistry

        self.state: State = "loading"
        self.limits = limits
        self.metrics = Metrics(CollectorRegistry(), lambda: len(self._by_uid))
        self._send = send
        self._by_uid: dict[str, Answering] = {}
        self._accepted = 0
        self._being_read = 0

    @property
    def accepted(self) -> int:
        """Requests that were accepted and are not answered."""
        return self._accepted

    def require_open(self) -> None:
        """Refuse a request while there is nobody to answer it.

        Raises:
            RefusedError: The model is not there yet, or no longer.
        """
        if self.state == "loading":
            raise loading()
        if self.state != "ready":
            raise draining()

    def require_room(self, answers: int) -> None:
        """Refuse a request while too many wait.

        Args:
            answers: How many it asks for.

        Raises:
            RefusedError: They do not fit beside those that were accepted.
        """
        places = self.limits.max_batch + self.limits.max_queue
        if answers > places:
            message = f"n = {answers}, and there are {places} places (--max-batch, --max-queue). Ask for fewer."
            raise RefusedError(400, message, "n", "invalid_value")
        taken = len(self._by_uid) + self._being_read
        if taken + answers > places:
            message = f"{taken} answers are being made or wait (--max-queue). Ask again later."
            raise RefusedError(429, message, code="queue_full", retry_after=_RETRY_SECONDS)

    @contextmanager
    def reading(self, answers: int) -> Iterator[None]:
        """Keep places for a request while its text becomes tokens: what would be refused after it need not be read.

        Args:
            answers: How many it asks for.

        Yields:
            Nothing, while they are kept.

        Raises:
            RefusedError: They do not fit beside those that were accepted.
        """
        self.require_room(answers)
        self._being_read += answers
        try:
            yield
        finally:
            self._being_read -= answers

    @asynccontextmanager
    async def answering(self, asks: Sequence[Ask], told: Told) -> AsyncIterator[Answering]:
        """Take a request in. Whatever happens to it, its rows are free afterwards.

        Args:
            asks: One for each of its choices.
            told: What is counted of it.

        Yields:
            Where its pieces arrive.

        Raises:
            RefusedError: Too many wait already, or the server is not ready.
        """
        self.require_open()
        self.require_room(len(asks))
        deadline = asyncio.get_running_loop().time() + self.limits.request_seconds
        taken = Answering(asks, told, deadline, unfinished={ask.uid for ask in asks})
        told.prompt_tokens = len(asks[0].prompt)
        self._accepted += 1
        try:
            for ask in asks:
                self._by_uid[ask.uid] = taken
                self._send(ask)
            yield taken
        finally:
            self._accepted -= 1
            for ask in asks:
                self._by_uid.pop(ask.uid, None)
            for uid in taken.unfinished:
                self._send(Cancel(uid))

    @asynccontextmanager
    async def in_time(self, taken: Answering) -> AsyncIterator[None]:
        """Give a request up at its deadline, whatever it waits for: the decoder, or a client that reads slowly.

        Args:
            taken: The request.

        Yields:
            Nothing, until then.

        Raises:
            RefusedError: It took too long.
        """
        try:
            async with asyncio.timeout_at(taken.deadline):
                yield
        except TimeoutError:
            raise too_slow(self.limits.request_seconds) from None

    async def pieces(self, taken: Answering) -> AsyncIterator[Piece]:
        """The pieces of an accepted request until all its choices have ended.

        Args:
            taken: The request.

        Yields:
            Each piece.

        Raises:
            RefusedError: The decoder failed, or the server ends.
        """
        tokens: dict[str, int] = {}
        while taken.unfinished:
            piece = await taken.pieces.get()
            if isinstance(piece, RefusedError):
                raise piece
            if not tokens:
                self.metrics.first_piece(taken.told.model, time.monotonic() - taken.began)
            tokens[piece.uid] = piece.tokens
            taken.told.completion_tokens = sum(tokens.values())
            if piece.is_last:
                taken.unfinished.discard(piece.uid)
            if piece.error:
                raise RefusedError(500, f"The model failed: {piece.error}. Ask again.", code="model_failed")
            yield piece

    def arrived(self, report: Report) -> None:
        """Pass on what the decoder reports. Pieces that nobody waits for any more are let go.

        Args:
            report: What it reported.
        """
        self.metrics.stepped(report)
        for piece in report.pieces:
            if taken := self._by_uid.get(piece.uid):
                taken.pieces.put_nowait(piece)

    def broke(self) -> None:
        """The decoder has ended: so do all requests."""
        self.state = "broken"
        self._end_all(RefusedError(500, "The model failed: its process ended. Ask again.", code="model_failed"))

    def give_up(self) -> None:
        """The server ends: so do all requests that are left."""
        self._end_all(draining())

    def _end_all(self, error: RefusedError) -> None:
        for taken in self._by_uid.values():
            taken.pieces.put_nowait(error)
