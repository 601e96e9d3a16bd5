"""Fixtures: stores of each kind, a local directory, memory, and an S3 server.

Not a conftest.py: other tests import from the one above by that name.
"""

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from bucket import Bucket, set_environment
from s3fs import S3FileSystem

from thriftune.stores.store import Store

_QUICK = (0.05, 0.1, 0.2)


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    server = Bucket()
    patch = set_environment(server)
    yield server
    patch.undo()
    server.stop()
    S3FileSystem.clear_instance_cache()  # the next server is another, and has the same name in the cache


@pytest.fixture
def s3(bucket: Bucket) -> Store:
    return Store(f"s3://{bucket.name}/{uuid.uuid4().hex}/attempt", pauses=_QUICK)


@pytest.fixture
def local(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store" / "attempt"), pauses=_QUICK)


@pytest.fixture(params=["local", "memory", "s3"])
def store(request: pytest.FixtureRequest) -> Store:
    if request.param == "memory":
        return Store(f"memory://{uuid.uuid4().hex}/attempt", pauses=_QUICK)
    return request.getfixturevalue(request.param)
