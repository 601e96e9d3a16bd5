"""Rows from files: what can be read, what is refused and how, and when a source counts as changed."""

import csv
import json
import os

import pytest

from thriftune.data.sources import is_file_source, load_rows, version
from thriftune.errors import DataError

ROWS = [{"instruction": f"Do {i}", "output": f"Done {i}"} for i in range(5)]


def write(file, rows):
    if file.suffix == ".csv":
        with file.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def load(tmp_path_factory):
    return lambda source: load_rows(str(source), cache_dir=tmp_path_factory.mktemp("cache"))


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path, load, ending):
    assert load(write(tmp_path / f"rows.{ending}", ROWS)).to_list() == ROWS


def test_a_glob_reads_its_files_in_the_order_of_their_names(tmp_path, load):
    write(tmp_path / "b.jsonl", ROWS[3:])
    write(tmp_path / "a.jsonl", ROWS[:3])
    (tmp_path / "other.txt").write_text("no row")
    assert load(tmp_path / "*.jsonl").to_list() == ROWS


def test_a_glob_reaches_into_folders(tmp_path, load):
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / "rows.parquet", ROWS)
    assert len(load(tmp_path / "**" / "*.parquet")) == 5


def test_a_url_is_read_through_fsspec(tmp_path, load):
    write(tmp_path / "rows.jsonl", ROWS)
    assert load(f"file://{tmp_path}/*.jsonl").to_list() == ROWS


def test_a_missing_file_is_refused_with_what_is_there(tmp_path, load):
    write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(DataError, match=r"data\.source = .*row\.jsonl: no such file\. .* holds rows\.jsonl\."):
        load(tmp_path / "row.jsonl")
    with pytest.raises(DataError, match="no such file"):
        version(str(tmp_path / "row.jsonl"))


def test_a_missing_remote_file_is_refused(load):
    with pytest.raises(DataError, match="no such file"):
        load("memory://no-such-folder/rows.jsonl")


@pytest.mark.parametrize("name", ["rows.xlsx", "rows"])
def test_a_kind_of_file_that_is_not_read_is_refused_with_those_that_are(tmp_path, load, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"\.jsonl, \.json, \.csv, \.parquet"):
        load(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("broken.jsonl", b'{"a": 1\n'),
        ("ragged.csv", b"a,b\n1,2\n1,2,3,4\n"),
        ("latin1.csv", "a,b\nq,caf\xe9\n".encode("latin1")),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path, load, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"(?s)data\.source = .*{name}: could not be read as \w+: .+ Repair the file"):
        load(tmp_path / name)


def test_a_file_without_a_byte_is_refused(tmp_path, load):
    """`datasets` 5.2 raises a bare StopIteration for it."""
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match=r"data\.source = .*empty\.jsonl: holds no rows"):
        load(tmp_path / "empty.jsonl")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("broken.parquet", b"hello"),
        ("empty.parquet", b""),
        ("blank.jsonl", b"\n\n"),
        ("header-only.csv", b"a,b\n"),
        ("empty.csv", b""),
    ],
)
def test_a_file_with_nothing_to_read_in_it_is_refused(tmp_path, load, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"data\.source = "):
        load(tmp_path / name)


def test_an_unknown_kind_of_url_is_refused(load):
    with pytest.raises(DataError, match=r"data\.source = foo://"):
        load("foo://bucket/rows.jsonl")


@pytest.mark.parametrize("source", ["./rows", "../rows"])
def test_a_relative_path_is_no_hub_id(source):
    assert is_file_source(source)


def test_files_with_different_columns_are_refused(tmp_path, load):
    write(tmp_path / "a.jsonl", [{"text": "x"}])
    write(tmp_path / "b.jsonl", [{"other": "x"}])
    with pytest.raises(DataError, match="column"):
        load(tmp_path / "*.jsonl")


def test_the_version_follows_the_content_and_not_the_time(tmp_path):
    file = write(tmp_path / "rows.jsonl", ROWS)
    before = version(str(file))
    os.utime(file, (1, 1))
    assert version(str(file)) == before
    write(file, [*ROWS[:-1], {"instruction": "Do 4", "output": "Done 5"}])
    assert version(str(file)) != before


def test_the_version_is_that_of_all_files_of_a_glob(tmp_path):
    write(tmp_path / "a.jsonl", ROWS)
    alone = version(str(tmp_path / "*.jsonl"))
    write(tmp_path / "b.jsonl", ROWS)
    assert version(str(tmp_path / "*.jsonl")) != alone


def test_the_version_does_not_depend_on_where_the_file_lies(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "rows.jsonl", ROWS)
    assert version(str(tmp_path / "one" / "rows.jsonl")) == version(str(tmp_path / "two" / "rows.jsonl"))


def test_the_version_of_a_url_follows_the_store_s_own_checksum():
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe("/rows-of-test/rows.jsonl", b'{"text": "a"}\n')
    before = version("memory://rows-of-test/rows.jsonl")
    assert version("memory://rows-of-test/rows.jsonl") == before
    store.pipe("/rows-of-test/rows.jsonl", b'{"text": "other"}\n')
    assert version("memory://rows-of-test/rows.jsonl") != before


@pytest.mark.parametrize(
    ("source", "is_file"),
    [
        ("tatsu-lab/alpaca", False),
        ("imdb", False),
        ("owner/rows.jsonl", True),
        ("/data/rows", True),
        ("data/*.parquet", True),
        ("s3://bucket/rows", True),
    ],
)
def test_files_and_hub_ids_are_told_apart_by_their_spelling(source, is_file):
    assert is_file_source(source) is is_file
