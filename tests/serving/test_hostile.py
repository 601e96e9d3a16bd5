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
    "--max-tokens", "200", "--max-prompt-tokens", "100", "--max-queue", "16", "--max-connections", "100",
    "--head-seconds", "1", "--stall-seconds", "1", "--max-body-bytes", "100000",
]  # fmt: skip
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def server(tiny_model_dir, module_adapters, tmp_path_factory):
    log = tmp_path_factory.mktemp("server") / "log"
    with serving(tiny_model_dir, module_adapters, log, OPTIONS) as running:
        yield running


@pytest.fixture(autouse=True)
def serves_others(server):
    """Whatever a test did, the next request is answered at once, and no row is left behind."""
    yield
    began = time.monotonic()
    assert server.ask(model="a1").status_code == 200
    assert time.monotonic() - began < 5
    assert server.metric("thriftune_accepted") == 0


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
    """Each is refused while it comes; together they would be 320 MiB."""
    before = server.memory()

    def send(_number):
        with server.client() as client:
            body = posted_content()
            return client.post(
                "/v1/chat/completions", content=body, headers={"content-type": "application/json"}
            ).status_code

    def posted_content():
        for _ in range(20):
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


def test_a_client_that_leaves_frees_its_rows(server):
    for stream in (True, False):
        with connect(server) as leaving:
            leaving.sendall(posted(question("hi", "a2", max_tokens=200, n=8, stream=stream)))
            while not server.metric("thriftune_accepted"):
                time.sleep(0.01)
        deadline = time.monotonic() + 5
        while server.metric("thriftune_accepted"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    gone = [line for line in server.log.read_text().splitlines() if " 499 model=a2" in line]
    assert len(gone) == 2
    assert all(int(line.partition("tokens=")[2].partition("+")[2].split()[0]) < 1600 for line in gone)


def test_a_client_that_stops_reading_is_cut_off(server):
    with connect(server, reads=4096) as stopped:
        stopped.sendall(posted(question("hi", "a3", max_tokens=200, n=8, stream=True)))
        deadline = time.monotonic() + 20
        while " 499 model=a3" not in server.log.read_text():
            assert time.monotonic() < deadline, server.log.read_text()
            assert server.ask(model="a1").status_code == 200
            time.sleep(0.1)


def test_500_requests_at_once_get_an_answer_each(server):
    """Answered, told to come again, or refused as one too many; memory does not follow their number."""
    before = server.memory()
    with ExitStack() as stack:
        connections = [stack.enter_context(connect(server)) for _ in range(500)]
        for connection in connections:
            with suppress(ConnectionError):  # refused already; its answer can still be read, or not
                connection.sendall(posted(question("hi", "a1", max_tokens=20)))
        statuses = [status_of(connection) for connection in connections]
    counted = {status: statuses.count(status) for status in set(statuses)}
    assert set(counted) <= {200, 429, 503, 0}, counted
    assert counted[200] >= 16, counted
    assert counted.get(503, 0) + counted.get(0, 0) >= 300, counted
    assert server.memory() - before < 60 * MIB


def test_idle_connections_keep_nobody_out(server):
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(connect(server))
        time.sleep(1.2)
        assert server.ask(model="a2").status_code == 200


def test_more_than_wait_are_told_when_to_come_again(server):
    asked = question("hi", "a1", max_tokens=200, n=8)
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda _: server.ask(**asked), range(8)))
    refused = [reply for reply in replies if reply.status_code == 429]
    assert {reply.status_code for reply in replies} == {200, 429}
    assert all(
        reply.headers["retry-after"] == "1" and reply.json()["error"]["code"] == "queue_full" for reply in refused
    )
