"""litserve's OpenAI specification with what a server for many adapters needs. Imports litserve: import it late.

litserve's own (0.2.19) keeps the queues of a request in the specification, where the next request replaces them, ends
every answer with `stop`, ignores fields that it does not know, and takes whatever `model` says.
"""

import asyncio
import time
from typing import TYPE_CHECKING, Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from litserve.specs.openai import OpenAISpec
from starlette.requests import ClientDisconnect

from thriftune.inference.serving.desk import Desk, Told
from thriftune.inference.serving.questions import Questions
from thriftune.inference.serving.refusals import RefusedError
from thriftune.inference.serving.requests import ChatRequest, read
from thriftune.inference.serving.responses import GONE, ClientGoneError, EventStream, unless_gone, whole

if TYPE_CHECKING:
    from litserve import LitAPI

TOLD = "thriftune.told"  # where a request's scope has what is logged of it


class AdaptersSpec(OpenAISpec):  # type: ignore[misc]
    """Chat completions of a base model and adapters on it, chosen by the request's `model`."""

    def __init__(self, desk: Desk, questions: Questions) -> None:
        """Make the endpoints.

        Args:
            desk: Takes requests in.
            questions: Makes tokens of them.
        """
        super().__init__()
        self._desk: Desk | None = desk
        self._questions: Questions | None = questions
        self._began = int(time.time())

    def __getstate__(self) -> dict[str, Any]:
        """What the decoding process gets of it: nothing of the HTTP process."""
        return {**super().__getstate__(), "_desk": None, "_questions": None, "_endpoints": []}

    def pre_setup(self, lit_api: "LitAPI") -> None:
        """Register the endpoints. The decoding loop needs no `predict`, which litserve would look for here.

        Args:
            lit_api: What decodes.
        """
        self.add_endpoint(self.api_path, self.chat_completion, ["POST"])
        self.add_endpoint("/v1/models", self.models, ["GET"])
        self.add_endpoint("/v1/models/{name:path}", self.model, ["GET"])

    @property
    def desk(self) -> Desk:
        """Takes requests in; only in the HTTP process."""
        assert self._desk is not None, "only the HTTP process has it"
        return self._desk

    @property
    def questions(self) -> Questions:
        """Makes tokens of requests; only in the HTTP process."""
        assert self._questions is not None, "only the HTTP process has it"
        return self._questions

    async def chat_completion(self, request: Request) -> Response:
        """Answer a conversation.

        Args:
            request: As it came.

        Raises:
            RefusedError: It is wrong, or there is no room for it.
        """
        try:
            return await self._answer(request)
        except ClientGoneError:
            return Response(status_code=GONE)

    async def _answer(self, request: Request) -> Response:
        told: Told = request.scope.setdefault(TOLD, Told())
        self.desk.require_open()
        chat = read(await self._body(request), self.questions.styles)
        told.model = chat.model
        with self.desk.reading(chat.n or 1):
            asks = await asyncio.to_thread(self.questions.asks, chat)  # a long text takes a tokenizer its time
        if chat.stream:
            return EventStream(self.desk, chat, asks, told)
        return await self._whole(request, chat, asks, told)

    async def _whole(self, request: Request, chat: ChatRequest, asks: Any, told: Told) -> Response:
        async with self.desk.answering(asks, told) as taken, self.desk.in_time(taken):
            answer = await unless_gone(request.receive, whole(self.desk, chat, taken))
        return JSONResponse(answer.model_dump(exclude_none=True))

    async def models(self) -> Response:
        """The base and the adapters."""
        return JSONResponse({"object": "list", "data": [self._card(name) for name in self.questions.styles]})

    async def model(self, name: str) -> Response:
        """One of them.

        Args:
            name: Its name.

        Raises:
            RefusedError: There is none of that name.
        """
        if name not in self.questions.styles:
            message = f"There is no model {name[:80]!a} here. There are: {', '.join(self.questions.styles)}."
            raise RefusedError(404, message, "model", "model_not_found")
        return JSONResponse(self._card(name))

    def _card(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._began, "owned_by": "thriftune"}

    async def _body(self, request: Request) -> bytes:
        """The body of a request, as far as it may be long and slow.

        Raises:
            RefusedError: It is too long, too slow, or of another type.
            ClientGoneError: The client left before its end.
        """
        limits, kind = self.desk.limits, request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            message = f"The content type is {kind[:80]!a}. Send application/json."
            raise RefusedError(415, message, code="content_type")
        body = bytearray()
        try:
            async with asyncio.timeout(limits.head_seconds):
                async for part in request.stream():
                    body += part
                    if len(body) > limits.max_body_bytes:
                        break
        except ClientDisconnect:
            raise ClientGoneError from None
        except TimeoutError:
            message = f"The body did not come within {limits.head_seconds:.0f} s. Send it at once."
            raise RefusedError(408, message, code="timeout") from None
        if len(body) > limits.max_body_bytes:
            message = f"The body has more than {limits.max_body_bytes} bytes (--max-body-bytes). Send less."
            raise RefusedError(413, message, code="body_too_large")
        return bytes(body)
