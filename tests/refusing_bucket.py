"""An S3 server on loopback that refuses keys as Amazon's does, which moto itself never does."""

import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "things"
GOOD, WRONG, DENIED = "GOODKEY", "WRONGKEY", "DENIEDKEY"
_REFUSALS = {
    WRONG: ("InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."),
    DENIED: ("AccessDenied", "User: arn:aws:iam::1:user/me is not authorized to perform this."),
    "": ("AccessDenied", "Access Denied"),
}
_KEY = re.compile(r"Credential=([^/]+)/")


@dataclass(frozen=True)
class RefusingBucket:
    """The server.

    Attributes:
        endpoint: Its address.
        client: Client with the good key.
        keys: Keys of the requests so far, in order; an empty one for a request that is not signed.
    """

    endpoint: str
    client: Any
    keys: list[str]


@contextmanager
def refusing_bucket() -> Iterator[RefusingBucket]:
    """A server with one bucket: it takes GOOD, does not know WRONG, and denies everything to DENIED and to nobody."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would print every request
    keys: list[str] = []
    server = make_server("127.0.0.1", 0, _guarded(DomainDispatcherApplication(create_backend_app), keys), threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, aws_access_key_id=GOOD, aws_secret_access_key="secret", region_name="us-east-1"
    )
    client.create_bucket(Bucket=BUCKET)
    try:
        yield RefusingBucket(endpoint, client, keys)
    finally:
        server.shutdown()
        server.server_close()


def _guarded(inner: Callable[..., Iterable[bytes]], keys: list[str]) -> Callable[..., Iterable[bytes]]:
    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        found = _KEY.search(environ.get("HTTP_AUTHORIZATION", ""))
        key = found[1] if found else ""
        keys.append(key)
        if key not in _REFUSALS:
            return inner(environ, start_response)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        # As Amazon does, which gives the region of a bucket to keys that may not list it.
        start_response("403 Forbidden", [("Content-Type", "application/xml"), ("x-amz-bucket-region", "eu-north-1")])
        code, message = _REFUSALS[key]
        text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>"
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [text.encode()]

    return answer
