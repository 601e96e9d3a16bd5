"""The first to see a request: its key is compared, and its one line is logged when it is over."""

import hmac
import logging
import time
from typing import TYPE_CHECKING, Any

from thriftune.inference.serving.desk import Desk, Told
from thriftune.inference.serving.metrics import UNKNOWN
from thriftune.inference.serving.refusals import RefusedError

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

OPEN = ("/health", "/ready")  # without a key: who asks whether the server lives has none
_SHOWN = 80  # characters of a path in a log line


class Door:
    """ASGI middleware around everything else."""

    def __init__(self, app: "ASGIApp", desk: Desk, key: bytes | None, told: str) -> None:
        """Put it around an application.

        Args:
            app: The application.
            desk: Has the metrics.
            key: What clients have to know; None lets everybody in.
            told: Key of the scope under which the application notes what is logged.
        """
        self._app, self._desk, self._key, self._told = app, desk, key, told

    async def __call__(self, scope: "Scope", receive: "Receive", send: "Send") -> None:
        """Handle one request, as ASGI asks for it.

        Args:
            scope: The connection.
            receive: Gives what the client sends.
            send: Sends to the client.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        told = scope[self._told] = Told()
        began, status = time.monotonic(), 500

        async def noted(message: "Message") -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if scope["path"] not in OPEN and not self._is_known(scope):
                await _refuse(send)
                status = 401
            else:
                await self._app(scope, receive, noted)
        finally:
            self._note(scope, told, told.outcome or status, time.monotonic() - began)

    def _is_known(self, scope: "Scope") -> bool:
        """Whether a request has the key; compared in the same time however much of it is right."""
        if self._key is None:
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, key = given.partition(b" ")
        return hmac.compare_digest(key.strip(), self._key) and kind.lower() == b"bearer"

    def _note(self, scope: "Scope", told: Told, status: int, seconds: float) -> None:
        """Log and count it, without its texts and without its headers."""
        if scope["path"] in OPEN:
            return
        tokens = (told.prompt_tokens, told.completion_tokens)
        path = ascii(scope["path"][:_SHOWN])[1:-1]
        logger.info(
            "%s %s %d model=%s tokens=%d+%d seconds=%.3f",
            scope["method"], path, status, told.model or "-", *tokens, seconds,
        )  # fmt: skip
        if scope["path"].startswith("/v1/chat"):
            self._desk.metrics.finished(told.model or UNKNOWN, status, seconds, tokens)


async def _refuse(send: "Send") -> None:
    import json

    error = RefusedError(
        401, "The key is missing or wrong. Send it as Authorization: Bearer KEY.", code="invalid_api_key"
    )
    body = json.dumps(error.body).encode()
    headers: list[Any] = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"www-authenticate", b"Bearer"),
        (b"connection", b"close"),  # the body is not read
    ]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
