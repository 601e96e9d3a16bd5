"""An S3 server on loopback for tests."""

import logging
import socket

import boto3
import pytest
import s3fs
from moto.server import ThreadedMotoServer

_KEY = "test"


class Bucket:
    """An S3 server on loopback that can be stopped and started again on the same port, with all it holds."""

    name = "checkpoints"

    def __init__(self) -> None:
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.start()
        self.client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=_KEY,
            aws_secret_access_key=_KEY,
            region_name="us-east-1",
        )
        self.client.create_bucket(Bucket=self.name)

    def start(self) -> None:
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        self._server.stop()
        self._server._server.server_close()  # else the port still takes connections, and never answers

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def set_environment(bucket: Bucket) -> pytest.MonkeyPatch:
    patch = pytest.MonkeyPatch()
    for name, value in bucket.environment.items():
        patch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # which know the server of another test
    return patch
