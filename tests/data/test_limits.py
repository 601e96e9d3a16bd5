"""Giants, bombs and nesting: each spoils its own row, or its own file, in memory that has a bound."""

import gzip
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import chat_rows, write_jsonl
from preparing import Preparation

from thriftune import limits
from thriftune.config import DataConfig
from thriftune.data import json_list, unpacking
from thriftune.data.batches import batches
from thriftune.data.examples import RowError
from thriftune.data.formats import format_of
from thriftune.data.readers import COLUMNS, columns_of, count_rows, decode, read_file
from thriftune.data.selection import Mix, select
from thriftune.data.sources import open_source
from thriftune.errors import DataError
from thriftune.inference.prompts import read_prompts
from thriftune.limits import ROW_BYTES

GIANT = "giant, " * (ROW_BYTES // 7 + 1)  # with what separates values of CSV
TOO_LARGE = "is larger than 4 MiB"
TOO_DEEP = "is nested more than 64 levels deep"


def nested(levels):
    return json.loads("[" * levels + "]" * levels)


def read(file, **options):
    """The rows of a file, or why they are none, by their numbers."""

    def row(raw):
        try:
            return decode(raw)
        except RowError as error:
            return str(error)

    return {number: row(raw) for number, raw in read_file(file, **options)}


def with_giant(ending, write_text):
    """Three rows of which the second is a giant, in a file of this ending."""
    if ending == ".jsonl":
        write_text("\n".join(json.dumps({"text": text}) for text in ("one", GIANT, "three")))
    elif ending in (".csv", ".tsv"):
        between = {".csv": ",", ".tsv": "\t"}[ending]
        write_text(f'text{between}n\r\none{between}1\r\n"{GIANT}\r\n""two"",2\r\n"{between}2\r\nthree{between}3\r\n')
    else:
        write_text(f"one\n\n{GIANT}\n\nthree\n")


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".tsv", ".txt"])
def test_a_giant_spoils_its_own_row_and_the_others_are_read(tmp_path, ending, packed):
    """A line of 200 MB took 8.4 GB; of CSV, the rest of a field that is read past is no row of its own."""
    file = tmp_path / f"rows{ending}{packed}"
    opened = gzip.open if packed else open
    with opened(file, "wt", newline="") as stream:
        with_giant(ending, stream.write)
    for sample_by in ("paragraph", "line") if ending == ".txt" else ("paragraph",):
        rows = read(file, sample_by=sample_by)
        assert [rows[1]["text"], rows[3]["text"]] == ["one", "three"]
        assert rows[2].startswith(TOO_LARGE)
        assert len(rows) == count_rows(file, sample_by) == 3
        assert columns_of(file, sample_by)[0] == "text"


def test_a_document_over_the_limit_is_told_how_to_be_cut(tmp_path):
    file = tmp_path / "book.txt"
    file.write_text(GIANT)
    assert read(file, sample_by="document") == {
        1: f"{TOO_LARGE} (4 MiB); data.sample_by: paragraph cuts a file into rows"
    }


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".txt"])
def test_a_row_of_just_the_limit_is_read(tmp_path, ending):
    before, after = {".jsonl": ('{"text": "', '"}'), ".csv": ("", ""), ".txt": ("", "")}[ending]
    text = "a" * (ROW_BYTES - len(before + after) - 1)
    file = tmp_path / f"rows{ending}"
    file.write_text(("text\n" if ending == ".csv" else "") + f"{before}{text}{after}\n")
    assert read(file) == {1: {"text": text}}


def test_a_quote_that_opens_a_giant_and_never_closes_is_named_with_its_line(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text(f'a,b\n1,2\n3,"{GIANT}\n5,6\n')
    with pytest.raises(DataError, match=r"could not be read as CSV: the quote that opens in line 3 is never closed"):
        read(file)


def test_a_header_that_is_a_giant_is_refused(tmp_path):
    file = tmp_path / "rows.csv"
    file.write_text("a" * (ROW_BYTES + 1) + "\n1\n")
    with pytest.raises(DataError, match=f"could not be read as CSV: its header {TOO_LARGE}"):
        read(file)
    file.write_text(",".join(map(str, range(COLUMNS + 1))) + "\n1\n")
    with pytest.raises(DataError, match="its header has 10001 columns, but at most 10000 are read"):
        read(file)


def test_no_more_columns_are_collected_than_there_can_be(tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", [{f"{row} {n}": 1 for n in range(COLUMNS)} for row in range(4)])
    assert COLUMNS < len(columns_of(file)) <= 2 * COLUMNS


def measured(action):
    """Most bytes that Python held at a time."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("sample_by", ["paragraph", "line", "document"])
@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".txt", ".json"])
def test_what_is_over_the_limit_is_never_in_memory(tmp_path, ending, sample_by):
    file = tmp_path / f"rows{ending}"
    with file.open("w") as stream:
        stream.write({".csv": 'a\n"', ".json": "{"}.get(ending, ""))
        stream.writelines("a" * (1 << 20) for _ in range(64))
        stream.write({".csv": '"'}.get(ending, ""))
    assert measured(lambda: list(read_file(file, sample_by))) < 5 * ROW_BYTES
    assert [raw for raw in read(file, sample_by=sample_by).values() if not raw.startswith(TOO_LARGE)] == []


BOMBS = {".jsonl": b"a", ".json": b" ", ".csv": b"a", ".tsv": b'"', ".txt": b" "}


@pytest.mark.parametrize("packed", [".gz", ".zst"])
@pytest.mark.parametrize("ending", BOMBS)
def test_a_bomb_is_refused_before_it_is_in_memory(tmp_path, monkeypatch, ending, packed):
    """Those of lines and of text were refused once they were, if at all."""
    monkeypatch.setattr(unpacking, "EXPANSION_FREE_BYTES", 1 << 22)
    content = BOMBS[ending] * (1 << 25)
    squeezed = gzip.compress(content) if packed == ".gz" else pa.Codec("zstd").compress(content, asbytes=True)
    file = tmp_path / f"rows{ending}{packed}"
    file.write_bytes(squeezed)

    def refused():
        with pytest.raises(DataError, match=r"it unpacks to more than 200 times its size, [\d,]+ bytes; .* unpack it"):
            list(read_file(file))

    assert measured(refused) < 5 * ROW_BYTES


def test_small_files_may_expand_as_much_as_they_like(tmp_path):
    file = tmp_path / "rows.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"text": "the same again"}\n' * 400_000))
    assert file.stat().st_size * limits.EXPANSION < 400_000 * 28
    assert count_rows(file) == 400_000


def test_json_lists_end_where_an_item_never_does(tmp_path):
    """They are read as a whole or not at all, so the remedy is another kind of file."""
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([{"text": "one"}, {"text": GIANT}]))
    with pytest.raises(DataError, match=rf"an item {TOO_LARGE}\. Repair the file, or write JSON Lines"):
        read(file)
    file.write_text('[{"text": "one"}, ' + "[" * 200_000)
    with pytest.raises(DataError, match=r"an item is nested more than 64 levels deep\. Repair"):
        read(file)
    file.write_text('[{"text": "one"}]' + " " * 100_000 + "more")
    with pytest.raises(DataError, match="something follows the list"):
        read(file)


def test_what_follows_a_json_list_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(json_list, "_CHARACTERS", 1 << 12)
    file = tmp_path / "rows.json"
    file.write_text('[{"text": "one"}]' + " " * (1 << 24))
    assert measured(lambda: list(read_file(file))) < 1 << 20


@pytest.mark.parametrize("levels", [65, 900, 200_000])
def test_nesting_spoils_its_own_row(tmp_path, levels):
    """It was a RecursionError out of json, pickle, repr, or a template, whichever came first."""
    deep = "[" * levels + "]" * levels
    lines = tmp_path / "rows.jsonl"
    lines.write_text(f'{{"text": "one"}}\n{deep}\n{{"text": {deep}}}\n{{"text": "four"}}\n')
    assert read(lines) == {1: {"text": "one"}, 2: TOO_DEEP, 3: TOO_DEEP, 4: {"text": "four"}}
    if levels < 1000:
        listed = tmp_path / "rows.json"
        listed.write_text(f'[{{"text": "one"}}, {deep}, {{"text": {deep}}}]')
        assert read(listed) == {1: {"text": "one"}, 2: TOO_DEEP, 3: TOO_DEEP}


def test_what_is_nested_as_deep_as_may_be_is_read(tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", [{"text": "one"}, {"text": nested(63)}])
    assert read(file)[2] == {"text": nested(63)}
    assert limits.is_too_deep([nested(64)])
    assert not limits.is_too_deep(nested(64))


@pytest.mark.parametrize("group", [1, 2, 1000])
def test_a_giant_in_parquet_spoils_its_own_row(tmp_path, group):
    file = tmp_path / "rows.parquet"
    rows = [{"text": text, "n": n} for n, text in enumerate(["one", GIANT, "three", "four"])]
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=group)
    found = read(file, columns=("text",))
    assert [found[number] for number in (1, 3, 4)] == [{"text": "one"}, {"text": "three"}, {"text": "four"}]
    assert found[2].startswith(TOO_LARGE)
    assert list(read(file, columns=("n",)).values()) == [{"n": n} for n in range(4)]


def test_rows_of_parquet_are_read_as_many_at_once_as_fit(tmp_path, monkeypatch):
    """A thousand of them were: of a few megabytes each, gigabytes."""
    file = tmp_path / "rows.parquet"
    texts = [f"{n} " * (ROW_BYTES // 8) for n in range(10, 30)]
    pq.write_table(pa.table({"text": texts}), file, use_dictionary=False)
    sizes = []
    batches_of = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda *args, **o: sizes.append(o["batch_size"]) or batches_of(*args, **o)
    )
    assert [row["text"] for row in read(file).values()] == texts
    assert sizes == [limits.READ_BYTES // (3 * ROW_BYTES // 8)]


@pytest.mark.parametrize("is_nested", [False, True])
def test_rows_that_repeat_one_text_are_read_as_many_at_once_as_fit(tmp_path, monkeypatch, is_nested):
    """Of a file of 42 kB a thousand rows took 1.6 GB: it holds the text once, and memory holds it for each row."""
    file, texts = tmp_path / "rows.parquet", pa.array(["a" * 900_000]).take(pa.array([0] * 2000))
    column = pa.ListArray.from_arrays(list(range(0, 2001, 2)), texts) if is_nested else texts[:1000]
    pq.write_table(pa.table({"text": column}), file)
    del column, texts
    sizes = []
    batches_of = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches", lambda *args, **o: sizes.append(o["batch_size"]) or batches_of(*args, **o)
    )
    next(read_file(file))
    assert sizes == [4 * limits.READ_BYTES // (900_004 * (2 if is_nested else 1))]


def test_a_dictionary_that_rows_share_is_no_giant(tmp_path):
    file = tmp_path / "rows.parquet"
    column = pa.array(["a" * (ROW_BYTES - 100), "b" * (ROW_BYTES // 2), GIANT] * 3).dictionary_encode()
    pq.write_table(pa.table({"text": column, "n": list(range(9))}), file)
    rows = read(file)
    assert all(rows.pop(number).startswith(TOO_LARGE) for number in (3, 6, 9))
    assert {len(row["text"]) for row in rows.values()} == {ROW_BYTES - 100, ROW_BYTES // 2}


def test_columns_nested_deep_are_refused_by_arrow_itself(tmp_path):
    kind = pa.string()
    for _ in range(limits.DEPTH):
        kind = pa.list_(kind)
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": pa.array([None, nested(limits.DEPTH)], kind)}), file)
    with pytest.raises(DataError, match="could not be read as Parquet: Parquet schema too deeply nested"):
        read(file)


def test_a_bomb_of_parquet_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "EXPANSION_FREE_BYTES", 1 << 22)
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["a" * (1 << 24)]}), file, compression="zstd")
    with pytest.raises(DataError, match="it unpacks to more than 200 times its size"):
        read(file)


def test_a_long_row_has_a_batch_of_its_own(tmp_path):
    """It came on top of a batch that was nearly full, and is what takes the memory."""
    long = "a" * (3 << 20)
    file = write_jsonl(tmp_path / "rows.jsonl", [{"text": t} for t in ("one", "two", long, "four", long, "six")])
    config = DataConfig(source=str(file), format="text")
    opened = open_source(config, scratch=tmp_path)
    made = batches([opened], select([6], Mix(), seed=0), np.zeros(6, np.uint8))
    assert [[row.number for row in batch.rows] for batch in made] == [[1, 2], [3], [4], [5], [6]]


DEEP_CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "sky", "arguments": {"a": nested(900)}}}]}
TEXT_CALL = {
    "role": "assistant",
    "tool_calls": [{"function": {"name": "sky", "arguments": json.dumps({"a": nested(900)})}}],
}


def hostile_rows(tmp_path):
    """Sixty rows, and six that nobody can use, with why."""
    user = {"role": "user", "content": "Why?"}
    bad = {
        json.dumps({"messages": [user, DEEP_CALL]}): TOO_DEEP,
        json.dumps({"messages": [user, TEXT_CALL]}): (
            "message 2 has a tool call whose arguments are nested more than 64 levels deep"
        ),
        "[" * 200_000 + "]" * 200_000: TOO_DEEP,
        json.dumps({"messages": GIANT}): f"{TOO_LARGE} (4 MiB)",
        json.dumps({"messages": [user, {"role": "assistant", "content": "So.", "weight": "x" * 100_000}]}): (
            f"message 2 has the weight '{'x' * 100_000}"[: limits.REASON_CHARACTERS] + "..."
        ),
        json.dumps({"messages": [user], "tools": "[" * 5000}): "the last message is not the assistant's, so there is "
        "no answer to train on",
    }
    file = tmp_path / "hostile.jsonl"
    good = [json.dumps(row) for row in chat_rows()]
    file.write_text("\n".join([good[0], *bad, *good[1:]]) + "\n")
    return file, dict(enumerate(bad.values(), 2))


@pytest.mark.parametrize("processes", [1, 2])
def test_hostile_rows_are_set_aside_and_the_others_trained_on(tmp_path, tiny_tokenizer_dir, monkeypatch, processes):
    """The whole preparation ended in a RecursionError, with max_rejected: 1.0 too."""
    monkeypatch.setattr("thriftune.data.workers._SECONDS_ALONE", 0)
    file, reasons = hostile_rows(tmp_path)
    made = Preparation(tmp_path, tiny_tokenizer_dir)(file, format="chat", max_rejected=1.0, processes=processes)
    assert {row["row"]: row["reason"] for row in made.rejected()} == reasons
    assert made.count("rejected") == len(reasons)
    assert made.count("examples") == 60
    assert max(map(len, made.stats.reasons)) <= limits.REASON_CHARACTERS + 3


MANY = [["a", "b"]] * (limits.TURNS + 1)
WORDS = "word " * 20_000


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("alpaca", {"instruction": "a", "output": "b", "history": MANY}, "has more than 10,000 turns"),
        (
            "alpaca",
            {"instruction": "a", "output": "b", "history": [[WORDS, "b"]] * 60},
            "makes more than 5 MiB of text",
        ),
        ("grammar", {"sentence": "a", "corrections": ["b"] * (limits.TURNS + 1)}, "has more than 10,000 turns"),
        ("grammar", {"sentence": WORDS, "corrections": ["b"] * 60}, "makes more than 5 MiB of text"),
        ("template", {"a": WORDS, "b": "b"}, "makes more than 5 MiB of text"),
        ("chat", {"messages": [{"role": "user", "content": "a"}] * (limits.TURNS + 1)}, "has more than 10,000 turns"),
        ("sharegpt", {"conversations": [{"from": "gpt", "value": "a"}] * 20_000}, "has more than 10,000 turns"),
    ],
)
def test_a_row_that_would_become_much_more_than_it_is_is_set_aside(name, row, reason):
    """A long sentence of many corrections is repeated for each; many short turns took hours to be found in the text."""
    template = "{a} " * 60 + "{b}" if name == "template" else None
    with pytest.raises(RowError) as raised:
        list(format_of(name, template=template).read(row))
    assert str(raised.value) == reason


def test_prompts_have_the_same_limits(tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": GIANT}) + "\n")
    with pytest.raises(DataError, match=f"line 1: {TOO_LARGE}"):
        read_prompts(file)
    write_jsonl(file, [{"prompt": "Why?"}, {"prompt": nested(900)}])
    with pytest.raises(DataError, match=f"line 2 = .*: {TOO_DEEP}"):
        read_prompts(file)
