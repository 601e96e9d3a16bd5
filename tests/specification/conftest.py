"""The package, serialized once."""

import pytest

from specification import serialized
from specification.serialized import Package


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Package:
    """Every entity that is registered. Takes 15 seconds."""
    return serialized.package(tmp_path_factory.mktemp("package"))
