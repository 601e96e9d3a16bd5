"""What the HTTP process knows of its requests: how many are accepted, and who waits for which answer."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
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
        pieces: What the decoder has said, for all choices.
        began: When it was accepted, by the monotonic clock.
        unfinished: The choices that go on.
    """

    asks: Sequence[Ask]
    told: Told
    deadline: float
    pieces: "asyncio.Queue[Piece]" = field(default_factory=asyncio.Queue)
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
        if len(self._by_uid) + answers > self.limits.max_batch + self.limits.max_queue:
            message = f"{len(self._by_uid)} answers are being made or wait (--max-queue). Ask again later."
            raise RefusedError(429, message, code="queue_full", retry_after=_RETRY_SECONDS)

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

    async def pieces(self, taken: Answering) -> AsyncIterator[Piece]:
        """The pieces of an accepted request until all its choices have ended.

        Args:
            taken: The request.

        Yields:
            Each piece.

        Raises:
            RefusedError: It took too long, or the decoder failed.
        """
        tokens: dict[str, int] = {}
        while taken.unfinished:
            try:
                async with asyncio.timeout_at(taken.deadline):
                    piece = await taken.pieces.get()
            except TimeoutError:
                raise too_slow(self.limits.request_seconds) from None
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
        for uid, taken in self._by_uid.items():
            taken.pieces.put_nowait(Piece(uid, "", 0, error="its process ended"))
