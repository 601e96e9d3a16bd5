"""Files that are something else than their name says: the error names what they are, and what to do."""

import gzip
import io
import json
import zipfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from thriftune.data.readers import columns_of, count_rows, decode, read_file
from thriftune.errors import DataError

ROWS = [{"instruction": f"Add {i}.", "output": "2"} for i in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
TABLE = "instruction,output\nAdd 1.,2\nAdd 2.,3\n"
COLUMNS = {name: [row[name] for row in ROWS] for name in ROWS[0]}
BY_NUMBER = {name: dict(zip("012", values, strict=True)) for name, values in COLUMNS.items()}
UTF16 = ("it is UTF-16", "iconv -f UTF-16")


def archive():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("table.xml", "a")
    return content.getvalue()


def parquet():
    content = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(ROWS), content)
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "cause", "remedy"),
    [
        ("rows.jsonl", LINES.encode("utf-16"), *UTF16),
        ("rows.jsonl", LINES.encode("utf-16-le"), *UTF16),
        ("rows.csv", TABLE.encode("utf-16-be"), *UTF16),
        ("rows.txt", "One.\n\nTwo.".encode("utf-16"), *UTF16),
        ("rows.csv", TABLE.replace(",", ";").encode(), "its columns are separated by semicolons", "with commas"),
        ("rows.csv", b"sep=;\n" + TABLE.replace(",", ";").encode(), "separated by semicolons", "with commas"),
        ("rows.csv", b'\xef\xbb\xbf"a";"b"\n"1";"2"\n', "separated by semicolons", "with commas"),
        ("rows.csv", TABLE.replace(",", "\t").encode(), "its columns are separated by tabs", "Name it .tsv."),
        ("rows.csv", TABLE.replace(",", "|").encode(), "separated by vertical bars", "with commas"),
        ("rows.tsv", TABLE.encode(), "its columns are separated by commas", "Name it .csv."),
        ("rows.jsonl", json.dumps(ROWS).encode(), "it starts like a JSON list", "Name it .json"),
        ("rows.jsonl", json.dumps(ROWS, indent=2).encode(), "it starts like a JSON list", "Name it .json"),
        ("rows.json", json.dumps(COLUMNS).encode(), "all values of a column under its name", "one object per line"),
        ("rows.json", json.dumps(COLUMNS, indent=2).encode(), "all values of a column under its name", "per line"),
        ("rows.jsonl", json.dumps(COLUMNS).encode(), "all values of a column under its name", "one object per line"),
        ("rows.json", json.dumps(BY_NUMBER).encode(), "all values of a column under its name", "one object per line"),
        ("rows.json", json.dumps({"data": ROWS}, indent=1).encode(), "its rows are a list under 'data'", "list alone"),
        (
            "rows.json",
            "".join(json.dumps(row, indent=2) + "\n" for row in ROWS).encode(),
            "an object in it takes several lines",
            "one object per line",
        ),
        ("rows.jsonl", json.dumps({"messages": [{"role": "user"}]}, indent=2).encode(), "several lines", "per line"),
        ("rows.jsonl", gzip.compress(LINES.encode(), mtime=0), "it is gzip", "Name it with .gz at the end."),
        ("rows.csv", pa.Codec("zstd").compress(TABLE.encode(), asbytes=True), "it is zstd", ".zst"),
        ("rows.csv", archive(), "it is a zip archive, like .zip, .xlsx", "Unpack it. If it is a table: Export it"),
        ("rows.txt", b"%PDF-1.7 ...", "it is a PDF", "Extract its text."),
        ("rows.json", parquet(), "it is Parquet", "Name it .parquet."),
        ("rows.parquet", gzip.compress(parquet(), mtime=0), "it is gzip", "Name it with .gz at the end."),
        ("rows.csv", b"\n<!DOCTYPE html><html>", "it is a web page", "Download the file itself"),
        ("rows.parquet", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS", "git lfs pull"),
    ],
)  # fmt: skip
def test_it_is_refused_as_what_it_is(tmp_path, name, content, cause, remedy):
    """Each was an error of its own far from the cause: rows that are no JSON, one column with all names in it."""
    file = tmp_path / name
    file.write_bytes(content)
    for look in (columns_of, lambda file: list(read_file(file))):
        with pytest.raises(DataError, match=r"could not be read as [\w ]+: ") as caught:
            look(file)
        (problem,) = caught.value.problems
        assert cause in problem.message
        assert remedy in problem.remedy


@pytest.mark.parametrize(
    ("name", "content", "count"),
    [
        ("rows.json", LINES, 3),
        ("rows.jsonl", '[{"a": 1}]\n' + LINES, 4),
        ("rows.jsonl", "{\n" + LINES, 4),
        ("rows.jsonl", '{"messages": [{"role": "user"}]}\n', 1),
        ("rows.jsonl", '{"a": ["b"], "c": ["d"]}\n' + LINES, 4),
        ("rows.jsonl", '{"a": [], "c": {}}\n', 1),
        ("rows.csv", "text\none; two\n", 1),
        ("rows.csv", "a,b;c\n1,2\n", 1),
        ("rows.csv", "text\n", 0),
        ("rows.tsv", "a, or b\tc\n1\t2\n", 1),
        ("rows.txt", "<html>\n\nPK", 2),
        ("rows.jsonl", "", 0),
    ],
)
def test_what_only_looks_like_it_is_read_row_by_row(tmp_path, name, content, count):
    file = tmp_path / name
    file.write_text(content)
    assert count_rows(file) == len(list(read_file(file))) == count


def test_a_file_that_is_what_it_says_is_read(tmp_path):
    (tmp_path / "rows.jsonl").write_text(LINES)
    assert [decode(raw) for _, raw in read_file(tmp_path / "rows.jsonl")] == ROWS
