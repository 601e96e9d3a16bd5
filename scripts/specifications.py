"""Update the golden files of tests/specification to the present package; review their diff.

Usage: python scripts/specifications.py
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from specification import golden, serialized


def main() -> None:
    """Serialize everything, and write the files that changed."""
    with tempfile.TemporaryDirectory() as scratch:
        changed = golden.write(serialized.package(Path(scratch)))
    sys.stdout.write("".join(f"{name}\n" for name in changed) or "Nothing changed.\n")


if __name__ == "__main__":
    main()
