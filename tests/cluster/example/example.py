"""A small project of somebody's: what the control plane has to get right, without a model."""

import functools
import importlib.util
import os
import signal
import time
from pathlib import Path

from flytekit import Cache, CronSchedule, LaunchPlan, current_context, dynamic, map_task, task, workflow
from flytekit.exceptions.user import FlyteRecoverableException
from flytekit.types.file import FlyteFile
from pydantic import BaseModel


class Settings(BaseModel):
    """What a run is given."""

    size: int
    failures: int


@task(cache=Cache(version="1", ignored_inputs=("note",)))
def double(x: int, note: str) -> int:
    """Cached by x alone."""
    return 2 * x


@task(retries=2)
def unlucky(failures: int) -> FlyteFile:
    """Fail once with a word and then without one; each attempt sees what the one before saved."""
    assert importlib.util.find_spec("thriftune") is None, "the checkout is visible in a pod"
    checkpoint = current_context().checkpoint
    seen = int(checkpoint.read()) if checkpoint.prev_exists() else 0
    checkpoint.write(str(seen + 1).encode())
    if seen == 0 < failures:
        raise FlyteRecoverableException("try again")
    if seen == 1 < failures:
        os.killpg(os.getpgrp(), signal.SIGKILL)
    place = Path("seen.txt")
    place.write_text(str(seen))
    return FlyteFile(str(place))


@task
def refuse(size: int) -> int:
    """Fail for good."""
    if size < 1:
        raise ValueError(f"size = {size}: too small")
    return size


@dynamic
def expand(file: FlyteFile, size: int) -> tuple[list[int], str]:
    """Run a node per item."""
    return [double(x=item, note=f"item {item}") for item in range(size)], Path(file.download()).read_text()


@workflow
def example(settings: Settings) -> tuple[list[int], str]:
    """Files, attributes, retries, a dynamic part."""
    return expand(file=unlucky(failures=settings.failures), size=double(x=settings.size, note="size"))


@task
def clean_up(size: int) -> None:
    """Run after a failure, with the workflow's inputs."""
    assert size == 0


@workflow(on_failure=clean_up)
def failing(size: int = 0) -> int:
    """A run that fails."""
    return double(x=refuse(size=size), note="never")


@task(cache=Cache(version="1", serialize=True))
def slow(x: int) -> str:
    """Take a while, and say whose it is."""
    time.sleep(2)
    return f"{x} by {current_context().execution_id.name}"


@workflow
def patient(x: int) -> str:
    """A run that may find another that makes the same."""
    return slow(x=x)


nightly = LaunchPlan.get_or_create(
    example,
    "nightly",
    fixed_inputs={"settings": Settings(size=1, failures=0)},
    schedule=CronSchedule(schedule="0 3 * * *"),
)


@task(cache=Cache(version="1", ignored_inputs=("folder", "fails")), retries=1)
def one_of_many(x: int, folder: str, fails: int) -> str:
    """Take a while; one of them fails once."""
    begun = time.time()
    checkpoint = current_context().checkpoint
    seen = checkpoint.prev_exists()
    checkpoint.write(b"seen")
    time.sleep(1)
    if x == fails and not seen:
        raise FlyteRecoverableException("try again")
    if x < 0:
        raise ValueError(f"x = {x}: too small")
    return f"{folder} {x} {begun} {time.time()}"


@dynamic
def expand_many(xs: list[int], parallel: int, fails: int) -> list[str]:
    """Run a map task."""
    return map_task(functools.partial(one_of_many, folder="a", fails=fails), concurrency=parallel)(x=xs)


@workflow
def many(xs: list[int], parallel: int = 0, fails: int = 99) -> list[str]:
    """A run with a node for each item of a list."""
    return expand_many(xs=xs, parallel=parallel, fails=fails)
