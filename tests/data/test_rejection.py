"""Rows that cannot be used: each is listed, they are counted by reason, and too many are refused."""

import logging
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preparing import Preparation, positions, write_rows

from thriftune.data.prepared import TRAIN, VALIDATION
from thriftune.data.rejection import RejectedRow, Rejections
from thriftune.errors import DataError


@pytest.fixture
def prepared(tmp_path, tiny_tokenizer_dir):
    return Preparation(tmp_path, tiny_tokenizer_dir)


@pytest.fixture
def refuse(tmp_path):
    """Add rejected rows, and ask whether they are few among so many."""

    def ask(rows, total, max_rejected):
        with Rejections(tmp_path / "rejected.parquet") as rejections:
            rejections.add(rows, len(rows))
            rejections.require_few(total, max_rejected)
        return rejections

    return ask


def rejected(count, reason="column 'a' is empty", source="a.jsonl", first=1):
    return [RejectedRow(source, number, reason) for number in range(first, first + count)]


def test_rejected_rows_are_listed_as_they_come(tmp_path):
    lots = [rejected(2), [], [*rejected(1, "is not JSON"), *rejected(1, source="b.jsonl")]]
    with Rejections(tmp_path / "rejected.parquet") as rejections:
        for lot in lots:
            rejections.add(lot, len(lot))
    listed = pq.read_table(tmp_path / "rejected.parquet").to_pylist()
    assert [RejectedRow(**row) for row in listed] == [row for lot in lots for row in lot]
    assert rejections.reasons == {"column 'a' is empty": 3, "is not JSON": 1}


@pytest.mark.parametrize(
    ("bad", "total", "max_rejected"), [(0, 10, 0.0), (1, 100, 0.01), (29, 100, 0.29), (3, 20, 0.15), (7, 7, 1.0)]
)
def test_as_many_bad_rows_as_are_allowed_pass(refuse, bad, total, max_rejected):
    """29 of 100 were more than 0.29 once: 0.29 * 100 is 28.999999999999996."""
    assert refuse(rejected(bad), total, max_rejected).reasons.total() == bad
    if bad:
        with pytest.raises(DataError, match=rf"{bad} of {total} rows \(\d+\.\d%\) cannot be used"):
            refuse(rejected(bad), total, max_rejected * 0.999)


def test_bad_rows_that_pass_are_in_the_log_with_their_reasons(refuse, caplog):
    with caplog.at_level(logging.WARNING):
        refuse([*rejected(1, "is not JSON"), *rejected(2, first=2)], 100, 0.5)
    assert "3 of 100 rows are set aside in rejected.parquet: 2 x column 'a' is empty, 1 x is not JSON" in caplog.text
    caplog.clear()
    refuse([], 100, 0.5)
    assert caplog.text == ""


def test_too_many_are_refused_with_every_reason_and_the_first_rows_of_each(refuse):
    rows = [*rejected(1, "is not JSON", first=9), *rejected(2), *rejected(3, source="b.jsonl")]
    with pytest.raises(DataError) as caught:
        refuse(rows, 40, 0.1)
    share, *reasons = caught.value.problems
    assert (share.field, share.value) == ("data.max_rejected", "0.1")
    assert share.message == "6 of 40 rows (15.0%) cannot be used."
    assert [(problem.field, problem.message) for problem in reasons] == [
        ("a.jsonl, row 1, 2; b.jsonl, row 1 and 2 more", "column 'a' is empty."),
        ("a.jsonl, row 9", "is not JSON."),
    ]
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_commonest_reasons_are_shown_and_a_template_applied_twice_has_its_remedy(refuse):
    rows = [row for i in range(20) for row in rejected(i + 1, f"reason {i}", first=100 * i + 100)]
    with pytest.raises(DataError) as caught:
        refuse([*rows, *rejected(99, "column 'text' spells out the special token '</s>'")], 1000, 0.1)
    shown = [problem.message for problem in caught.value.problems[1:]]
    assert shown[:3] == ["column 'text' spells out the special token '</s>'.", "reason 19.", "reason 18."]
    assert len(shown) == 8
    assert "data.special_tokens: keep" in caught.value.problems[1].remedy
    assert caught.value.problems[2].remedy == ""


def test_endlessly_many_reasons_are_not_all_kept_in_memory(refuse):
    rows = [RejectedRow("a.jsonl", i, f"the template says {i}") for i in range(1500)]
    rejections = refuse([*rows, *rejected(2, "the template says 3")], 10_000, 0.5)
    assert len(rejections.reasons) == 1001
    assert rejections.reasons["other reasons (see rejected.parquet)"] == 500
    assert rejections.reasons["the template says 3"] == 3
    assert rejections.reasons.total() == 1502


@pytest.fixture
def file_with_bad_rows(tmp_path):
    """Twenty documents, of which the third and the tenth that train and the first held-out one are blank."""
    train, held_out = (positions(20, held_out=held_out) for held_out in (False, True))
    bad = [train[2], train[9], held_out[0]]
    rows = [{"text": "  " if i in bad else f"row {i}"} for i in range(20)]
    return write_rows(tmp_path / "own.jsonl", rows), sorted(i + 1 for i in bad)


def test_bad_rows_of_both_splits_are_refused_by_their_number_in_the_source(prepared, file_with_bad_rows):
    file, numbers = file_with_bad_rows
    with pytest.raises(DataError) as caught:
        prepared(file, validation_share=0.1, max_rejected=0.1)
    share, named = caught.value.problems
    assert share.message == "3 of 20 rows (15.0%) cannot be used."
    assert str(named).startswith(f"{file}, row {', '.join(map(str, numbers))}: column 'text' is empty.")
    assert {path.name for path in prepared.folder.iterdir()} == {"own.jsonl"}


def test_bad_rows_that_are_few_enough_are_set_aside_and_listed(prepared, file_with_bad_rows):
    file, numbers = file_with_bad_rows
    made = prepared(file, validation_share=0.1, max_rejected=0.15)
    reason = "column 'text' is empty"
    assert made.rejected() == [{"source": str(file), "row": number, "reason": reason} for number in numbers]
    assert (made.stats.train.rejected, made.stats.validation.rejected) == (2, 1)
    assert (made.stats.train.examples, made.stats.validation.examples) == (16, 1)
    assert made.stats.reasons == {reason: 3}


def test_of_a_dataset_without_bad_rows_none_are_listed(prepared, chat_rows_file):
    made = prepared(chat_rows_file, format="chat", max_rejected=0.0)
    table = pq.read_table(made.directory / "rejected.parquet")
    assert table.schema == pa.schema([("source", pa.string()), ("row", pa.int64()), ("reason", pa.string())])
    assert (table.num_rows, made.stats.reasons) == (0, {})


def test_every_kind_of_bad_row_is_told_with_its_line(prepared, tmp_path):
    rows = [
        {"text": "good"}, '{"text": ', "[1]", {"text": ""}, {"text": 3}, {"other": "x"}, {"text": "a </s>"},
        {"text": "a \0"}, '{"text": "\\ud800"}', *({"text": f"row {i}"} for i in range(30)),
    ]  # fmt: skip
    made = prepared(write_rows(tmp_path / "own.jsonl", rows), max_rejected=0.5)
    found = {row["row"]: row["reason"] for row in made.rejected()}
    assert found == {
        2: "is not JSON (Expecting value)",
        3: "is a JSON list, not an object",
        4: "column 'text' is empty",
        5: "column 'text' holds a int, not text",
        6: "column 'text' holds nothing, not text",
        7: "column 'text' spells out the special token '</s>'",
        8: "column 'text' holds a NUL character",
        9: "column 'text' is not UTF-8",
    }
    assert made.count("examples") == 31


def test_bytes_that_are_not_utf8_reject_their_csv_row_only(prepared, tmp_path):
    file = tmp_path / "own.csv"
    file.write_bytes(b"text\n" + b"".join(b"row %d\n" % i for i in range(9)) + "café\n".encode("latin-1"))
    made = prepared(file, max_rejected=0.1)
    assert made.rejected() == [{"source": str(file), "row": 10, "reason": "column 'text' is not UTF-8"}]


def test_what_the_chat_template_refuses_is_a_bad_row(prepared, tmp_path):
    def row(*roles):
        return {"messages": [{"role": role, "content": f"{role} says {len(roles)}"} for role in roles]}

    write_rows(tmp_path / "own.jsonl", [row(*["user", "assistant"] * (i + 1)) for i in range(9)])
    write_rows(tmp_path / "bad.jsonl", [row("system", "user", "assistant")] * 2)
    with pytest.raises(DataError, match=r"bad\.jsonl, row 1, 2: the model's chat template refuses it: Conversation ro"):
        prepared(tmp_path / "*.jsonl", format="chat", max_rejected=0.0)
    made = prepared(tmp_path / "*.jsonl", format="chat", max_rejected=0.5, validation_share=0.5)
    assert (len(made.rejected()), made.count("examples")) == (2, 9)


def test_a_bad_part_of_a_row_leaves_the_other_parts(prepared, tmp_path):
    rows = [{"sentence": f"he go {i}", "corrections": [f"he goes {i}", " ", f"he went {i}"]} for i in range(4)]
    made = prepared(write_rows(tmp_path / "own.jsonl", rows), format="grammar", max_rejected=0.0)
    assert made.stats.reasons == {"correction 2 is empty or not text": 4}
    assert (made.count("rows"), made.count("rejected"), made.count("rejected_parts"), made.count("examples")) == (
        4,
        0,
        4,
        8,
    )
    assert (len(made.rows(TRAIN)), len(made.rows(VALIDATION))) == (6, 2)


def test_only_rows_of_which_nothing_is_left_count_against_the_share(tmp_path):
    """Four rows with three bad corrections each were once refused as "12 of 4 rows"."""
    bad = [RejectedRow("rows.jsonl", row, f"correction {part} is empty") for row in (1, 2) for part in (1, 2)]
    with Rejections(tmp_path / "rejected.parquet") as rejections:
        rejections.add(bad, whole=2)
        rejections.require_few(total=4, max_rejected=0.5)
        with pytest.raises(DataError, match=r"2 of 4 rows \(50\.0%\)"):
            rejections.require_few(total=4, max_rejected=0.4)
