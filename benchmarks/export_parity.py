"""How far each export of a model is from the model: the figures behind the limits in docs/exporting.md.

python benchmarks/export_parity.py build/demo-model [gguf-f16 ...]

Every format is written to a temporary folder, and measured as a run does it: on the general questions that ship with
the package, their right answers as rows. Where llama.cpp's Python package is installed, GGUF files run there too.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

from thriftune import artifacts
from thriftune.config.exporting import ExportFormat
from thriftune.data.questions import prompt_style
from thriftune.inference.parity import checking, reference, rows
from thriftune.inference.parity.report import table_of
from thriftune.models.exporting import exports
from thriftune.models.tokenizer import load_tokenizer


def main() -> None:
    """Export a model to every format, or to those that are named, and print the table."""
    model_dir = Path(sys.argv[1])
    formats = [name for name in get_args(ExportFormat) if name in sys.argv[2:] or not sys.argv[2:]]
    tokenizer = load_tokenizer(model_dir)
    started = time.monotonic()
    asked = rows.of_general(tokenizer, prompt_style(model_dir, tokenizer))
    trained = reference.of_directory(model_dir, asked)
    say(f"reference: {len(trained.rows)} rows, {trained.dtype}, {time.monotonic() - started:.1f} s")
    found = []
    for name in formats:
        with tempfile.TemporaryDirectory() as folder:
            started = time.monotonic()
            for remark in exports.write(name, model_dir, Path(folder), model_dir.name, 5.0):
                say(f"{name}: {remark}")
            written = time.monotonic() - started
            size = sum(file.stat().st_size for file in Path(folder).iterdir()) / 1e6
            artifacts.write_manifest(Path(folder), "export", {}, checksums=False)
            found.append(checking.check(trained, Path(folder), name))
            say(f"{name}: {size:.0f} MB written in {written:.1f} s, compared in {time.monotonic() - started:.1f} s")
    say(table_of(found))


def say(text: str) -> None:
    """Write to the terminal at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
