"""The cost of copying a model into the cache, and of checking in a later run that it is undamaged.

    python benchmarks/cache_checks.py MODEL_DIRECTORY

Prints CPU-seconds and GB/s of two digests of bytes in memory, and of copying and of reading a directory.
"""

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import xxhash

from thriftune import artifacts, damage, digests
from thriftune.errors import ModelSourceError
from thriftune.models import files as model_files

_BYTES = 1 << 28
_REPEATS = 3


def main() -> None:
    """Measure and print the costs."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="a directory with a model")
    model = parser.parse_args().model
    content = os.urandom(_BYTES)
    show("SHA-256 in memory", _BYTES, lambda: hashlib.sha256(content).digest())
    show("xxh3 in memory", _BYTES, lambda: xxhash.xxh3_128(content).digest())
    files = model_files.files_of(model, "model", ModelSourceError)
    size = sum(file.stat().st_size for file in files.values())
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        show("copying", size, lambda: model_files.copy_files(files, directory, "model", ModelSourceError))
        artifacts.write_manifest(directory, "base model", {})
        show("sizes", size, lambda: damage.damages(directory, content=False))
        show("content", size, lambda: checked_anew(directory))


def checked_anew(directory: Path) -> None:
    """Read a whole directory, as another process would."""
    digests._KNOWN.clear()  # noqa: SLF001 - digests that this process remembers
    assert damage.damages(directory, content=True) == []


def show(what: str, size: int, action: Callable[[], object]) -> None:
    """Print the smallest number of CPU-seconds that an action took."""
    seconds = []
    for _ in range(_REPEATS):
        started = time.process_time()
        action()
        seconds.append(time.process_time() - started)
    best = max(min(seconds), 1e-6)
    print(f"{what:20} {best:8.3f} s {size / best / 1e9:10.2f} GB/s")


if __name__ == "__main__":
    main()
