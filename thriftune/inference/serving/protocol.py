"""Connections that cannot be held for nothing: without a request, without reading, or too many. Imports uvicorn."""

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from thriftune.inference.serving.limits import Limits
from thriftune.inference.serving.refusals import RefusedError

_IDLE_SECONDS = 1.0  # without a request, after which a connection may have to make place for another


def limited(limits: Limits) -> type[H11Protocol]:
    """Uvicorn's protocol with limits on connections.

    Args:
        limits: The limits.
    """

    class Limited(H11Protocol):
        """A connection that ends when its client sends no request, or does not read what it asked for."""

        idle_since: float | None = None  # loop time since which it has sent no request
        _late: asyncio.TimerHandle | None = None
        _stalled: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            """Take a connection, or refuse it.

            Args:
                transport: The connection.
            """
            if len(self.connections) >= limits.max_connections and not _one_given_up(self.connections):
                transport.write(_full(limits))
                transport.close()
                self.transport = transport
                return
            super().connection_made(transport)
            self._wait_for_head()

        def data_received(self, data: bytes) -> None:
            """Read what came.

            Args:
                data: It.
            """
            if self.transport.is_closing():
                return
            super().data_received(data)
            if self.conn.their_state is h11.IDLE:
                self._wait_for_head()
                return
            self.idle_since = None
            if self._late is not None:
                self._late.cancel()
                self._late = None

        def pause_writing(self) -> None:
            """The client does not read: it has a while to do so."""
            super().pause_writing()
            self._stalled = self.loop.call_later(limits.stall_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            """The client reads again."""
            if self._stalled is not None:
                self._stalled.cancel()
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            """Forget the connection.

            Args:
                exc: What broke it, if anything did.
            """
            for timer in (self._late, self._stalled):
                if timer is not None:
                    timer.cancel()
            if self.flow is not None:
                super().connection_lost(exc)

        def on_response_complete(self) -> None:
            """The client may send another request."""
            self.idle_since = self.loop.time()
            super().on_response_complete()

        def _wait_for_head(self) -> None:
            if self._late is None and self.timeout_keep_alive_task is None:
                self.idle_since = self.loop.time()
                self._late = self.loop.call_later(limits.head_seconds, self.transport.abort)

    return Limited


def _one_given_up(connections: Any) -> bool:
    """End one of the connections that wait for a request, if there is one: it holds a place for nothing."""
    for connection in connections:
        since = connection.idle_since
        if since is not None and connection.loop.time() - since > _IDLE_SECONDS:
            connections.discard(connection)
            connection.transport.abort()
            return True
    return False


def _full(limits: Limits) -> bytes:
    """The answer to a connection too many, which nobody has read a request of."""
    message = f"There are {limits.max_connections} connections already (--max-connections). Try again later."
    error = RefusedError(503, message, code="too_many_connections", retry_after=1)
    body = json.dumps(error.body).encode()
    head = [
        "HTTP/1.1 503 Service Unavailable",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in error.headers.items()),
        "Connection: close",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body
