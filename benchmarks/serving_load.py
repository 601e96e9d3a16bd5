"""The server under load: requests and tokens a second, and beside it a server for each adapter alone.

Usage: python benchmarks/serving_load.py [--base DIR --adapters NAME=DIR ...] [--seconds 60] [--threads 16]

Threads ask through OpenAI's client, every second request streamed, each adapter in turn, greedy; every answer is
compared with what `generate` gives for that adapter. After these seconds of the mixed server come rounds of it and of
the separate servers in turn, under the same load. All servers are held to one core, which stands for the one device;
what they are compared by is tokens per second of that core's time, because a scheduler gives three busy processes more
of a shared core than one. Without --base, a random Llama of 14 million weights and three adapters are made.
"""

import argparse
import logging
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil

from thriftune.hardware import DEVICES
from thriftune.inference.generation import generate
from thriftune.inference.serving.checking import adapters_of
from thriftune.models.answering import Sampling
from thriftune.models.loading import Placement

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ("What is the capital of France?", "Name a colour.", "The quick brown fox", "Where do cats sleep at night?")
TOKENS = 32
CORE = 0  # all servers share it
ROUNDS, ROUND_SECONDS, MIB = 3, 6.0, 1 << 20


@dataclass(frozen=True)
class Load:
    """What clients saw.

    Attributes:
        seconds: How long they asked.
        latencies: Seconds of each request.
        wrong: Answers that are not those of generate.
        lost: Requests without an answer.
        cpu_seconds: What the servers computed in this time.
    """

    seconds: float
    latencies: Sequence[float]
    wrong: int
    lost: int
    cpu_seconds: float

    @property
    def tokens_a_cpu_second(self) -> float:
        """Tokens of answers, each of which has the same number, for each second that the servers computed."""
        return len(self.latencies) * TOKENS / self.cpu_seconds

    def __str__(self) -> str:
        cuts, count = statistics.quantiles(self.latencies, n=100), len(self.latencies)
        return (
            f"{count} requests in {self.seconds:.0f} s: {count / self.seconds:.1f} requests/s, "
            f"{count * TOKENS / self.seconds:.0f} tokens/s ({self.tokens_a_cpu_second:.0f} per CPU second), "
            f"p50 {cuts[49]:.2f} s, p95 {cuts[94]:.2f} s, {self.wrong} wrong, {self.lost} lost"
        )


def make_model(folder: Path) -> tuple[Path, dict[str, Path]]:
    """A random base with a tokenizer of bytes, and three adapters on it that answer differently.

    Args:
        folder: Where they go.

    Returns:
        The base, and the adapters by name.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    alphabet = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", pad_token="<pad>").save_pretrained(
        folder / "base"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(alphabet), hidden_size=384, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=6,
        max_position_embeddings=512, eos_token_id=1, pad_token_id=0, bos_token_id=None,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder / "base")
    adapters = {}
    for number in (1, 2, 3):
        base = LlamaForCausalLM.from_pretrained(folder / "base")
        model = get_peft_model(base, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
        torch.manual_seed(number)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.05)
        adapters[f"adapter-{number}"] = folder / f"adapter-{number}"
        model.save_pretrained(adapters[f"adapter-{number}"])
    return folder / "base", adapters


@contextmanager
def server(base: Path, adapters: Mapping[str, Path], log: Path) -> Iterator[tuple[str, psutil.Process]]:
    """A server of its own processes, on the core of all servers.

    Args:
        base: The base model.
        adapters: Adapters by name.
        log: What it writes.

    Yields:
        Its URL, and its process.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "thriftune.inference.serve", "--base", str(base), "--port", str(port), "--threads", "1",
        "--max-batch", "16", "--adapters", *(f"{name}={path}" for name, path in adapters.items()),
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
            for each in [here, *here.children(recursive=True)]:
                for thread in each.threads():
                    os.sched_setaffinity(thread.id, {CORE})
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
        return [each for one in self.processes for each in (one, *one.children(recursive=True))]

    @property
    def cpu_seconds(self) -> float:
        """What they have computed so far."""
        return sum(sum(each.cpu_times()[:2]) for each in self.everything)

    @property
    def memory(self) -> int:
        """Resident MiB."""
        return sum(each.memory_info().rss for each in self.everything) // MIB


def ask(servers: Servers, expected: Mapping[tuple[str, str], str], threads: int, seconds: float) -> Load:
    """Ask from many threads, for a while.

    Args:
        servers: Who answers.
        expected: Right answers by adapter and prompt.
        threads: Clients.
        seconds: How long; requests that were begun are waited for.
    """
    keys, latencies, wrong, lost = list(expected), [], [], []
    began, before = time.monotonic(), servers.cpu_seconds

    def ask_on(number: int) -> None:
        clients = {n: openai.OpenAI(base_url=url, api_key="none", max_retries=0) for n, url in servers.urls.items()}
        count = 0
        while time.monotonic() < began + seconds:
            name, prompt = keys[(5 * number + count) % len(keys)]
            sent = time.monotonic()
            try:
                text = _answer(clients[name], name, prompt, is_streamed=bool((number + count) % 2))
            except openai.OpenAIError as error:
                lost.append(error)
                continue
            latencies.append(time.monotonic() - sent)
            if text != expected[name, prompt]:
                wrong.append((name, prompt, text))
            count += 1

    running = [threading.Thread(target=ask_on, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    seconds = time.monotonic() - began
    return Load(seconds, latencies, len(wrong), len(lost), servers.cpu_seconds - before)


def _answer(client: openai.OpenAI, name: str, prompt: str, *, is_streamed: bool) -> str:
    messages: Any = [{"role": "user", "content": prompt}]
    asked: Any = client.chat.completions.create(
        model=name, messages=messages, temperature=0, max_tokens=TOKENS, stream=is_streamed
    )
    if is_streamed:
        return "".join(chunk.choices[0].delta.content or "" for chunk in asked)
    return str(asked.choices[0].message.content)


def right_answers(base: Path, adapters: Mapping[str, Path]) -> dict[tuple[str, str], str]:
    """What generate answers, by adapter and prompt.

    Args:
        base: The base model.
        adapters: Adapters by name.
    """
    answers = generate(
        base, PROMPTS, adapters=dict(adapters), placement=Placement(DEVICES["CPU"], "fp32"), sampling=Sampling(TOKENS),
        batch=1,
    )  # fmt: skip
    return {(answer.adapter, answer.prompt): answer.answer for answer in answers}


def main() -> None:
    """Measure, and print what the docs show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--adapters", nargs="*", default=[], metavar="NAME=DIR")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=16)
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        base, adapters = (given.base, adapters_of(given.adapters)) if given.base else make_model(folder)
        expected = right_answers(base, adapters)
        assert len(set(expected.values())) > len(adapters), "the adapters answer alike"
        url, process = stack.enter_context(server(base, adapters, folder / "mixed.log"))
        one = Servers(dict.fromkeys(adapters, url), [process])
        report(f"one server, {given.threads} threads", ask(one, expected, given.threads, given.seconds))
        started = {
            name: stack.enter_context(server(base, {name: path}, folder / f"{name}.log"))
            for name, path in adapters.items()
        }
        several = Servers({name: url for name, (url, _) in started.items()}, [each for _, each in started.values()])
        for threads in (given.threads, len(adapters)):
            compare(one, several, expected, threads)
        sys.stdout.write(f"resident MiB: {one.memory} beside {several.memory}\n")


def compare(one: Servers, several: Servers, expected: Mapping[tuple[str, str], str], threads: int) -> None:
    """Measure one server and one for each adapter in turn, and print the ratio.

    Args:
        one: The server of all adapters.
        several: Those of one each.
        expected: Right answers by adapter and prompt.
        threads: Clients.
    """
    rates: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for kind, servers in {"one server": one, f"{len(several.processes)} servers": several}.items():
            load = ask(servers, expected, threads, ROUND_SECONDS)
            report(f"{kind}, {threads} threads", load)
            rates.setdefault(kind, []).append(load.tokens_a_cpu_second)
    mixed, apart = (statistics.median(each) for each in rates.values())
    sys.stdout.write(f"tokens a CPU second, medians: {mixed:.0f} / {apart:.0f} = {mixed / apart:.2f}\n")


def report(kind: str, load: Load) -> None:
    """Print a measurement, and end if an answer was wrong or lost.

    Args:
        kind: What was measured.
        load: What clients saw.
    """
    sys.stdout.write(f"{kind}: {load}\n")
    sys.stdout.flush()
    assert not load.wrong, "an answer differs from that of generate"
    assert not load.lost, "a request was lost"


if __name__ == "__main__":
    main()
