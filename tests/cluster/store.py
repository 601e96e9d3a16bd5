"""The blob store: one bucket on moto's S3 server, on loopback."""

import logging
from pathlib import Path

import boto3
from botocore.exceptions import ClientError
from moto.server import ThreadedMotoServer

_KEY = "test"
_REGION = "us-east-1"


class Store:
    """A bucket that only this test run has."""

    def __init__(self, bucket: str) -> None:
        self.bucket = bucket
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would print every request
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._server.start()
        host, port = self._server.get_host_and_port()
        self.endpoint = f"http://{host}:{port}"
        self._client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=_KEY,
            aws_secret_access_key=_KEY,
            region_name=_REGION,
        )
        self._client.create_bucket(Bucket=bucket)

    def close(self) -> None:
        self._server.stop()

    @property
    def environment(self) -> dict[str, str]:
        """What Flyte's own set-ups give pods and clients of a store that is not Amazon's: flytekit's names alone.

        With AWS's names beside them, as there were once, everything that does not ask flytekit works here alone.
        """
        return {
            "FLYTE_AWS_ENDPOINT": self.endpoint,
            "FLYTE_AWS_ACCESS_KEY_ID": _KEY,
            "FLYTE_AWS_SECRET_ACCESS_KEY": _KEY,
        }

    def uri(self, *parts: str) -> str:
        return "/".join([f"s3://{self.bucket}", *parts])

    def upload_url(self, uri: str) -> str:
        """A URL that one PUT may write to, as the real control plane gives it to clients without credentials."""
        parameters = {"Bucket": self.bucket, "Key": self._key(uri)}
        return str(self._client.generate_presigned_url("put_object", Params=parameters))

    def put(self, uri: str, content: bytes) -> str:
        self._client.put_object(Bucket=self.bucket, Key=self._key(uri), Body=content)
        return uri

    def get(self, uri: str) -> bytes | None:
        """The content of an object; None if there is none."""
        try:
            return bytes(self._client.get_object(Bucket=self.bucket, Key=self._key(uri))["Body"].read())
        except ClientError as error:
            if error.response["Error"]["Code"] in ("NoSuchKey", "404"):
                return None
            raise

    def list(self, uri: str) -> list[str]:
        """The objects whose URI begins so."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._key(uri))
        return [self.uri(item["Key"]) for page in pages for item in page.get("Contents", ())]

    def remove(self, uri: str) -> None:
        """Remove all objects whose URI begins so, as a bucket's rules for old ones do."""
        found = self.list(uri)
        assert found, f"there is nothing at {uri}"
        for name in found:
            self._client.delete_object(Bucket=self.bucket, Key=self._key(name))

    def upload(self, source: Path, uri: str) -> str:
        """Put a file, or all files of a directory under a prefix."""
        if source.is_file():
            return self.put(uri, source.read_bytes())
        for file in sorted(p for p in source.rglob("*") if p.is_file()):
            self.put(f"{uri}/{file.relative_to(source).as_posix()}", file.read_bytes())
        return uri

    def download(self, uri: str, destination: Path) -> Path:
        """All objects under a prefix, as files of a directory."""
        prefix = uri.rstrip("/") + "/"
        for found in self.list(prefix):
            file = destination / found.removeprefix(prefix)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(self.get(found) or b"")
        return destination

    def _key(self, uri: str) -> str:
        scheme = f"s3://{self.bucket}/"
        assert uri.startswith(scheme), f"{uri} is not in the bucket of this test"
        return uri.removeprefix(scheme)
