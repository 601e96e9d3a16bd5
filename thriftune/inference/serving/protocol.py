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

        idle_since: float | None = None  # loop time since which no request of it is answered
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
            self._limit_waiting()

        def data_received(self, data: bytes) -> None:
            """Read what came.

            Args:
                data: It.
            """
            if self.transport.is_closing():
                return
            super().data_received(data)
            self._limit_waiting()

        def pause_writing(self) -> None:
            """The client does not read: it has a while to do so."""
            super().pause_writing()
            self._stalled = self.loop.call_later(limits.stall_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            """The client reads again."""
            if self._stalled is not None:
                self._stalled.cancel()
            super().resume_writing()
            if self.transport.is_closing():
                self._limit_waiting()

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
            """The client may send another request, or has already."""
            super().on_response_complete()
            self._limit_waiting()

        def timeout_keep_alive_handler(self) -> None:
            """The client has sent no other request; what it has not read may still keep the connection."""
            super().timeout_keep_alive_handler()
            self._limit_waiting()

        def send_400_response(self, msg: str) -> None:
            """Refuse what is not HTTP.

            Args:
                msg: Why.
            """
            if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                super().send_400_response(msg)
            else:
                self.transport.abort()  # another answer has begun, or was given before the end of its request

        def _limit_waiting(self) -> None:
            """Have the connection end after a while in which no request of it is answered.

            It may send no whole head, or the body of a request that was answered without it, or not read its answer.
            """
            if self.cycle is not None and not self.cycle.response_complete:
                self.idle_since = None
                if self._late is not None:
                    self._late.cancel()
                    self._late = None
                return
            if self.idle_since is None:
                self.idle_since = self.loop.time()
            seconds = self._patience()
            if self._late is None and seconds is not None:
                self._late = self.loop.call_later(seconds, self.transport.abort)

        def _patience(self) -> float | None:
            """Seconds that it has for what it has to do now; None where another clock runs already."""
            if self.transport.is_closing():  # what is written has to leave
                return None if self.flow.write_paused else limits.stall_seconds
            is_kept_alive = self.timeout_keep_alive_task is not None and self.conn.their_state is h11.IDLE
            return None if is_kept_alive else limits.head_seconds

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
