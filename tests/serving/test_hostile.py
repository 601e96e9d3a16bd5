"""Clients that do harm, on purpose or not: an error for each, memory within bounds, and others are served."""

import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import pytest

from serving.http_server import question, serving

MIB = 1 << 20
OPTIONS = [
    "--max-tokens", "5000", "--max-prompt-tokens", "100", "--max-queue", "16", "--max-connections", "100",
    "--head-seconds", "5", "--stall-seconds", "1", "--max-body-bytes", "100000",
]  # fmt: skip
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server(tiny_model_dir, module_adapters, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(tiny_model_dir, module_adapters, log, OPTIONS) as running:
        yield running


@pytest.fixture(autouse=True)
def serves_others(server):
    """Whatever a test did, the next request is answered, and neither a row nor a traceback is left behind."""
    yield
    assert server.ask(model="a1").status_code == 200
    assert server.metric("thriftune_accepted") == 0
    assert "Traceback" not in server.log.read_text()


def connect(server, *, reads=None):
    connection = socket.socket()
    if reads:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, reads)
    connection.settimeout(30)
    connection.connect(("127.0.0.1", server.port))
    return connection


def posted(body, head="", length=None):
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    length = len(text) if length is None else length
    start = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n{head}"
    return f"{start}Content-Length: {length}\r\n\r\n".encode() + text


def status_of(connection):
    """The status that comes, or 0 for a connection that is closed without one."""
    try:
        data = connection.recv(65536)
    except ConnectionError:
        return 0
    return int(data.split(b" ", 2)[1]) if data else 0


def wait_for(is_so):
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"model": "../x"}, 404, "model"),
        ({"model": "/etc/passwd"}, 404, "model"),
        ({"model": "a1/../a2"}, 404, "model"),
        ({"model": "a1\0"}, 404, "model"),
        ({"model": "x" * 50000}, 404, "model"),
        ({"model": ""}, 404, "model"),
        ({"model": ["a1"]}, 400, "model"),
        ({"model": None}, 400, "model"),
        ({"messages": []}, 400, "messages"),
        ({"messages": "hi"}, 400, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, 400, "messages.0.role"),
        ({"messages": [{"role": "user", "content": " "}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, 400, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]}, 400, None),
        ({"messages": HI * 2}, 400, "messages"),
        ({"messages": [{"role": "user", "content": "long " * 5000}]}, 400, "messages"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"max_tokens": True}, 400, "max_tokens"),
        ({"max_tokens": 10**9}, 400, "max_tokens"),
        ({"temperature": "0"}, 400, "temperature"),
        ({"temperature": float("nan")}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
        ({"n": 9}, 400, "n"),
        ({"stop": [""]}, 400, "stop"),
        ({"stop": ["x"] * 5}, 400, "stop"),
        ({"stop": "x" * 300}, 400, "stop"),
        ({"stop": ["x" * 300]}, 400, "stop"),
        ({"stream": "yes"}, 400, "stream"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"logprobs": True}, 400, "logprobs"),
        ({"presence_penalty": 0.5}, 400, "presence_penalty"),
        ({"invented": 1}, 400, "invented"),
    ],
)
def test_a_wrong_request_gets_one_line_that_names_the_field(server, change, status, param):
    body = json.dumps(question("hi", "a1") | change).encode("utf-8", "surrogatepass")
    with server.client() as client:
        reply = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    error = reply.json()["error"]
    assert (reply.status_code, error["param"]) == (status, param) or (param is None and reply.status_code == status)
    assert len(error["message"]) < 400
    assert "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 50000, b'{"a":' * 20000, b"9" * 9000])
def test_a_body_that_is_no_object_is_refused(server, body):
    with server.client() as client:
        reply = client.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "invalid_json"


def test_other_content_paths_and_methods_are_refused(server):
    with server.client() as client:
        assert client.post("/v1/chat/completions", content=b"{}").status_code == 415
        assert client.get("/v1/chat/completions").status_code == 405
        for path in ("/v1/../etc/passwd", "/docs", "/openapi.json", "/shutdown"):
            reply = client.get(path)
            assert (reply.status_code, reply.json()["error"]["code"]) == (404, "http_error"), path


def test_huge_bodies_are_not_kept(server):
    """Each is refused while it comes; together they would be 128 MiB."""
    before = server.memory()

    def send(_number):
        with server.client() as client:
            body = posted_content()
            return client.post(
                "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
            ).status_code

    def posted_content():
        for _ in range(8):
            yield b"x" * MIB

    with ThreadPoolExecutor(16) as pool:
        assert set(pool.map(send, range(16))) == {413}
    assert server.memory() - before < 60 * MIB


def test_who_sends_half_a_request_is_cut_off(server):
    with connect(server) as without_head, connect(server) as half_a_head, connect(server) as without_body:
        half_a_head.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost:")
        without_body.sendall(posted(b"{", length=10**10))
        assert status_of(without_body) == 408
        assert (status_of(without_head), status_of(half_a_head)) == (0, 0)


def test_who_leaves_within_a_request_is_no_failure(server):
    """It had a traceback of 60 lines and counted as status 500."""
    with connect(server) as leaving:
        leaving.sendall(posted(b"{", length=100))
    wait_for(lambda: "POST /v1/chat/completions 499 model=-" in server.log.read_text())


def test_clients_that_leave_free_their_rows_and_places(server):
    """A place in the queue was counted until the next answer, though nobody waited any more."""
    for stream in (True, False):
        asked = posted(question("hi", "a2", max_tokens=5000, n=8, stream=stream))
        with connect(server) as first, connect(server) as second:
            first.sendall(asked)
            second.sendall(asked)
            wait_for(lambda: server.metric("thriftune_queue") == 8)
        wait_for(lambda: server.metric("thriftune_accepted") == 0)
        wait_for(lambda: server.metric("thriftune_queue") == 0)
    wait_for(lambda: server.log.read_text().count(" 499 model=a2") == 4)


def test_a_client_that_stops_reading_is_cut_off(server):
    with connect(server, reads=4096) as stopped:
        stopped.sendall(posted(question("hi", "a3", max_tokens=5000, n=8, stream=True)))
        deadline = time.monotonic() + 60
        while " 499 model=a3" not in server.log.read_text():
            assert time.monotonic() < deadline, server.log.read_text()
            assert server.ask(model="a1").status_code == 200
            time.sleep(0.1)


def test_500_requests_at_once_get_an_answer_each(server):
    """Answered, told to come again, or refused as one too many; memory does not follow their number."""
    before, asked = server.memory(), posted(question("hi", "a1", max_tokens=20))
    with ExitStack() as stack:
        connections = []
        for _ in range(500):
            connections.append(stack.enter_context(connect(server)))
            with suppress(ConnectionError):  # refused already; its answer can still be read, or not
                connections[-1].sendall(asked)
        statuses = [status_of(connection) for connection in connections]
    counted = {status: statuses.count(status) for status in set(statuses)}
    assert set(counted) <= {200, 429, 503, 0}, counted
    assert counted[200] >= 24, counted  # as many as there are places
    assert server.memory() - before < 60 * MIB


def test_more_than_wait_are_told_when_to_come_again(server):
    asked = question("hi", "a1", max_tokens=5000, n=8)
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(connect(server)).sendall(posted(asked))
        wait_for(lambda: server.metric("thriftune_accepted") == 24)
        refused = server.ask(**asked)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    assert refused.json()["error"]["code"] == "queue_full"
    wait_for(lambda: server.metric("thriftune_accepted") == 0)
