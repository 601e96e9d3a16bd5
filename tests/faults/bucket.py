"""An S3 server on loopback that refuses, dawdles or is gone when a test says so."""

import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any, Self

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

_KEY = "test"
_NAME = "checkpoints"


class FaultyBucket:
    """The server; `refuse` and `delay` change what it does from one request to the next.

    Attributes:
        refused: Writes that it refused so far.
        delay: Seconds that it takes longer for every write.
    """

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would print every request
        self.refused, self.delay = 0, 0.0
        self._refusing, self._status = "", ""
        inner = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._application(inner), threaded=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=_KEY,
            aws_secret_access_key=_KEY,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket=_NAME)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()

    def refuse(self, pattern: str, status: str = "503 Service Unavailable") -> None:
        """Refuse writes to keys that a regular expression is found in; an empty one: none."""
        self._refusing, self._status = pattern, status

    def prefix(self) -> str:
        """A place in the bucket that nobody has: the servers of one process share what they hold."""
        return f"s3://{_NAME}/{uuid.uuid4().hex}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client of it needs."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",  # else a missing key is looked for on the network
        }

    def _application(self, inner: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            if environ["REQUEST_METHOD"] in ("PUT", "POST"):
                if self._refusing and re.search(self._refusing, environ["PATH_INFO"]):
                    self.refused += 1
                    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                    start_response(self._status, [("Content-Type", "application/xml")])
                    code = "AccessDenied" if self._status.startswith("403") else "SlowDown"
                    return [f"<Error><Code>{code}</Code><Message>Not now.</Message></Error>".encode()]
                time.sleep(self.delay)
            return inner(environ, start_response)

        return answer
