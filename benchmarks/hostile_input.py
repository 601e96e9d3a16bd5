"""Seconds and peak memory of preparing data that contains giant values, compared with the same data without them.

    python benchmarks/hostile_input.py MODEL_OR_TOKENIZER_DIRECTORY [--rows 20000] [--megabytes 1000]

Each line compares two preparations of generated rows, as in benchmarks/data_preparation.py, each in a fresh process:
the rows alone, and the same rows with giants among them. Memory is measured as there. The last column says what
happened to the giants: how many rows were rejected, or why the file was refused.
"""

import argparse
import csv
import gzip
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

from data_preparation import in_fresh_process, write_rows

from thriftune.errors import UserError
from thriftune.limits import ROW_BYTES

NESTED = ("[" * 200_000, '{"instruction": "a", "output": ' + "[" * 900 + "]" * 900 + "}")


def pieces(size: int) -> Iterator[str]:
    """Text of a size in characters that compresses to half."""
    piece = os.urandom(1 << 19).hex()
    for _ in range(size >> 20):
        yield piece


def json_lines(stream: IO[str], rows: Path, giant: int) -> None:
    """Rows, a line of the giant's size, one nested 200,000 deep, and one nested 900 deep."""
    for number, line in enumerate(rows.open()):
        stream.write(line)
        if number == 10 and giant:
            stream.write('{"instruction": "a", "output": "')
            stream.writelines(pieces(giant))
            stream.write('"}\n' + "\n".join(NESTED) + "\n")


def nearly_giants(stream: IO[str], rows: Path, giant: int) -> None:
    """Rows, and two that are just small enough to be accepted."""
    for number, line in enumerate(rows.open()):
        stream.write(line)
        if number < 2 and giant:
            text = "".join(pieces(ROW_BYTES - (1 << 20)))
            stream.write(json.dumps({"instruction": f"{number}", "output": text}) + "\n")


def comma_separated(stream: IO[str], rows: Path, giant: int) -> None:
    """Rows, and a field of the giant's size."""
    writer = csv.DictWriter(stream, ["instruction", "output"])
    writer.writeheader()
    for number, line in enumerate(rows.open()):
        writer.writerow(json.loads(line))
        if number == 10 and giant:
            stream.write('a,"')
            stream.writelines(f"{piece}\n" for piece in pieces(giant))
            stream.write('"\n')


def bomb(stream: IO[str], rows: Path, giant: int) -> None:
    """Rows, and a line of the giant's size that repeats one letter."""
    stream.write(rows.read_text())
    for _ in range(giant >> 20):
        stream.write("a" * (1 << 20))


def parquet(file: Path, rows: Path, giant: int) -> None:
    """Rows, and a value of the giant's size."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    written = [json.loads(line) for line in rows.open()]
    if giant:
        written.insert(10, {"instruction": "a", "output": "".join(pieces(giant))})
    pq.write_table(pa.Table.from_pylist(written), file, compression="snappy")


def streamed(write: Callable[[IO[str], Path, int], None], file: Path, rows: Path, giant: int) -> None:
    """Write a text file, compressed if its name says so."""
    with file.open("wb") as binary:
        packed = gzip.GzipFile(fileobj=binary, mode="wb", compresslevel=1) if file.suffix == ".gz" else binary
        with io.TextIOWrapper(packed) as stream:
            write(stream, rows, giant)


KINDS: dict[str, tuple[str, Callable[[Path, Path, int], None]]] = {
    "a line, and nesting": ("rows.jsonl", partial(streamed, json_lines)),
    "two rows of 3 MiB, which are used": ("rows.jsonl", partial(streamed, nearly_giants)),
    "a field, packed": ("rows.csv.gz", partial(streamed, comma_separated)),
    "a bomb, packed": ("rows.jsonl.gz", partial(streamed, bomb)),
    "a bomb, packed as text": ("rows.txt.gz", partial(streamed, bomb)),
    "a value": ("rows.parquet", parquet),
}


def prepared(tokenizer_dir: Path, rows: Path, folder: Path) -> None:
    """Prepare a file, and write the outcome beside it."""
    from thriftune.config import DataConfig
    from thriftune.data.prepare import prepare

    kind = {"format": "text", "sample_by": "line"} if ".txt" in rows.name else {"format": "alpaca"}
    config = DataConfig.model_validate({"source": str(rows), "max_length": 512, "packing": True, **kind})
    try:
        stats: Any = prepare(config, seed=0, tokenizer_dir=tokenizer_dir, destination=folder / "prepared")
        became = f"{stats.train.rejected + stats.validation.rejected} rows set aside"
    except UserError as error:
        became = f"refused: {error.problems[0].message.partition(': ')[2]}"
    rows.with_name("became").write_text(became)


def main() -> None:
    """Measure everything and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--megabytes", type=int, default=1000)
    options = parser.parse_args()
    print(
        "| among the rows | file | seconds | with | peak memory, MiB | with | what became of it |\n" + "|---" * 7 + "|"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = folder / "plain"
        write_rows(rows, options.rows)
        for kind, (file_name, write) in KINDS.items():
            file, results = folder / file_name, []
            for giant in (0, options.megabytes << 20):
                write(file, rows, giant)
                results.append(in_fresh_process(prepared, options.tokenizer, file))
                file.unlink()
            (seconds, memory), (seconds_with, memory_with) = results
            became = (folder / "became").read_text()
            print(
                f"| {kind} | `{file_name.removeprefix('rows')}` | {seconds:.1f} | {seconds_with:.1f} | {memory:.0f} "
                f"| {memory_with:.0f} | {became} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
