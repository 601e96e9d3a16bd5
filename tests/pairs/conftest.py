"""The trainings of the product of the tables: every pair of a method and a strategy that the facts allow."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from faults.conftest import _nothing_left, dataset, nursery  # noqa: F401 - fixtures
from faults.running import Nursery, Run

from pairs.pairing import Pair

# Where scripts/pairs_table.py wants to find what every pair did.
RECORD = "PAIRS_RECORD"


@pytest.fixture(scope="session")
def trained(
    nursery: Nursery,  # noqa: F811
    dataset: Path,  # noqa: F811
    tiny_model_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Run]:
    """A pair, trained by so many ranks and not disturbed; made once."""
    made: dict[tuple[Pair, int], Run] = {}

    def of(pair: Pair, ranks: int, *, new: bool = False) -> Run:
        if not new and (pair, ranks) in made:
            return made[pair, ranks]
        base = {"config": pair.config(ranks), "model": str(tiny_model_dir), "dataset": str(dataset)}
        run = Run(nursery, tmp_path_factory.mktemp("pair"), base)
        if not new:
            run.finish(pause=0.0)
            made[pair, ranks] = run
        return run

    return of


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Iterator[Callable[..., None]]:
    """Note what a pair did: `record(pair, "resumed", "exact")`."""
    noted: list[dict[str, Any]] = []

    def note(pair: Pair, what: str, result: str) -> None:
        noted.append({"method": pair.method, "strategy": pair.name, "what": what, "result": result})

    yield note
    file = os.environ.get(RECORD)
    if file and noted and not getattr(request.node, "has_failed", False):
        with Path(file).open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(line) + "\n" for line in noted)
