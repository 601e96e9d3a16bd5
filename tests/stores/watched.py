"""An S3 server on loopback that tells which requests it got, and does to one of them what a test wants."""

import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

_KEY, _BUCKET = "test", "watched"
# What a test can do to a request, which it gets as "GET /watched/prefix/name": nothing, refuse it with a status, or cut
# its answer off in the middle.
Deed = Callable[[str], str | None]
CUT = "cut"


class WatchedBucket:
    """The server.

    Attributes:
        requests: What it was asked since a test emptied the list.
        code: The code of its refusals.
        deed: What happens to the next requests.
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would print every request
        self.requests: list[str] = []
        self.code = "SlowDown"
        self.deed: Deed = lambda _request: None
        inner = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._application(inner), threaded=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=_KEY,
            aws_secret_access_key=_KEY,
            region_name="us-east-1",
        )
        self.client.create_bucket(Bucket=_BUCKET)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    @property
    def options(self) -> dict[str, Any]:
        """Options of s3fs, as flytekit has them from FLYTE_AWS_* alone."""
        return {"key": _KEY, "secret": _KEY, "client_kwargs": {"endpoint_url": self.endpoint}}

    def prefix(self) -> str:
        """A place in the bucket that nobody has."""
        return f"s3://{_BUCKET}/{uuid.uuid4().hex}"

    def asked(self, method: str) -> set[str]:
        """Names of the objects that requests of a method were about."""
        return {r.rpartition("/")[2] for r in self.requests if r.startswith(f"{method} /{_BUCKET}/")}

    def _application(self, inner: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            request = f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"
            self.requests.append(request)
            done = self.deed(request)
            if done is None:
                return inner(environ, start_response)
            if done == CUT:
                return _halved(inner(environ, start_response))
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(done, [("Content-Type", "application/xml")])
            text = f"<Error><Code>{self.code}</Code><Message>Not now.</Message></Error>"
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [text.encode()]

        return answer


def _halved(blocks: Iterable[bytes]) -> Iterator[bytes]:
    whole = b"".join(blocks)
    yield whole[: len(whole) // 2]
    raise ConnectionResetError("as a network does")  # the server closes the connection
