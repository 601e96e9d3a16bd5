"""Where rows come from: which files a source stands for, what is refused, and when a source counts as changed."""

import json
import os
from pathlib import Path

import pytest

from thriftune.config import DataConfig, DataSource
from thriftune.config.formats import ENDINGS, TABLE, is_file_source, is_hub_source
from thriftune.data.readers import decode
from thriftune.data.sources import open_source, pinned, version, versions
from thriftune.errors import DataError

ROWS = [{"instruction": f"Do {i}", "output": f"Done {i}"} for i in range(5)]


def write(file, rows=ROWS):
    if file.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), file)
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def open_(tmp_path_factory):
    """Open a source that has this name."""

    def open_named(source, *, table=(), **keys):
        return open_source(DataSource(source=str(source), **keys), scratch=tmp_path_factory.mktemp("s"), table=table)

    return open_named


@pytest.fixture
def in_memory():
    """Put files into fsspec's store in memory, and take them out at the end."""
    import fsspec

    store = fsspec.filesystem("memory")
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


def rows_in(opened):
    """All rows of an open source; they are as many as were counted, and the same again."""
    rows = [(row.place, row.number, decode(row.raw)) for row in opened.read()]
    assert opened.count == len(rows)
    assert rows == [(row.place, row.number, decode(row.raw)) for row in opened.read()]
    return rows


def values_in(opened):
    return [row for _, _, row in rows_in(opened)]


def test_a_file_is_read_with_its_columns_and_the_numbers_of_its_rows(tmp_path, open_):
    file = write(tmp_path / "rows.jsonl")
    opened = open_(file)
    assert (opened.name, opened.columns) == (str(file), ("instruction", "output"))
    assert rows_in(opened) == [(str(file), number, row) for number, row in enumerate(ROWS, 1)]


def test_a_glob_reads_its_files_in_the_order_of_their_names_each_from_one_on(tmp_path, open_):
    write(tmp_path / "b.jsonl", ROWS[3:])
    write(tmp_path / "a.jsonl", ROWS[:3])
    (tmp_path / "other.txt").write_text("no row")
    (tmp_path / "folder.jsonl").mkdir()
    opened = open_(tmp_path / "*.jsonl")
    assert values_in(opened) == ROWS
    assert [(Path(place).name, number) for place, number, _ in rows_in(opened)] == [
        ("a.jsonl", 1), ("a.jsonl", 2), ("a.jsonl", 3), ("b.jsonl", 1), ("b.jsonl", 2),
    ]  # fmt: skip


def test_a_glob_reaches_into_folders_and_may_leave_the_compression_open(tmp_path, open_):
    (tmp_path / "deep").mkdir()
    write(tmp_path / "deep" / "rows.parquet")
    write(tmp_path / "rows.jsonl")
    assert values_in(open_(tmp_path / "**" / "*.parquet")) == ROWS
    assert values_in(open_(tmp_path / "*.jsonl*")) == ROWS


def test_a_home_folder_is_expanded(tmp_path, open_, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "rows.jsonl")
    assert values_in(open_("~/rows.jsonl")) == ROWS


def test_a_file_with_brackets_in_its_name_is_that_file(tmp_path, open_):
    """As a pattern the name matches other files and not itself: it was once reported as missing."""
    write(tmp_path / "rows1.jsonl", ROWS[:1])
    assert values_in(open_(write(tmp_path / "rows[12].jsonl", ROWS[1:]))) == ROWS[1:]
    assert values_in(open_(tmp_path / "rows[13].jsonl")) == ROWS[:1]


def test_files_of_different_columns_have_all_of_them(tmp_path, open_):
    write(tmp_path / "a.jsonl", [{"text": "x"}])
    write(tmp_path / "b.jsonl", [{"other": "y"}])
    opened = open_(tmp_path / "*.jsonl")
    assert opened.columns == ("text", "other")
    assert values_in(opened) == [{"text": "x"}, {"other": "y"}]


def test_what_a_row_of_text_is_comes_from_the_source(tmp_path, open_):
    (tmp_path / "rows.txt").write_text("one\ntwo\n\nthree\n")
    counts = {by: open_(tmp_path / "rows.txt", sample_by=by).count for by in ("line", "paragraph", "document")}
    assert counts == {"line": 3, "paragraph": 2, "document": 1}


def test_a_url_is_read_through_fsspec_under_its_own_name(tmp_path, open_):
    write(tmp_path / "rows.jsonl")
    rows = rows_in(open_(f"file://{tmp_path}/*.jsonl"))
    assert rows == [(f"file://{tmp_path}/rows.jsonl", number, row) for number, row in enumerate(ROWS, 1)]


def test_remote_files_of_one_name_in_two_folders_are_both_read(in_memory, open_):
    for folder, rows in (("a", ROWS[:2]), ("b", ROWS[2:])):
        in_memory.pipe(f"/rows-of-test/{folder}/rows.jsonl", "".join(json.dumps(r) + "\n" for r in rows).encode())
    opened = open_("memory://rows-of-test/*/rows.jsonl")
    assert values_in(opened) == ROWS
    assert rows_in(opened)[-1][:2] == ("memory:///rows-of-test/b/rows.jsonl", 3)


def test_a_missing_file_is_refused_with_what_is_there(tmp_path, open_):
    write(tmp_path / "rows.jsonl")
    (tmp_path / "picture.png").touch()
    with pytest.raises(DataError, match=r"data\.source = .*row\.jsonl: no such file\. .* holds rows\.jsonl\."):
        open_(tmp_path / "row.jsonl")
    with pytest.raises(DataError, match=r"no such file\. .* holds rows\.jsonl\."):
        version(str(tmp_path / "*.csv"))


def test_a_missing_remote_file_is_refused(open_):
    with pytest.raises(DataError, match=r"data\.source = memory://no-such-folder/rows\.jsonl: no such file"):
        open_("memory://no-such-folder/rows.jsonl")


@pytest.mark.parametrize("name", ["rows.xlsx", "rows", "rows.jsonl.bz2", "rows.parquet.gz"])
def test_a_kind_of_file_that_is_not_read_is_refused_with_those_that_are(tmp_path, open_, name):
    (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match="is not a file this package reads") as caught:
        open_(tmp_path / name)
    assert all(f".{ending.split('.')[1]}" in caught.value.problems[0].remedy for ending in ENDINGS)
    assert "(each also .gz or .zst)" in caught.value.problems[0].remedy


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.jsonl", b""),
        ("blank.jsonl", b"\n\n"),
        ("empty.json", b"[]"),
        ("header-only.csv", b"a,b\n"),
        ("blank.txt", b" \n\n"),
    ],
)
def test_a_source_without_a_row_is_refused(tmp_path, open_, name, content):
    """`datasets` raised a bare StopIteration for a file without a byte."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"data\.source = .*{name}: holds no rows"):
        open_(tmp_path / name)


def test_a_parquet_file_without_a_row_is_refused_and_beside_others_it_is_not(tmp_path, open_):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: holds no rows"):
        open_(tmp_path / "a.parquet")
    write(tmp_path / "b.parquet")
    assert values_in(open_(tmp_path / "*.parquet")) == ROWS


def test_a_broken_file_of_several_is_refused_by_its_name(tmp_path, open_):
    write(tmp_path / "a.parquet")
    (tmp_path / "b.parquet").write_bytes(b"hello")
    with pytest.raises(DataError, match=r"data\.source = .*b\.parquet: could not be read as Parquet"):
        open_(tmp_path / "*.parquet")


def test_rows_that_cannot_be_read_are_counted_and_do_not_refuse_the_file(tmp_path, open_):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\nbroken\n{"text": "b"}\n')
    opened = open_(tmp_path / "rows.jsonl")
    assert (opened.count, [row.number for row in opened.read()]) == (3, [1, 2, 3])


def test_an_unknown_kind_of_url_is_refused(open_):
    with pytest.raises(
        DataError, match=r"data\.source = foo://bucket/rows\.jsonl: cannot be read: .*Give a path, s3://"
    ):
        open_("foo://bucket/rows.jsonl")


def test_a_table_is_read_from_its_parquet_files_under_its_own_name(tmp_path, open_):
    files = [write(tmp_path / "0.parquet", ROWS[:2]), write(tmp_path / "1.parquet", ROWS[2:])]
    opened = open_(TABLE, table=files)
    assert (opened.name, opened.columns) == (TABLE, ("instruction", "output"))
    assert values_in(opened) == ROWS
    assert {place for place, _, _ in rows_in(opened)} == {TABLE}


def test_a_table_that_was_not_given_is_refused(open_):
    with pytest.raises(DataError, match=r"data\.source = input:table: this workflow was given no table"):
        open_(TABLE)


@pytest.mark.parametrize(
    ("source", "is_file", "is_hub"),
    [
        ("tatsu-lab/alpaca", False, True),
        ("imdb", False, True),
        ("owner/data.v2", False, True),
        ("owner/rows.jsonl", True, False),
        ("rows.csv.gz", True, False),
        ("/data/rows", True, False),
        ("./rows", True, False),
        ("../rows", True, False),
        ("~/rows", True, False),
        ("data/*.parquet", True, False),
        ("a/b/c", True, False),
        ("s3://bucket/rows", True, False),
        (TABLE, False, False),
    ],
)
def test_files_hub_ids_and_the_table_are_told_apart_by_their_spelling(source, is_file, is_hub):
    assert (is_file_source(source), is_hub_source(source)) == (is_file, is_hub)


def test_a_folder_that_exists_is_no_hub_id(tmp_path, monkeypatch, open_):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "rows").mkdir(parents=True)
    with pytest.raises(DataError, match=r"data\.source = owner/rows: is not a file this package reads"):
        open_("owner/rows")
    assert is_hub_source("owner/others")


def test_the_version_follows_the_content_and_not_the_time(tmp_path):
    file = write(tmp_path / "rows.jsonl")
    before = version(str(file))
    os.utime(file, (1, 1))
    assert version(str(file)) == before
    write(file, [*ROWS[:-1], {"instruction": "Do 4", "output": "Done 5"}])
    assert version(str(file)) != before


def test_the_version_is_that_of_all_files_of_a_glob(tmp_path):
    write(tmp_path / "a.jsonl")
    alone = version(str(tmp_path / "*.jsonl"))
    write(tmp_path / "b.jsonl")
    assert version(str(tmp_path / "*.jsonl")) != alone


def test_the_version_does_not_depend_on_where_the_file_lies(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "rows.jsonl")
    assert version(str(tmp_path / "one" / "rows.jsonl")) == version(str(tmp_path / "two" / "rows.jsonl"))


def test_the_version_of_a_url_follows_the_store_s_own_checksum(in_memory):
    in_memory.pipe("/rows-of-test/rows.jsonl", b'{"text": "a"}\n')
    before = version("memory://rows-of-test/rows.jsonl")
    assert version("memory://rows-of-test/rows.jsonl") == before
    in_memory.pipe("/rows-of-test/rows.jsonl", b'{"text": "other"}\n')
    assert version("memory://rows-of-test/rows.jsonl") != before


def test_the_versions_of_several_sources_stand_in_order(tmp_path):
    a, b = (str(write(tmp_path / name, rows)) for name, rows in (("a.jsonl", ROWS), ("b.jsonl", ROWS[:2])))
    single = DataConfig(source=a, format="alpaca")
    several = DataConfig.model_validate(
        {"sources": [{"source": source, "format": "alpaca"} for source in (b, TABLE, a)]}
    )
    assert versions(single) == version(a)
    assert versions(several) == f"{version(b)}++{version(a)}"


def test_the_version_of_the_replayed_source_is_the_last_and_its_commit_is_pinned(tmp_path):
    a, b = (str(write(tmp_path / name, rows)) for name, rows in (("a.jsonl", ROWS), ("b.jsonl", ROWS[:2])))
    replay = {"format": "alpaca", "share": 0.5}
    data = DataConfig.model_validate({"source": a, "format": "alpaca", "replay": {**replay, "source": b}})
    assert versions(data) == f"{version(a)}+{version(b)}"
    for task in ({"source": "owner/one", "format": "alpaca"}, {"sources": [{"source": a, "format": "alpaca"}]}):
        content = {**task, "replay": {**replay, "source": "owner/two", "revision": "main"}}
        fixed = pinned(DataConfig.model_validate(content), "c0ffee+decade")
        assert fixed.replay.revision == "decade"
        assert fixed.task_sources[0].revision == ("c0ffee" if "source" in task else None)


def test_hub_datasets_are_pinned_to_the_commits_that_were_found_and_files_are_left_as_they_are(tmp_path):
    keys = [("owner/one", "main"), (TABLE, None), ("rows.jsonl", None), ("owner/two", None)]
    data = DataConfig.model_validate(
        {"sources": [{"source": source, "format": "text", "revision": revision} for source, revision in keys]}
    )
    fixed = pinned(data, "c0ffee++abc+decade")
    assert [source.revision for source in fixed.sources] == ["c0ffee", None, None, "decade"]
    assert [source.revision for source in data.sources] == ["main", None, None, None]
    assert pinned(DataConfig(source="owner/one", format="text"), "c0ffee").revision == "c0ffee"
    assert pinned(DataConfig(source="rows.jsonl", format="text"), "abc").revision is None
    with pytest.raises(ValueError, match="shorter"):
        pinned(data, "c0ffee")
