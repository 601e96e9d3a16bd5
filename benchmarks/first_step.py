"""The wait for the first step: seconds from the command to it, and CPU seconds of all its processes.

Usage: python benchmarks/first_step.py [--checkout DIRECTORY ...] [--times 3] CONFIG ...

Runs each configuration from each checkout (this one if none is named) in turn, so that other work on the machine
affects all of them, and kills it after the first step. Each has its own folders for outputs and for compiled operators,
both empty before its first run: "first" is that run, "again" the mean of the later ones.
"""

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import yaml

ROOT = Path(__file__).resolve().parent.parent
_STEP = "INFO step 1/"
_LIMIT_S = 1200.0


def measure(checkout: Path, config: Path, folder: Path) -> tuple[float, float]:
    """Run until the first step.

    Args:
        checkout: Where the code is.
        config: The run file; it must log every step.
        folder: For outputs, temporary files and compiled operators.

    Returns:
        Seconds, and CPU seconds of all processes.
    """
    method = yaml.safe_load(config.read_text(encoding="utf-8"))["method"]
    workflow = f"{method}_finetune"
    environment = {
        **os.environ,
        "PYTHONPATH": str(checkout),
        "THRIFTUNE_OUTPUTS": str(folder / "outputs"),
        "TORCH_EXTENSIONS_DIR": str(folder / "operators"),
        "TMPDIR": str(folder / "temporary"),
    }
    (folder / "temporary").mkdir(parents=True, exist_ok=True)
    pyflyte = Path(sys.executable).parent / "pyflyte"
    command = [str(pyflyte), "run", f"workflows/{workflow}.py", workflow, "--config", str(config)]
    log = folder / "log"
    began = time.monotonic()
    with log.open("w") as lines, subprocess.Popen(
        command, cwd=checkout, env=environment, stdout=lines, stderr=lines, start_new_session=True
    ) as process:  # fmt: skip
        try:
            while _STEP not in log.read_text():
                if process.poll() is not None or time.monotonic() - began > _LIMIT_S:
                    raise RuntimeError(f"No first step of {config}: {log.read_text()[-2000:]}")
                time.sleep(0.05)
            return time.monotonic() - began, cpu_seconds(process.pid)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def cpu_seconds(pid: int) -> float:
    """CPU seconds so far of a process and its children, including those that have ended."""
    spent = 0.0
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        spent += times.user + times.system + times.children_user + times.children_system
    return spent


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a line per configuration and checkout."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG")
    parser.add_argument("--checkout", action="append", type=Path, help="checkout to run from; may be repeated")
    parser.add_argument("--times", type=int, default=3, help="runs of each; 3 when left out")
    asked = parser.parse_args(arguments)
    pairs = [
        (config.resolve(), checkout.resolve()) for config in asked.configs for checkout in asked.checkout or [ROOT]
    ]
    with tempfile.TemporaryDirectory() as scratch:
        folders = [Path(scratch) / str(number) for number in range(len(pairs))]
        runs = [
            [measure(checkout, config, folder) for (config, checkout), folder in zip(pairs, folders, strict=True)]
            for _ in range(asked.times)
        ]
    sys.stdout.write(f"{'configuration':20s} {'checkout':24s} {'first':>18s} {'again':>18s}   s (CPU s)\n")
    for number, (config, checkout) in enumerate(pairs):
        first, *others = [measured[number] for measured in runs]
        again = [statistics.fmean(values) for values in zip(*others, strict=True)] if others else first
        times = " ".join(f"{seconds:9.1f} ({cpu:6.1f})" for seconds, cpu in (first, again))
        sys.stdout.write(f"{config.stem:20s} {checkout.name:24s} {times}\n")


if __name__ == "__main__":
    main()
