"""Connections as the server limits them: none is held for nothing, and none that is answered is taken for another."""

import asyncio
import socket
import threading
import time
from contextlib import contextmanager

import pytest
import uvicorn

from thriftune.inference.serving import protocol
from thriftune.inference.serving.limits import Limits

KERNEL_BYTES = 4096  # what it is asked to keep for a client that does not read
# Of the first, the rest is less than what asyncio tells the protocol of; of the second, more.
LENGTHS = (40_000, 4_000_000)
PATIENT = Limits(head_seconds=1000, stall_seconds=1000)


@contextmanager
def served(app, limits):
    """An application behind the protocol; yields a function that connects to it, and its connections."""
    config = uvicorn.Config(
        app, http=protocol.limited(limits), lifespan="off", log_config=None, ws="none", timeout_keep_alive=1
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        open_ones = []

        def connect():
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
            connection.settimeout(60)
            connection.connect(listening.getsockname())
            open_ones.append(connection)
            return connection

        try:
            yield connect, server.server_state.connections
        finally:
            for each in open_ones:
                each.close()
            server.should_exit = True
            thread.join(60)


async def answer(send, body=b"ok"):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def at_once(scope, receive, send):
    await answer(send, b"x" * int(scope["path"][1:]) if scope["path"] != "/" else b"ok")


def get(path="/", head=""):
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode()


def told(connection):
    """What comes until the answer's end or the connection's; nothing from one that is cut off."""
    try:
        found = connection.recv(65536)
        while found and not found.endswith((b"ok", b"}}")) and (more := connection.recv(65536)):
            found += more
    except ConnectionError:
        return b""
    return found


def test_one_without_a_request_makes_place_and_one_that_is_answered_does_not(monkeypatch):
    """A second request that was sent with the first counted as none: its connection was ended for a newcomer."""
    monkeypatch.setattr(protocol, "_IDLE_SECONDS", 0.0)
    begun, may_end = threading.Semaphore(0), threading.Event()

    async def waits(scope, receive, send):
        if scope["path"] == "/waits":
            begun.release()
            await asyncio.to_thread(may_end.wait, 60)
        await answer(send)

    with served(waits, Limits(max_connections=2)) as (connect, _):
        idle, asking = connect(), connect()
        asking.sendall(get() + get("/waits"))
        assert told(asking).endswith(b"ok")
        newcomer = connect()
        newcomer.sendall(get("/waits"))
        assert told(idle) == b""
        assert begun.acquire(timeout=60)
        assert begun.acquire(timeout=60)
        assert b" 503 " in told(connect())
        may_end.set()
        assert told(newcomer).endswith(b"ok")
        assert told(asking).endswith(b"ok")


def test_the_rest_of_a_request_that_is_answered_holds_no_place():
    """One byte of its body after the answer stopped every clock: so many of them, and the server answered nobody."""
    with served(at_once, Limits(head_seconds=0.5)) as (connect, _):
        sending = connect()
        sending.sendall(get(head="Content-Length: 1000000\r\n"))
        assert told(sending).endswith(b"ok")
        sending.sendall(b"x")
        assert told(sending) == b""


def test_the_rest_of_a_request_that_comes_is_followed_by_another():
    with served(at_once, PATIENT) as (connect, _):
        sending = connect()
        sending.sendall(get(head="Content-Length: 2\r\n"))
        assert told(sending).endswith(b"ok")
        sending.sendall(b"xx" + get())
        assert told(sending).endswith(b"ok")


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("head", ["", "Connection: close\r\n"])
def test_an_answer_that_is_not_read_holds_no_place(head, length):
    """A short rest of one, which fits into asyncio's own buffer, was kept for good."""
    limits = Limits(head_seconds=1000, stall_seconds=0.5)
    with served(at_once, limits) as (connect, connections):
        unread = connect()
        unread.sendall(get(f"/{length}", head))
        assert unread.recv(1) == b"H"
        deadline = time.monotonic() + 60
        while connections:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert len(told(unread)) < length


def test_what_is_no_http_after_an_early_answer_ends_its_connection_alone(caplog):
    with served(at_once, PATIENT) as (connect, _):
        confused, other = connect(), connect()
        confused.sendall(get(head="Transfer-Encoding: chunked\r\n"))
        assert told(confused).endswith(b"ok")
        confused.sendall(b"no length\r\n")
        assert told(confused) == b""
        other.sendall(get())
        assert told(other).endswith(b"ok")
    assert "Traceback" not in caplog.text
