"""The package, serialized once."""

import fcntl
import os

import pytest

from specification import serialized
from specification.serialized import Package


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Every entity that is registered. Takes 15 seconds, of one of the processes that run tests."""
    mine = tmp_path_factory.getbasetemp()
    shared = (mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "package"
    with open(f"{shared}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not shared.exists():
            made = tmp_path_factory.mktemp("package")
            serialized.make(made)
            made.rename(shared)
    return serialized.read(shared)
