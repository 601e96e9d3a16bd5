"""A real server as a process of its own, and what it says."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from httpx2 import Client, TransportError

STARTING_SECONDS = 600  # with every processor busy, two minutes were too few


@dataclass
class Running:
    """A server that is running.

    Attributes:
        process: Its HTTP process.
        log: What it and its decoder write.
    """

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def port(self) -> int:
        """The free port that it has taken: one that a test had looked for, another process could take first."""
        (found,) = re.findall(r"Listening on \S+ port (\d+)", self.log.read_text())
        return int(found)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> Client:
        return Client(base_url=self.url, timeout=60, trust_env=False, **options)

    def ask(self, **body: Any) -> Any:
        """The response to a chat request; greedy unless it says something else."""
        with self.client() as client:
            return client.post("/v1/chat/completions", json=question("hi") | body)

    def metric(self, name: str) -> float:
        with self.client() as client:
            lines = client.get("/metrics").text.splitlines()
        (value,) = (float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name} "))
        return value

    def memory(self) -> int:
        """Resident bytes of all its processes."""
        here = psutil.Process(self.process.pid)
        return sum(each.memory_info().rss for each in [here, *here.children(recursive=True)])

    def wait_until(self, state: str) -> None:
        deadline = time.monotonic() + STARTING_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()
            with suppress(TransportError, ValueError), self.client() as client:
                if client.get("/health").json()["status"] == state:
                    return
            time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def end(self, how: int = signal.SIGTERM) -> int:
        self.process.send_signal(how)
        return self.process.wait(60)


def question(text: str, model: str = "base", **more: Any) -> dict[str, Any]:
    """A chat request."""
    return {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8, **more}


def command(base: Path, adapters: Mapping[str, Path], *options: str) -> list[str]:
    named = [f"{name}={path}" for name, path in adapters.items()]
    return [sys.executable, "-m", "thriftune.inference.serve", "--base", str(base), "--adapters", *named, *options]


@contextmanager
def serving(
    base: Path, adapters: Mapping[str, Path], log: Path, options: Sequence[str] = (), state: str = "ready"
) -> Iterator[Running]:
    """A server, ended afterwards."""
    usual = ("--threads", "1", "--port", "0")
    with log.open("wb") as written:
        process = subprocess.Popen(command(base, adapters, *usual, *options), stdout=written, stderr=written)
    running = Running(process, log)
    try:
        running.wait_until(state)
        yield running
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
