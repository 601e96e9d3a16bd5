"""Run the whole fault suite, and write the cost of every case to docs/resilience-cases.md.

Usage: python scripts/fault_table.py [--from RECORD.jsonl]
    --from  use a file that an earlier run of the suite wrote to the path in FAULT_RECORD, instead of running it now
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
_TABLE = ROOT / "docs" / "resilience-cases.md"
_METHODS = {"qlora": "QLoRA", "zero3": "ZeRO-3, 2 ranks", "zero2": "ZeRO-2, 2 ranks"}
_HEAD = """# What every fault costs

Written by `scripts/fault_table.py` from a run of `make faults`: real processes on CPU, with the tiny model unless
another is named, each case compared with an undisturbed run of the same seed. "Same losses, same weights" is bit for
bit. Steps lost and seconds are the maximum over all faults of a case; seconds count from the start of the new processes
(for restarted workers: from the fault) to their first step, without importing libraries. Where checkpoints are damaged
or the store is gone, the attempt is killed as well, and "Faults" counts only the kill: each damage may cost one more
interval.

| What was done | Method | Faults | Checkpoint every | Steps lost | Seconds to resume | Result |
|---|---|---|---|---|---|---|
"""


def run_suite(record: Path) -> None:
    """Run the tests, each of which appends the cost of its faults to a file.

    Args:
        record: File that the tests write.

    Raises:
        SystemExit: A test failed, so that nothing can be published.
    """
    command = [sys.executable, "-m", "pytest", "tests/faults", "-m", "faults or not faults"]
    environment = {**os.environ, "FAULT_RECORD": str(record)}
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if status:
        sys.exit(status)


def table(lines: list[dict[str, Any]]) -> str:
    """Write the page.

    Args:
        lines: What the tests wrote: case, method, interval, faults, steps_lost, seconds, result.
    """
    cases: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        cases[line["case"], line["method"]].append(line)
    rows = [_row(case, method, found) for (case, method), found in sorted(cases.items())]
    return _HEAD + "".join(rows)


def _row(case: str, method: str, found: list[dict[str, Any]]) -> str:
    faults = sum(line["faults"] for line in found)
    lost = max(line["steps_lost"] for line in found)
    seconds = max(line["seconds"] for line in found)
    ((result, interval),) = {(line["result"], line["interval"]) for line in found}
    resumed = f"{seconds:.1f}" if seconds else "-"
    return f"| {case} | {_METHODS[method]} | {faults} | {interval} steps | {lost} | {resumed} | {result} |\n"


def main() -> None:
    """Run the suite unless a record is given, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="record", type=Path)
    record = parser.parse_args().record
    with tempfile.TemporaryDirectory() as folder:
        if record is None:
            record = Path(folder) / "record.jsonl"
            run_suite(record)
        lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    _TABLE.write_text(table(lines), encoding="utf-8")
    sys.stdout.write(f"{len(lines)} lines of the record are in {_TABLE}\n")


if __name__ == "__main__":
    main()
