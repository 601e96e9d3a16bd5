"""Rows per second and peak memory of preparing a dataset, compared with tokenizing one row per Python call.

    python benchmarks/data_preparation.py MODEL_OR_TOKENIZER_DIRECTORY [--rows 10000 100000 1000000]

Generates Alpaca rows (about 110 tokens each) and prepares them, packed, in a fresh process for each number of rows; the
time is that of the whole preparation, from the file to the finished directory. Memory is the highest sum of anonymous
memory (private, not in the page cache) of the process and its workers, sampled every 50 ms, minus the memory after
loading the libraries.

Compared with, in one process each, on the first 10,000 rows:

    tokenizer call    `tokenizer(text)` in a loop over texts in memory: nothing but the tokenizer
    datasets.map      one row per call: format, tokenize with offsets, label token by token, write Arrow
    one row a call    thriftune's own conversion, given one row at a time, and its writing
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BASELINE_ROWS = 10_000
WORDS = [
    "the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "while", "model", "learns", "from", "examples",
    "of", "questions", "and", "answers", "in", "Paris", "river", "France", "capital", "because", "every", "good",
    "engineer", "writes", "tests", "before", "shipping", "software", "to", "customers", "who", "pay",
]  # fmt: skip


def write_rows(file: Path, count: int) -> None:
    """Instructions and outputs of random length, all different."""
    rng = random.Random(0)
    with file.open("w") as stream:
        for number in range(count):
            instruction = f"{number} " + " ".join(rng.choices(WORDS, k=rng.randint(5, 40)))
            row = {"instruction": instruction, "output": " ".join(rng.choices(WORDS, k=rng.randint(5, 70)))}
            stream.write(json.dumps(row) + "\n")


class TreePeak:
    """Peak of the anonymous memory of this process and its children, in MiB above the start."""

    def __init__(self) -> None:
        self.base = self.peak = self.read()
        threading.Thread(target=self.sample, daemon=True).start()

    @staticmethod
    def read() -> float:
        """The kernel's present value."""
        import psutil

        me = psutil.Process()
        total = 0
        for process in [me, *me.children(recursive=True)]:
            try:
                lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
            except OSError:  # the process has ended
                continue
            total += sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))
        return total / 1024

    def sample(self) -> None:
        """Update the peak forever."""
        while True:
            self.peak = max(self.peak, self.read())
            time.sleep(0.05)


def prepared(tokenizer_dir: Path, rows: Path, folder: Path) -> None:
    """Prepare the rows as thriftune does."""
    from thriftune.data.prepare import prepare

    prepare(config(rows), seed=0, tokenizer_dir=tokenizer_dir, destination=folder / "prepared")


def config(rows: Path) -> Any:
    """The data section of a run."""
    from thriftune.config import DataConfig

    return DataConfig(source=str(rows), format="alpaca", max_length=512, packing=True)


def one_row_a_call(tokenizer_dir: Path, rows: Path, folder: Path) -> None:
    """Conversion and writing as in thriftune, without batches."""
    from thriftune.data.conversion import Batch, Converter
    from thriftune.data.pieces import Pieces
    from thriftune.data.sources import NumberedRow
    from thriftune.models.tokenizer import load_tokenizer

    converter = Converter(config(rows), load_tokenizer(tokenizer_dir))
    with Pieces(folder).writing() as write, rows.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            write(converter.convert(Batch(0, [NumberedRow(str(rows), number, line)], [False])))


def datasets_map(tokenizer_dir: Path, rows: Path, folder: Path) -> None:
    """Prepare the rows as most guides show."""
    from datasets import load_dataset

    from thriftune.data.formats import FORMATS
    from thriftune.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_dir)
    read = FORMATS["alpaca"].read

    def tokenize(row: dict[str, str]) -> dict[str, list[int]]:
        (example,) = read(row)
        encoded = tokenizer(example.text, return_offsets_mapping=True)
        ((first, last),) = example.answers
        ids = [*encoded["input_ids"], tokenizer.eos_token_id]
        offsets = [*encoded["offset_mapping"], (first, last)]
        labels = [i if start < last and end > first else -100 for i, (start, end) in zip(ids, offsets, strict=True)]
        return {"input_ids": ids, "labels": labels}

    dataset = load_dataset("json", data_files=str(rows), split="train", cache_dir=str(folder / "cache"))
    dataset.map(tokenize, remove_columns=dataset.column_names, load_from_cache_file=False)


def tokenizer_call(tokenizer_dir: Path, rows: Path, folder: Path) -> None:
    """Only the tokenizer, called through transformers."""
    from thriftune.data.formats import FORMATS
    from thriftune.models.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(tokenizer_dir)
    texts = [FORMATS["alpaca"].read(json.loads(line))[0].text for line in rows.open()]
    started = time.perf_counter()
    for text in texts:
        tokenizer(text)
    (folder / "seconds").write_text(str(time.perf_counter() - started))


def measure(work: Callable[[Path, Path, Path], None], tokenizer_dir: Path, rows: Path, results: Any) -> None:
    """Run in a fresh process, and measure time and memory after loading the libraries."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    import datasets  # noqa: F401
    import pyarrow.parquet  # noqa: F401
    import tqdm  # noqa: F401

    from thriftune.data import prepare  # noqa: F401
    from thriftune.models.tokenizer import load_tokenizer

    load_tokenizer(tokenizer_dir)
    with tempfile.TemporaryDirectory() as folder:
        memory, started = TreePeak(), time.perf_counter()
        work(tokenizer_dir, rows, Path(folder))
        seconds = time.perf_counter() - started
        alone = Path(folder) / "seconds"
        results.put((float(alone.read_text()) if alone.exists() else seconds, memory.peak - memory.base))


def in_fresh_process(work: Callable[..., None], tokenizer_dir: Path, rows: Path) -> tuple[float, float]:
    """Seconds, and MiB above the memory of the loaded libraries."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=measure, args=(work, tokenizer_dir, rows, results))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(process.exitcode)
    return results.get()


def main() -> None:
    """Measure everything and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        baseline = Path(folder) / "baseline.jsonl"
        write_rows(baseline, BASELINE_ROWS)
        singles = {}
        for name, work in (
            ("tokenizer call", tokenizer_call), ("datasets.map", datasets_map), ("one row a call", one_row_a_call)
        ):  # fmt: skip
            seconds, _ = in_fresh_process(work, options.tokenizer, baseline)
            singles[name] = BASELINE_ROWS / seconds
        print("\n| rows | seconds | rows/s | peak memory, MiB | " + " | ".join(f"x {name}" for name in singles) + " |")
        print("|---" * (4 + len(singles)) + "|")
        for count in options.rows:
            file = Path(folder) / f"{count}.jsonl"
            write_rows(file, count)
            seconds, memory = in_fresh_process(prepared, options.tokenizer, file)
            ratios = " | ".join(f"{count / seconds / single:.1f}" for single in singles.values())
            print(f"| {count:,} | {seconds:.1f} | {count / seconds:,.0f} | {memory:.0f} | {ratios} |", flush=True)
            file.unlink()
        print("\nOne row per Python call: " + ", ".join(f"{name} {rate:,.0f} rows/s" for name, rate in singles.items()))


if __name__ == "__main__":
    main()
