"""The answers to a chat request as OpenAI's clients read them, whole or in pieces. Imports litserve: import it late."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any
from uuid import uuid4

from fastapi.responses import Response
from litserve.specs.openai import (
    ChatCompletionChunk,
    ChatCompletionResponse,
    ChatCompletionResponseChoice,
    ChatCompletionStreamingChoice,
    ChatMessage,
    ChoiceDelta,
    UsageInfo,
)
from starlette.types import Message, Receive, Scope, Send

from thriftune.inference.serving.asking import Piece
from thriftune.inference.serving.desk import Answering, Desk, Told
from thriftune.inference.serving.refusals import RefusedError
from thriftune.inference.serving.requests import ChatRequest

GONE = 499  # what is logged for a client that left: nginx's number for it
_END: Message = {"type": "http.response.body", "body": b"", "more_body": False}


class ClientGoneError(Exception):
    """The client closed the connection: there is nobody to answer."""


async def unless_gone(receive: Receive, work: Awaitable[Any]) -> Any:
    """Do something for a client while it is there.

    Args:
        receive: Gives what the client sends, after its body.
        work: What to do.

    Returns:
        What the work returns.

    Raises:
        ClientGoneError: It left. The work was cancelled.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
            with suppress(asyncio.CancelledError, Exception):  # its own error is raised above
                await each


async def _left(receive: Receive) -> None:
    message: Message = {}
    while message.get("type") != "http.disconnect":
        message = await receive()


async def whole(desk: Desk, request: ChatRequest, taken: Answering) -> ChatCompletionResponse:
    """The whole answer to a request.

    Args:
        desk: Where its pieces arrive.
        request: The request.
        taken: The same, accepted.

    Raises:
        RefusedError: The decoder failed, or the server ends.
    """
    texts = {ask.uid: "" for ask in taken.asks}
    last: dict[str, Piece] = {}
    async for piece in desk.pieces(taken):
        texts[piece.uid] += piece.text
        last[piece.uid] = piece
    choices = [
        ChatCompletionResponseChoice(
            index=number,
            message=ChatMessage(role="assistant", content=texts[ask.uid]),
            finish_reason=last[ask.uid].finish,
        )
        for number, ask in enumerate(taken.asks)
    ]
    return ChatCompletionResponse(id=_new_id(), model=request.model, choices=choices, usage=usage(taken.told))


def usage(told: Told) -> UsageInfo:
    """The counts of tokens of a request.

    Args:
        told: What is counted of it.
    """
    return UsageInfo(
        prompt_tokens=told.prompt_tokens,
        completion_tokens=told.completion_tokens,
        total_tokens=told.prompt_tokens + told.completion_tokens,
    )


class EventStream(Response):
    """An answer in pieces, as server-sent events. Its request is accepted before the first byte is sent."""

    media_type = "text/event-stream"

    def __init__(self, desk: Desk, request: ChatRequest, asks: Any, told: Told) -> None:
        """Prepare it.

        Args:
            desk: Takes the request in.
            request: The request.
            asks: What the decoder is asked.
            told: What is counted of it.
        """
        super().__init__(headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._desk, self._request, self._asks, self._told = desk, request, asks, told

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, as ASGI asks for it.

        Args:
            scope: The connection.
            receive: Gives what the client sends.
            send: Sends to the client.

        Raises:
            RefusedError: The request was not accepted; nothing was sent.
        """
        refused = None
        async with self._desk.answering(self._asks, self._told) as taken:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                async with self._desk.in_time(taken):
                    await unless_gone(receive, self._send_all(taken, send))
            except ClientGoneError:
                self._told.outcome = GONE
            except RefusedError as error:
                refused = error
        if refused is not None:  # its places are free, whether or not the client reads why
            self._told.outcome = refused.status
            await send(_part(_event(json.dumps(refused.body))))
            await send(_END)

    async def _send_all(self, taken: Answering, send: Callable[[Message], Awaitable[None]]) -> None:
        async for event in self._events(taken):
            await send(_part(_event(event)))
            await asyncio.sleep(0)  # else, with all pieces there, it would not be noticed that the client left
        await send(_part(_event("[DONE]")))
        await send(_END)

    async def _events(self, taken: Answering) -> AsyncIterator[str]:
        """The chunks as JSON: who speaks, the texts, why each choice ended, and the counts if they were asked for."""
        same: dict[str, Any] = {"id": _new_id(), "created": int(time.time()), "model": self._request.model}
        index = {ask.uid: number for number, ask in enumerate(taken.asks)}

        def chunk(number: int, delta: ChoiceDelta, finish: str | None = None) -> str:
            choice = ChatCompletionStreamingChoice(index=number, delta=delta, finish_reason=finish)
            return _json(ChatCompletionChunk(choices=[choice], usage=None, **same))

        for number in index.values():
            yield chunk(number, ChoiceDelta(role="assistant", content=""))
        async for piece in self._desk.pieces(taken):
            if piece.text:
                yield chunk(index[piece.uid], ChoiceDelta(content=piece.text))
            if piece.is_last:
                yield chunk(index[piece.uid], ChoiceDelta(), piece.finish)
        options = self._request.stream_options
        if options is not None and options.include_usage:
            yield _json(ChatCompletionChunk(choices=[], usage=usage(self._told), **same))


def _json(chunk: ChatCompletionChunk) -> str:
    """A chunk without the fields that the server never fills."""
    content = chunk.model_dump(by_alias=True)
    for choice in content["choices"]:
        choice["delta"] = {name: value for name, value in choice["delta"].items() if value is not None}
    return json.dumps(content, ensure_ascii=False)


def _part(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


def _event(text: str) -> bytes:
    return f"data: {text}\n\n".encode()


def _new_id() -> str:
    return f"chatcmpl-{uuid4().hex}"
