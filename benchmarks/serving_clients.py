"""What the benchmarks of the server share: servers of their own processes, and clients whose answers are compared.

Threads ask through OpenAI's client, every second request streamed, each adapter in turn, greedy; every answer is
compared with what `generate` gives for that adapter.
"""

import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil

from thriftune.hardware import DEVICES
from thriftune.inference.generation import generate
from thriftune.models.answering import Sampling
from thriftune.models.loading import Placement

ROOT = Path(__file__).resolve().parent.parent
MIB = 1 << 20
_UNAVAILABLE = 503
Expected = Mapping[tuple[str, str], str]


@dataclass(frozen=True)
class Load:
    """What clients saw.

    Attributes:
        seconds: How long they asked.
        latencies: Seconds of each answered request.
        tokens: Of all answers.
        wrong: Answers that are not those of generate.
        refused: Requests that a server did not take: 503, or no connection.
        lost: Requests that began and were neither answered nor refused.
        cpu_seconds: What the servers computed in this time.
    """

    seconds: float
    latencies: Sequence[float]
    tokens: int
    wrong: int
    refused: int
    lost: int
    cpu_seconds: float

    @property
    def tokens_a_cpu_second(self) -> float:
        """Tokens of answers for each second that the servers computed."""
        return self.tokens / self.cpu_seconds

    def __str__(self) -> str:
        cuts, count = statistics.quantiles(self.latencies, n=100), len(self.latencies)
        return (
            f"{count} requests in {self.seconds:.0f} s: {count / self.seconds:.1f} requests/s, "
            f"{self.tokens / self.seconds:.0f} tokens/s ({self.tokens_a_cpu_second:.0f} per CPU second), "
            f"p50 {cuts[49]:.2f} s, p95 {cuts[94]:.2f} s, {self.wrong} wrong, {self.refused} refused, {self.lost} lost"
        )


@contextmanager
def server(
    base: Path, adapters: Mapping[str, Path], log: Path, *options: str, core: int | None = None
) -> Iterator[tuple[str, psutil.Process]]:
    """A server of its own processes.

    Args:
        base: The base model.
        adapters: Adapters by name.
        log: What it writes.
        options: More of its command line.
        core: The one core for all of it; None for any.

    Yields:
        Its URL, and its process.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "thriftune.inference.serve", "--base", str(base), "--port", str(port),
        "--max-batch", "16", *options, "--adapters", *(f"{name}={path}" for name, path in adapters.items()),
    ]  # fmt: skip
    with log.open("wb") as lines, subprocess.Popen(command, cwd=ROOT, stdout=lines, stderr=lines) as process:
        try:
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}", api_key="none", max_retries=0)
            while process.poll() is None:
                with suppress(openai.OpenAIError):
                    client.get("/ready", cast_to=str)
                    break
                time.sleep(0.2)
            assert process.poll() is None, log.read_text()
            here = psutil.Process(process.pid)
            if core is not None:
                for each in [here, *here.children(recursive=True)]:
                    for thread in each.threads():
                        os.sched_setaffinity(thread.id, {core})
            yield f"http://127.0.0.1:{port}/v1", here
        finally:
            process.terminate()


@dataclass(frozen=True)
class Servers:
    """Who answers.

    Attributes:
        urls: Server of each adapter.
        processes: The first process of each server.
    """

    urls: Mapping[str, str]
    processes: Sequence[psutil.Process]

    @property
    def everything(self) -> list[psutil.Process]:
        """All processes."""
        running = [one for one in self.processes if one.is_running()]
        return [each for one in running for each in (one, *one.children(recursive=True))]

    @property
    def cpu_seconds(self) -> float:
        """What they have computed so far."""
        computed = 0.0
        for each in self.everything:
            with suppress(psutil.NoSuchProcess):
                computed += sum(each.cpu_times()[:2])
        return computed

    @property
    def memory(self) -> int:
        """Resident MiB."""
        return sum(each.memory_info().rss for each in self.everything) // MIB


class Clients:
    """Threads that ask, and what they saw."""

    def __init__(self, servers: Servers, expected: Expected, tokens: int) -> None:
        """Nothing was asked yet.

        Args:
            servers: Who answers.
            expected: Right answers by adapter and prompt.
            tokens: Longest answer.
        """
        self._servers, self._expected, self._most = servers, expected, tokens
        self._latencies: list[float] = []
        self._tokens: list[int] = []
        self._wrong: list[Any] = []
        self._refused: list[Exception] = []
        self._begun: list[int] = []

    def ask(self, threads: int, seconds: float) -> Load:
        """Ask from many threads, for a while, or until a thread is refused.

        Args:
            threads: Clients.
            seconds: How long; requests that were begun are waited for.
        """
        began, before = time.monotonic(), self._servers.cpu_seconds
        until = began + seconds
        running = [threading.Thread(target=self._ask_on, args=(number, until)) for number in range(threads)]
        for thread in running:
            thread.start()
        computed = before
        for thread in running:
            while thread.is_alive():
                thread.join(1.0)
                computed = max(computed, self._servers.cpu_seconds)  # of a server that ends, the last that was seen
        seconds = time.monotonic() - began
        answered, refused = len(self._latencies), len(self._refused)
        lost = len(self._begun) - answered - refused
        wrong = len(self._wrong)
        return Load(seconds, self._latencies, sum(self._tokens), wrong, refused, lost, computed - before)

    def _ask_on(self, number: int, until: float) -> None:
        urls = self._servers.urls
        clients = {n: openai.OpenAI(base_url=url, api_key="none", max_retries=0) for n, url in urls.items()}
        keys = list(self._expected)
        for count in range(sys.maxsize):
            if time.monotonic() >= until:
                return
            name, prompt = keys[(7 * number + count) % len(keys)]  # 7: no divisor of what there is
            sent = time.monotonic()
            self._begun.append(number)
            try:
                text, tokens = self._answer(clients[name], name, prompt, is_streamed=bool((number + count) % 2))
            except openai.APIConnectionError as error:
                self._refused.append(error)
                return
            except openai.APIStatusError as error:
                if error.status_code != _UNAVAILABLE:
                    raise  # shown, and the request counts as lost
                self._refused.append(error)
                return
            self._latencies.append(time.monotonic() - sent)
            self._tokens.append(tokens)
            if text != self._expected[name, prompt]:
                self._wrong.append((name, prompt, text))

    def _answer(self, client: openai.OpenAI, name: str, prompt: str, *, is_streamed: bool) -> tuple[str, int]:
        streaming: Any = {"stream": True, "stream_options": {"include_usage": True}} if is_streamed else {}
        messages: Any = [{"role": "user", "content": prompt}]
        asked: Any = client.chat.completions.create(
            model=name, messages=messages, temperature=0, max_tokens=self._most, **streaming
        )
        if not is_streamed:
            return str(asked.choices[0].message.content), asked.usage.completion_tokens
        chunks = list(asked)
        assert any(chunk.choices and chunk.choices[0].finish_reason for chunk in chunks), "a stream without an end"
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        return text, chunks[-1].usage.completion_tokens


def right_answers(
    base: Path, adapters: Mapping[str, Path], prompts: Sequence[str], tokens: int
) -> dict[tuple[str, str], str]:
    """What generate answers, by adapter and prompt.

    Args:
        base: The base model.
        adapters: Adapters by name.
        prompts: What is asked.
        tokens: Longest answer.
    """
    answers = generate(
        base, prompts, adapters=dict(adapters), placement=Placement(DEVICES["CPU"], "fp32"), sampling=Sampling(tokens),
        batch=1,
    )  # fmt: skip
    return {(answer.adapter, answer.prompt): answer.answer for answer in answers}


def report(kind: str, load: Load, *, is_ending: bool = False) -> None:
    """Print a measurement, and end if an answer was wrong or lost.

    Args:
        kind: What was measured.
        load: What clients saw.
        is_ending: Whether the server was told to end, and may have refused requests.
    """
    sys.stdout.write(f"{kind}: {load}\n")
    sys.stdout.flush()
    assert not load.wrong, "an answer differs from that of generate"
    assert not load.lost, "a request was lost"
    assert is_ending or not load.refused, "a request was refused"
