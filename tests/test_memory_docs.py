"""docs/memory.md shows every run it speaks of, and its summary is that of its table."""

import re
import statistics
from pathlib import Path

PAGE = (Path(__file__).parent.parent / "docs" / "memory.md").read_text(encoding="utf-8")
_NAMES = "zero|lora|qlora|full|partial|prefix|llama_adapter"
ROWS = re.findall(rf"^\| (?:{_NAMES})[^|]*\| (\d+) \| (\d+) \| ([+-]\d+)%", PAGE, re.M)


def test_the_summary_is_that_of_the_table():
    errors = [int(predicted) / int(measured) - 1 for measured, predicted, _ in ROWS]
    # The table rounds MiB.
    assert all(abs(100 * error - int(row[2])) < 0.6 for error, row in zip(errors, ROWS, strict=True))
    close = sum(abs(error) <= 0.1 for error in errors)
    low = sum(error < -0.05 for error in errors)
    median = statistics.median(map(abs, errors))
    assert f"{len(ROWS)} real fine-tuning runs" in PAGE
    assert low == 0
    assert (
        f"**{close} are within 10 %, none is more than\n5 % too low, the median is {100 * median:.1f} % off.**" in PAGE
    )
    assert len(ROWS) >= 24
    assert close >= len(ROWS) / 2
