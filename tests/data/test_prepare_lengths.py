"""What becomes of long rows and of documents: cut, left out, gone on with, joined or packed; and all of it counted."""

import csv
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preparing import Preparation, positions, write_rows

from thriftune.data.packing import pack
from thriftune.data.prepared import TRAIN, VALIDATION, load_samples
from thriftune.data.tokenization import IGNORED
from thriftune.errors import DataError

FOX = "the quick brown fox jumps over the lazy dog "


@pytest.fixture
def prepared(tmp_path, tiny_tokenizer_dir):
    return Preparation(tmp_path, tiny_tokenizer_dir)


@pytest.fixture
def answers(tmp_path):
    """Twelve questions: four short, four with a long answer, four so long that no answer is left after a cut."""
    kinds = [("hi", "yes"), ("hi", FOX * 4), (FOX * 4, "yes")]
    rows = [{"prompt": f"{i} {kinds[i % 3][0]}: ", "completion": kinds[i % 3][1]} for i in range(12)]
    return write_rows(tmp_path / "answers.jsonl", rows)


def lengths(made, name=TRAIN):
    return [row["length"] for row in made.rows(name)]


def numbers(made, *names):
    return [made.count(name) for name in names]


COUNTED = ("rows", "too_long", "truncated", "split", "dropped", "examples", "token_rows")


def test_long_rows_are_cut_and_those_that_keep_no_answer_are_dropped(prepared, answers):
    made = prepared(answers, format="prompt_completion", max_length=40, long_rows="truncate")
    assert numbers(made, *COUNTED) == [12, 8, 4, 0, 4, 8, 8]
    assert max(lengths(made)) == 40
    assert all(any(label != IGNORED for label in row["labels"]) for row in made.rows(TRAIN))


def test_long_rows_are_left_out(prepared, answers):
    made = prepared(answers, format="prompt_completion", max_length=40, long_rows="drop")
    assert numbers(made, *COUNTED) == [12, 8, 0, 0, 8, 4, 4]
    assert max(lengths(made)) < 40


def test_long_rows_go_on_in_the_next_row_and_every_trained_token_is_kept(prepared, answers):
    whole = prepared(answers, format="prompt_completion", max_length=1024)
    made = prepared(answers, format="prompt_completion", max_length=40, long_rows="split")
    assert numbers(whole, *COUNTED) == [12, 0, 0, 0, 0, 12, 12]
    assert numbers(made, *COUNTED[:-1]) == [12, 8, 0, 8, 0, 12]
    assert made.count("token_rows") > 12
    assert made.count("trained_tokens") == whole.count("trained_tokens")
    assert max(lengths(made)) == 40


def test_documents_are_joined_into_full_blocks_and_every_token_is_predicted_once(prepared, tmp_path, llama_tokenizer):
    texts = [f"{i} " + FOX * (i % 3) for i in range(20)]
    file = write_rows(tmp_path / "own.jsonl", [{"text": text} for text in texts])
    made = prepared(file, max_length=32, validation_share=0.1)
    for name in (TRAIN, VALIDATION):
        blocks = made.rows(name)
        assert [block["length"] for block in blocks[:-1]] == [32] * (len(blocks) - 1)
        ids = blocks[0]["input_ids"][:1] + [i for block in blocks for i in block["input_ids"][1:]]
        wanted = [texts[position] for position in positions(20, held_out=name == VALIDATION)]
        assert llama_tokenizer.decode(ids) == "".join(f"<s>{text}</s>" for text in wanted)
        trained = sum(label != IGNORED for block in blocks for label in block["labels"])
        assert trained == len(ids) - len(wanted), "all but the BOS of each document"
    assert numbers(made, "rows", "examples", "too_long", "truncated", "dropped") == [20, 20, 0, 0, 0]


def test_packed_rows_hold_the_same_examples_with_positions_of_their_own(prepared, answers):
    plain, packed = (
        prepared(answers, format="prompt_completion", max_length=256, packing=packing) for packing in (False, True)
    )
    assert packed.rows(VALIDATION) == plain.rows(VALIDATION)
    rows = packed.rows(TRAIN)
    assert list(rows[0]) == ["input_ids", "labels", "position_ids", "length"]
    assert len(rows) < len(plain.rows(TRAIN))
    assert max(lengths(packed)) <= 256
    found = []
    for row in rows:
        starts = [i for i, position in enumerate(row["position_ids"]) if position == 0]
        for start, end in zip(starts, [*starts[1:], row["length"]], strict=True):
            assert row["position_ids"][start:end] == list(range(end - start))
            found.append((row["input_ids"][start:end], row["labels"][start:end]))
    assert sorted(found) == sorted((row["input_ids"], row["labels"]) for row in plain.rows(TRAIN))
    assert (packed.stats.packing, plain.stats.packing) == (True, False)
    assert packed.stats.train.examples == plain.stats.train.examples == 11
    assert packed.stats.train.tokens == plain.stats.train.tokens
    assert packed.stats.train.lengths == plain.stats.train.lengths == plain.stats.train.row_lengths


def test_packed_documents_are_cut_into_pieces_and_held_out_ones_are_joined(prepared, tmp_path):
    file = write_rows(tmp_path / "own.jsonl", [{"text": f"{i} " + FOX * (i % 5)} for i in range(20)])
    joined, packed = (prepared(file, max_length=32, validation_share=0.2, packing=p) for p in (False, True))
    assert packed.rows(VALIDATION) == joined.rows(VALIDATION)
    assert packed.stats.train.split > 0
    assert packed.stats.train.examples == joined.stats.train.examples == 16
    assert packed.stats.train.trained_tokens == joined.stats.train.trained_tokens
    assert max(lengths(packed)) <= 32


def mixed_rows():
    """Forty questions with copies, long ones, ones that are all prompt, and ones that cannot be used."""
    rows = [{"prompt": f"Say {i}: ", "completion": f"{i}"} for i in range(40)]
    rows[4:8] = [dict(row) for row in rows[:4]]
    rows[30:32] = [{"prompt": f"{i} " + FOX * 4, "completion": "no"} for i in (1, 2)]
    rows[32:34] = [{"prompt": f"{i} ", "completion": FOX * 4} for i in (1, 2)]
    rows[20:22] = [{"prompt": "?", "completion": text} for text in ("  ", "a </s> b")]
    return rows


def write_mixed(folder, ending):
    file = folder / f"mixed.{ending}"
    rows = mixed_rows()
    if ending == "jsonl":
        return write_rows(file, [*rows, "broken", {"prompt": "?"}])
    if ending == "json":
        file.write_text(json.dumps([*rows, 3, {"prompt": "?"}]))
    elif ending == "csv":
        with file.open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerows([["prompt", "completion"], *(row.values() for row in rows), ["?"], ["a", "b", "c"]])
    else:
        pq.write_table(pa.Table.from_pylist([*rows, {"prompt": "?"}, {"completion": "?"}]), file)
    return file


@pytest.mark.parametrize("seed", [1, 2])
def test_the_seed_of_a_run_decides_which_examples_share_a_row(prepared, tmp_path, seed):
    rows = [{"prompt": f"{i:03}: ", "completion": FOX[: 1 + 10 * (i % 3)]} for i in range(100)]
    file = write_rows(tmp_path / "rows.jsonl", rows)
    plain, packed = (
        prepared(file, format="prompt_completion", max_length=64, packing=p, seed=seed).rows(TRAIN)
        for p in (False, True)
    )
    bins = pack(np.array([row["length"] for row in plain]), 64, (seed, 0))
    wanted = [[token for i in items for token in plain[i]["input_ids"]] for items in bins]
    assert [row["input_ids"] for row in packed] == wanted


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("long_rows", ["truncate", "drop", "split"])
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_every_row_that_was_read_is_accounted_for(prepared, tmp_path, ending, long_rows, packing):
    file = write_mixed(tmp_path, ending)
    options = {"max_length": 40, "long_rows": long_rows, "packing": packing}
    made = prepared(file, format="prompt_completion", validation_share=0.3, max_rejected=0.2, seed=1, **options)
    stats = made.stats
    assert [(source.rows, source.used) for source in stats.sources] == [(42, 42)]
    assert (stats.train.rows, stats.validation.rows) == (29, 13)
    for split in (stats.train, stats.validation):
        assert split.examples + split.duplicates + split.leaked + split.dropped + split.rejected == split.rows
    assert made.count("rejected") == sum(stats.reasons.values()) == len(made.rejected()) == 4
    assert made.count("duplicates") + made.count("leaked") == 4
    if long_rows != "split":
        assert made.count("dropped") == {"truncate": 2, "drop": 4}[long_rows]
        assert sum(bar.count for bar in stats.train.lengths) == stats.train.examples


def test_a_length_that_leaves_nothing_to_train_on_is_refused(prepared, chat_rows_file, tmp_path):
    wanted = (
        r"data\.max_length = 3: nothing is left for train: of 57 rows, 57 dropped for their length\. Raise max_length"
    )
    with pytest.raises(DataError, match=wanted):
        prepared(chat_rows_file, format="chat", max_length=3)
    assert list(tmp_path.iterdir()) == []


def test_copies_that_leave_nothing_to_train_on_are_refused(prepared, tmp_path):
    file = write_rows(tmp_path / "own.jsonl", [{"text": "the same"}] * 10)
    with pytest.raises(DataError, match=r"10 identical rows: cannot be split into training and held-out"):
        prepared(file, validation_share=0.1)


def test_bad_rows_that_leave_nothing_to_measure_on_are_refused(prepared, tmp_path):
    """The first batch then holds no piece of any example, of which Arrow makes a column without values."""
    (held_out,) = positions(5, held_out=True)
    rows = [{"text": "" if i == held_out else f"row {i}"} for i in range(5)]
    reason = r"rejected \(of all rows: 1 x column 'text' is empty\)\. Repair the rejected rows, or give more"
    with pytest.raises(DataError, match=rf"nothing is left for validation: of 1 rows, 1 {reason}"):
        prepared(write_rows(tmp_path / "own.jsonl", rows), max_rejected=1.0)


def test_where_nothing_is_left_every_reason_is_named_with_its_number(prepared, tmp_path):
    """It said how many were rejected, and not why."""
    rows = [{"text": ""}, {"text": ""}, {"text": 1}, {"other": 1}, "broken", "[]"]
    reasons = r"2 x column 'text' is empty, 1 x .*, 1 x .*, 2 for other reasons"
    with pytest.raises(
        DataError, match=rf"nothing is left for train: of 5 rows, 5 rejected \(of all rows: {reasons}\)"
    ):
        prepared(write_rows(tmp_path / "own.jsonl", rows), max_rejected=1.0)


def test_a_document_longer_than_a_row_is_a_sample_that_fits(prepared, tmp_path):
    file = write_rows(tmp_path / "own.jsonl", [{"text": f"{i} " + FOX * 9} for i in range(4)])
    samples = load_samples(prepared(file, max_length=32).directory)
    assert [len(sample["input_ids"]) for sample in samples] == [16]


def test_pieces_of_a_split_row_that_hold_no_answer_are_counted(prepared, tmp_path):
    """They were left out without a word: a long prompt is cut into pieces with nothing to train on."""
    rows = [{"prompt": f"{i} " + "the quick brown fox " * 20, "completion": "yes"} for i in range(4)]
    made = prepared(
        write_rows(tmp_path / "own.jsonl", rows), format="prompt_completion", max_length=32, long_rows="split",
        validation_share=0.25,
    )  # fmt: skip
    assert made.stats.train.split == 3
    assert made.stats.train.pieces_without_answer >= 3
    assert made.stats.train.token_rows + made.stats.train.pieces_without_answer > 6
    assert "without an answer, left out" in (made.directory / "report.html").read_text()
