"""Train every supported pair of a method and a strategy, and write what each did into docs/methods.md.

Usage: python scripts/pairs_table.py [--from RECORD.jsonl]
    --from  use a file that an earlier run wrote to the path in PAIRS_RECORD, instead of training now
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "methods.md"
START, END = "<!-- pairs: written by `make pairs` -->\n", "<!-- end of pairs -->"
_COLUMNS = {
    "losses": "Losses of 1 and 2 ranks against one process",
    "reloaded": "Held-out loss, reloaded without this package",
    "resumed": "Killed and resumed",
    "other ranks": "2 ranks, then 1",
}


def run_suite(record: Path) -> None:
    """Train all pairs, each of which appends what it did to a file.

    Args:
        record: The file.

    Raises:
        SystemExit: A pair failed, so that nothing can be published.
    """
    command = [sys.executable, "-m", "pytest", "tests/pairs", "-m", "pairs or not pairs"]
    environment = {**os.environ, "PAIRS_RECORD": str(record)}
    status = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode
    if status:
        sys.exit(status)


def table(lines: list[dict[str, Any]]) -> str:
    """The table of all pairs, those that are refused at its end.

    Args:
        lines: What the tests wrote: method, strategy, what, result.
    """
    from thriftune.config.choices import METHODS, STRATEGIES

    did: dict[tuple[str, str], dict[str, str]] = {}
    for line in lines:
        did.setdefault((line["method"], line["strategy"]), {})[line["what"]] = line["result"]
    head = ["Method", "Strategy", *_COLUMNS.values()]
    rows = [head, ["---"] * len(head)]
    # A name may go on with a stage: zero3.
    pairs = [
        (method, name)
        for method in METHODS
        for strategy in STRATEGIES
        for of, name in sorted(did)
        if of == method and name.startswith(strategy)
    ]
    rows += [[f"`{m}`", f"`{s}`", *(did[m, s].get(what, "-") for what in _COLUMNS)] for m, s in pairs]
    refused = [
        f"- `{method}` under `{name}`: {why}."
        for name, facts in STRATEGIES.items()
        for method, why in facts.refuses.items()
    ]
    lines_of_table = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines_of_table, "", "Refused, by name and before anything is asked for:", "", *refused, ""])


def main() -> None:
    """Train unless a record is given, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="record", type=Path)
    record = parser.parse_args().record
    with tempfile.TemporaryDirectory() as folder:
        if record is None:
            record = Path(folder) / "record.jsonl"
            run_suite(record)
        lines = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    PAGE.write_text(f"{before}{START}{table(lines)}{END}{rest.split(END)[1]}", encoding="utf-8")
    sys.stdout.write(f"{len(lines)} lines of the record are in {PAGE}\n")


if __name__ == "__main__":
    main()
