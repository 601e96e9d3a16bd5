"""Keys that are not read are counted and named, with what they were meant for; what peers honour is honoured."""

import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preparing import Preparation, write_rows

from thriftune.data import report
from thriftune.data.formats import FORMATS, with_columns
from thriftune.data.statistics import UnreadKey
from thriftune.data.unread import _KNOWN_KEYS, count, keys_of

CHAT = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]


@pytest.fixture
def prepared(tmp_path, tiny_tokenizer_dir):
    return Preparation(tmp_path, tiny_tokenizer_dir)


@pytest.mark.parametrize(
    ("name", "row", "keys"),
    [
        ("alpaca", {"instruction": "a", "output": "b", "input": "", "system": "", "history": []}, set()),
        ("alpaca", {"instruction": "a", "output": "b", "Input": "c", "id": 3, "none": None}, {"Input", "id"}),
        ("prompt_completion", {"prompt": "a", "completion": "b", "tools": "[]", "system": "c"}, {"tools", "system"}),
        ("text", {"text": "a", "meta": {"source": "b"}}, {"meta"}),
        ("quotes", {"quote": "a", "author": "b", "tags": ["c"]}, {"tags"}),
        ("grammar", {"sentence": "a", "corrections": ["b"], "task": "c"}, {"task"}),
        ("chat", {"messages": CHAT, "system": "Be brief.", "functions": [{}]}, {"functions"}),
        ("chat", {"messages": [{**CHAT[0], "date": "1.1."}, {**CHAT[1], "train": False}]}, {"messages[].date"}),
        ("chat", {"messages": [{**CHAT[0], "train": True}, CHAT[1]]}, {"messages[].train of user"}),
        ("chat", {"messages": [{**CHAT[0], "weight": 0}, {**CHAT[1], "loss": 0.7}]}, {"messages[].loss"}),
        ("chat", {"messages": [{**CHAT[0], "tool_calls": [{}]}, CHAT[1]]}, {"messages[].tool_calls of user"}),
        ("chat", {"messages": ["no message", 3]}, set()),
        ("chat", {"messages": "no list"}, set()),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "a", "content": "b", "train": 1}], "id": "c"},
            {"id", "conversations[].content", "conversations[].train of user"},
        ),
    ],
)  # fmt: skip
def test_what_is_not_read_is_found_wherever_it_stands(name, row, keys):
    assert keys_of(row, FORMATS[name]) == keys


def test_mapped_columns_are_read_and_named_as_the_data_has_them():
    mapped = with_columns(FORMATS["chat"], {"messages": "turns"})
    row = {"turns": [{**CHAT[0], "id": 1}, CHAT[1]], "messages": "of something else"}
    assert keys_of(row, mapped) == {"turns[].id", "messages"}


def hints(made):
    return {key.name: (key.rows, key.hint) for source in made.stats.sources for key in source.unread}


def test_they_are_in_every_report_with_their_numbers_and_what_they_were_meant_for(prepared, tmp_path, caplog):
    rows = [{"instruction": f"Do {i}", "output": f"Done {i}", "Input": "this", "id": i + 1} for i in range(20)]
    rows += [{**row, "instruction": "And " + row["instruction"], "tools": [{}]} for row in rows[:5]]
    with caplog.at_level("INFO"):
        made = prepared(write_rows(tmp_path / "own.jsonl", rows), format="alpaca", max_length=1024)
    assert made.stats.sources[0].unread == (
        UnreadKey("Input", 25, "did you mean 'input'?"),
        UnreadKey("tools", 5, "chat, sharegpt read it, but alpaca does not"),
        UnreadKey("id", 25),
    )
    assert "not read in 25 rows: Input (did you mean 'input'?), of " in caplog.text
    assert "also not read: id, of " in caplog.text
    page = (made.directory / report.HTML).read_text()
    assert "did you mean &#39;input&#39;?" in page
    assert json.loads((made.directory / report.JSON).read_text())["sources"][0]["unread"][0]["rows"] == 25


def test_columns_of_parquet_and_csv_are_named_too(prepared, tmp_path):
    table = pa.table({"prompt": ["a", "b", "c"], "completion": ["d", "e", "f"], "Prompt ": ["g", "h", "i"]})
    pq.write_table(table, tmp_path / "rows.parquet")
    made = prepared(tmp_path / "rows.parquet", format="prompt_completion")
    assert hints(made) == {"Prompt ": (3, "")}
    (tmp_path / "rows.csv").write_text("instruction,output,Context,note\na,b,c,\nd,e,,\nf,g,h,\n")
    made = prepared(tmp_path / "rows.csv", format="alpaca", max_length=1024)
    assert hints(made) == {"Context": (2, "did you mean 'input'?")}


def test_keys_inside_of_messages_have_hints(prepared, tmp_path):
    rows = [
        {"messages": [CHAT[0], {**CHAT[1], "content": f"So, {i}.", "Weight": 0, "train": "perhaps"}]} for i in range(9)
    ]
    made = prepared(write_rows(tmp_path / "own.jsonl", rows), format="chat")
    assert hints(made) == {
        "messages[].Weight": (9, "did you mean 'weight'?"),
        "messages[].train": (9, "only true, false, 1 and 0 are read"),
    }


def test_endlessly_many_keys_are_not_all_kept_in_memory():
    counts = Counter()
    for number in range(3 * _KNOWN_KEYS):
        count(counts, {(0, f"key {number} " + "x" * 100): 1})
    assert len(counts) == _KNOWN_KEYS + 1
    assert counts[0, "other keys"] == 2 * _KNOWN_KEYS
    assert max(len(key) for _, key in counts) <= 60
