"""Every kind of file gives its rows with their numbers; a bad row is told in its place, a bad file in one error."""

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from thriftune.config.formats import ENDINGS, ending_of
from thriftune.data.examples import RowError
from thriftune.data.readers import NotAnObjectError, columns_of, count_rows, decode, read_file
from thriftune.errors import DataError

ROWS = [{"q": f"Question {i}?", "a": f'Line one, "{i}".\nLine two: café 😀'} for i in range(5)]


def separated(rows, delimiter=","):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def json_lines(rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def as_parquet(table):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


CONTENTS = {
    ".jsonl": json_lines(ROWS),
    ".json": json.dumps(ROWS, indent=1).encode(),
    ".csv": separated(ROWS),
    ".tsv": separated(ROWS, "\t"),
    ".txt": "\n\n".join(row["a"] for row in ROWS).encode(),
    ".parquet": as_parquet(pa.Table.from_pylist(ROWS)),
}
SQUEEZED = {"": bytes, ".gz": gzip.compress, ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True)}


@pytest.fixture
def write(tmp_path):
    """Write bytes to a file of this name, and return its path."""

    def write_bytes(name, content):
        file = tmp_path / name
        file.write_bytes(content)
        return file

    return write_bytes


def read(file, sample_by="paragraph"):
    """The rows of a file by number, as text where one is refused; and they are as many as were counted."""
    rows = list(read_file(file, sample_by))
    assert count_rows(file, sample_by) == len(rows)
    return [(number, decoded(raw)) for number, raw in rows]


def decoded(raw):
    try:
        return decode(raw)
    except RowError as error:
        return f"refused: {error}"


def test_the_endings_are_those_that_have_a_content_here():
    assert {"." + ending.split(".")[1] for ending in ENDINGS} == set(CONTENTS)
    assert len(ENDINGS) == 16


@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending_gives_the_same_rows_from_one_on(write, ending, upper):
    """Tab-separated files named .TSV were once read with commas."""
    _, kind, *compression = ending.split(".")
    content = SQUEEZED["".join(f".{c}" for c in compression)](CONTENTS[f".{kind}"])
    file = write("rows" + (ending.upper() if upper else ending), content)
    wanted = [{"text": row["a"]} for row in ROWS] if kind == "txt" else ROWS
    assert read(file) == list(enumerate(wanted, 1))
    assert columns_of(file) == list(wanted[0])


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_a_file_of_several_compressed_parts_is_read_to_its_end(write, compression):
    squeeze = SQUEEZED[compression]
    file = write(f"rows.jsonl{compression}", squeeze(json_lines(ROWS[:2])) + squeeze(json_lines(ROWS[2:])))
    assert read(file) == list(enumerate(ROWS, 1))


@pytest.mark.parametrize(
    ("name", "ending"),
    [
        ("a.jsonl", ".jsonl"),
        ("A.JSON.GZ", ".json.gz"),
        ("s3://bucket/*.csv*", ".csv"),
        ("a.parquet", ".parquet"),
        ("a.parquet.gz", None),
        ("a.jsonl.bz2", None),
        ("jsonl", None),
        ("owner/rows", None),
    ],
)
def test_the_ending_decides_how_a_file_is_read(name, ending):
    assert ending_of(name) == ending


def test_json_lines_are_numbered_by_line_and_blank_ones_are_no_rows(write):
    file = write("rows.jsonl", b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}\n\n{"a": 3}')
    assert read(file) == [(1, {"a": 1}), (4, {"a": 2}), (6, {"a": 3})]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"a": 1', "is not JSON ("),
        (b"not json", "is not JSON ("),
        (b'{"a": "caf\xe9"}', "is not UTF-8"),
        (b"[1, 2]", "is a JSON list, not an object"),
        (b"null", "is a JSON NoneType, not an object"),
        (b'{"a": ' + b"1" * 6000 + b"}", "is not JSON that can be read"),
        (b"[" * 300_000, "is nested more than 64 levels deep"),
    ],
    ids=["cut", "text", "latin-1", "list", "null", "number", "brackets"],
)
def test_a_bad_line_is_refused_in_its_place_and_the_others_are_read(write, line, reason):
    first, bad, last = read(write("rows.jsonl", b'{"a": 1}\n' + line + b'\n{"a": 3}\n'))
    assert (first, last) == ((1, {"a": 1}), (3, {"a": 3}))
    assert bad[0] == 2
    assert bad[1].startswith(f"refused: {reason}")


def test_csv_rows_count_from_the_one_after_the_header_and_may_hold_line_breaks(write):
    file = write("rows.csv", b'\xef\xbb\xbfq,a\r\n"one\r\ntwo, three","say ""so"""\r\n\r\n4,5\r\n')
    assert read(file) == [(1, {"q": "one\r\ntwo, three", "a": 'say "so"'}), (2, {"q": "4", "a": "5"})]


def test_csv_values_stay_the_text_they_are(write):
    """pandas reads an answer "NA" as missing, and "007" as the number 7."""
    values = ["NA", "007", "null", "1e5", "", "True", " x "]
    file = write("rows.csv", separated([{"q": value, "a": "1.0"} for value in values]))
    assert [row["q"] for _, row in read(file)] == values
    assert {row["a"] for _, row in read(file)} == {"1.0"}


def test_csv_rows_with_too_many_or_too_few_fields_are_refused_in_their_place(write):
    assert read(write("rows.csv", b"q,a\n1,2\n1,2,3\n1\n3,4\n")) == [
        (1, {"q": "1", "a": "2"}),
        (2, "refused: has 3 fields, but the header has 2"),
        (3, "refused: has 1 fields, but the header has 2"),
        (4, {"q": "3", "a": "4"}),
    ]


def test_a_very_long_csv_field_is_read(write):
    text = "x" * 200_000  # Python's own limit is 131072
    assert read(write("rows.csv", separated([{"q": text, "a": "b"}]))) == [(1, {"q": text, "a": "b"})]


def test_empty_lines_before_a_csv_header_are_no_header(write):
    """Every row was refused once, for having more fields than a header of none."""
    assert read(write("rows.csv", b"\n\r\nq,a\n1,2\n")) == [(1, {"q": "1", "a": "2"})]


def test_csv_bytes_that_are_not_utf8_do_not_end_the_file(write):
    rows = read(write("rows.csv", "q,a\n1,2\ncafé,3\n".encode("latin-1")))
    assert rows[0] == (1, {"q": "1", "a": "2"})
    with pytest.raises(UnicodeEncodeError):  # by which the conversion tells that it is no text
        rows[1][1]["q"].encode()


def test_a_csv_header_that_names_a_column_twice_is_refused(write):
    with pytest.raises(DataError, match=r"rows\.csv: could not be read as CSV: its header has a, q more than once"):
        read(write("rows.csv", b"q,a,b,q,a\n1,2,3,4,5\n"))


def test_the_ending_at_the_end_decides_what_separates_fields(write):
    """Any .tsv in the name made it tab-separated once."""
    assert read(write("from.tsv.csv", b"q,a\n1,2\n")) == [(1, {"q": "1", "a": "2"})]


def test_a_json_list_may_hold_what_is_no_row_and_open_with_a_byte_order_mark(write):
    """With a byte order mark, which Windows editors write, the whole list was once refused."""
    file = write("rows.json", b'\xef\xbb\xbf \r\n[{"a": 1.5}, 3, [1], {"a": "b"}]\n')
    assert read(file) == [
        (1, {"a": 1.5}),
        (2, "refused: is a JSON int, not an object"),
        (3, "refused: is a JSON list, not an object"),
        (4, {"a": "b"}),
    ]


def test_json_lines_under_json_are_read_as_they_are(write):
    assert read(write("rows.json", b'{"a": 1}\n\nno\n{"a": 2}\n')) == [
        (1, {"a": 1}),
        (3, "refused: is not JSON (Expecting value)"),
        (4, {"a": 2}),
    ]


@pytest.mark.parametrize(
    "content",
    [b'[{"a": 1},', b'[{"a": 1}] {"a": 2}', b'[{"a": 1} {"a": 2}]', b'[{"a": 1},]', b"["],
    ids=["cut", "trailing", "no comma", "comma at the end", "open"],
)
def test_a_json_list_that_breaks_off_is_one_error(write, content):
    with pytest.raises(DataError, match=r"(?s)rows\.json: could not be read as JSON: .* write JSON Lines") as caught:
        read(write("rows.json", content))
    assert len(caught.value.problems) == 1


def string_array(*values):
    """An Arrow array of texts from bytes, which need not be UTF-8."""
    ends = [0]
    for value in values:
        ends.append(ends[-1] + len(value))
    offsets = pa.array(ends, pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.string(), len(values), [None, offsets, pa.py_buffer(b"".join(values))])


def test_a_parquet_value_that_is_not_utf8_spoils_its_row_only(write):
    values = [b"row %d" % i for i in range(1500)]
    values[1200] = b"caf\xe9"
    rows = read(write("rows.parquet", as_parquet(pa.table({"a": string_array(*values)}))))
    assert rows[1200] == (1201, "refused: holds a value that is not UTF-8, or that cannot be read")
    del rows[1200], values[1200]
    assert [row["a"].encode() for _, row in rows] == values


def test_a_parquet_date_that_python_has_no_number_for_spoils_its_row_only(write):
    """It came out as an OverflowError once, from a column that no format reads."""
    table = pa.table({"a": ["x", "y"], "day": pa.array([2**30, 1], pa.date32())})
    rows = read(write("rows.parquet", as_parquet(table)))
    assert rows[0][1].startswith("refused: holds a value")
    assert rows[1][1]["a"] == "y"


@pytest.mark.parametrize(
    ("sample_by", "texts"),
    [
        ("line", ["one", "two", "three  "]),
        ("paragraph", ["one\r\ntwo", "three  "]),
        ("document", ["\r\none\r\ntwo\r\n \r\n\r\nthree  \r\n"]),
    ],
)
def test_a_row_of_text_is_a_line_a_paragraph_or_all_of_it(write, sample_by, texts):
    file = write("rows.txt", b"\xef\xbb\xbf\r\none\r\ntwo\r\n \r\n\r\nthree  \r\n")
    assert read(file, sample_by) == [(number, {"text": text}) for number, text in enumerate(texts, 1)]


@pytest.mark.parametrize("sample_by", ["line", "paragraph", "document"])
def test_only_line_breaks_end_a_line(write, sample_by):
    """`str.splitlines` also breaks at form feeds and at what old systems used for line breaks."""
    text = "one\x0ctwo\x85three\u2028four"
    assert read(write("rows.txt", text.encode()), sample_by) == [(1, {"text": text})]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.csv", "rows.txt", "rows.jsonl.gz", "rows.csv.zst"])
@pytest.mark.parametrize("content", [b"", b"\n \n"], ids=["empty", "blank"])
def test_a_file_with_nothing_in_it_has_no_rows_and_no_columns(write, name, content):
    squeezed = SQUEEZED["." + name.split(".")[-1]](content) if name.count(".") == 2 else content
    file = write(name, squeezed)
    assert read(file) == []
    assert columns_of(file) == []
    if not name.endswith(".csv"):
        assert read(file, "document") == []


@pytest.mark.parametrize(
    ("kind", "compression"),
    [(".jsonl", ".gz"), (".jsonl", ".zst"), (".csv", ".gz"), (".csv", ".zst"), (".parquet", "")],
)
@pytest.mark.parametrize("damage", ["half", "end", "all"])
def test_a_damaged_file_is_one_error_wherever_it_is_looked_at(write, kind, compression, damage):
    """Of a damaged Parquet file the columns were once asked for first, which gave pyarrow's own error."""
    whole = SQUEEZED[compression](CONTENTS[kind])
    name = f"rows{kind}{compression}"
    file = write(name, {"half": whole[: len(whole) // 2], "end": whole[:-3], "all": b"hello"}[damage])
    wanted = rf"(?s)data\.source = .*{name}: could not be read as [\w ]+: .+ Repair the file\."
    for look in (lambda: list(read_file(file)), lambda: count_rows(file), lambda: columns_of(file)):
        with pytest.raises(DataError, match=wanted) as caught:
            look()
        assert len(caught.value.problems) == 1


def test_a_file_that_is_not_there_or_of_no_known_kind_is_one_error(tmp_path, write):
    with pytest.raises(DataError, match="could not be read as JSON Lines: .*No such file"):
        list(read_file(tmp_path / "none.jsonl"))
    with pytest.raises(DataError, match=r"rows\.xlsx: could not be read as rows: it does not end in \.jsonl, "):
        list(read_file(write("rows.xlsx", b"x")))


def test_columns_are_those_of_the_first_rows_in_order_of_appearance(write):
    rows = [{"b": 1, "a": 2}, {"a": 3, "c": 4}, *[{"a": 5}] * 100, {"late": 6}]
    file = write("rows.jsonl", b"broken\n" + json_lines(rows))
    assert columns_of(file) == ["b", "a", "c"]


def test_a_quote_that_is_never_closed_is_refused_with_its_line(write):
    """It once swallowed the rest of the file as a single rejected row."""
    with pytest.raises(DataError, match="could not be read as CSV: the quote that opens in line 3 is never closed"):
        read(write("rows.csv", b'a,b\n1,2\n"open,3\n' + b"4,5\n" * 50))


def test_lines_that_a_stray_quote_swallowed_are_named(write):
    rows = list(read_file(write("rows.csv", b'a,b\n1,2\n"open,3\n4,5\n6,"closed",7\n8,9\n')))
    refused = [str(raw) for _, raw in rows if isinstance(raw, RowError)]
    assert refused == ["is not CSV (',' expected after '\"'), from line 3 to 5"]
    assert rows[-1][1] == {"a": "8", "b": "9"}


def test_what_is_no_object_says_the_same_in_another_process():
    import pickle

    error = pickle.loads(pickle.dumps(NotAnObjectError([1, 2])))
    assert (error.value, str(error)) == ([1, 2], "is a JSON list, not an object")
