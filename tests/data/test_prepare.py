"""A prepared dataset: split without overlap, the same every time, and refused with the rows that are wrong."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thriftune import artifacts
from thriftune.config import DataConfig
from thriftune.data import prepare
from thriftune.data.prepare import TRAIN, VALIDATION, load_samples, load_split, split_indices
from thriftune.data.rejection import REJECTED
from thriftune.data.tokenization import IGNORED
from thriftune.errors import DataError


@pytest.fixture
def prepared(tmp_path, tiny_tokenizer_dir):
    """Prepare a dataset, and return its directory."""
    made = []

    def make(source, *, seed=0, **options) -> Path:
        config = DataConfig.model_validate({"source": str(source), "format": "chat", "max_length": 128, **options})
        made.append(tmp_path / f"prepared-{len(made)}")
        prepare.prepare(config, seed=seed, model_dir=tiny_tokenizer_dir, destination=made[-1])
        return made[-1]

    return make


@pytest.fixture
def rows_of(tmp_path):
    """The rows of one split of a prepared dataset."""
    return lambda directory, name: load_split(directory, name, tmp_path / "cache").to_list()


@pytest.fixture
def write_rows(tmp_path):
    """Write rows as JSONL."""

    def write(rows):
        file = tmp_path / "own.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    return write


@given(st.integers(2, 300), st.floats(0.001, 0.999), st.integers(0, 50), st.none() | st.integers(2, 400))
def test_a_split_is_disjoint_and_whole(count, share, seed, max_rows):
    parts = split_indices(count, share, seed, max_rows)
    train, validation = parts[TRAIN], parts[VALIDATION]
    assert not set(train) & set(validation)
    assert len(train) + len(validation) == min(count, max_rows or count)
    assert train
    assert validation
    assert set(train) | set(validation) <= set(range(count))
    assert train == sorted(train)
    assert parts == split_indices(count, share, seed, max_rows)


def test_the_share_is_what_is_held_out_and_the_seed_decides_which():
    assert len(split_indices(100, 0.1, 0, None)[VALIDATION]) == 10
    choices = {tuple(split_indices(100, 0.1, seed, None)[VALIDATION]) for seed in range(5)}
    assert len(choices) == 5


@pytest.mark.parametrize(("count", "max_rows"), [(1, None), (0, None), (10, 1)])
def test_fewer_than_two_rows_cannot_be_split(count, max_rows):
    with pytest.raises(DataError, match="cannot be split"):
        split_indices(count, 0.5, 0, max_rows)


def test_a_prepared_dataset_holds_every_row_once_with_its_labels(prepared, rows_of, chat_rows_file, llama_tokenizer):
    directory = prepared(chat_rows_file, validation_share=0.1)
    train, validation = rows_of(directory, TRAIN), rows_of(directory, VALIDATION)
    assert (len(train), len(validation)) == (54, 6)
    texts = {llama_tokenizer.decode(row["input_ids"]) for row in [*train, *validation]}
    assert len(texts) == 60
    for row in [*train, *validation]:
        assert set(row) == {"input_ids", "labels"}
        trained = [label for label in row["labels"] if label != IGNORED]
        assert row["input_ids"][-len(trained) :] == trained
        assert llama_tokenizer.decode(trained).endswith(".</s>")


def test_the_manifest_counts_what_was_written(prepared, rows_of, chat_rows_file):
    directory = prepared(chat_rows_file, validation_share=0.1, seed=3)
    manifest = artifacts.read_manifest(directory)
    assert manifest["kind"] == "dataset"
    assert manifest["seed"] == 3
    assert manifest["data"]["source"] == str(chat_rows_file)
    for name, part in ((TRAIN, "train"), (VALIDATION, "validation")):
        rows = rows_of(directory, name)
        assert manifest[part]["rows"] == manifest[part]["token_rows"] == len(rows)
        assert manifest[part]["tokens"] == sum(len(r["input_ids"]) for r in rows)
        assert manifest[part]["trained_tokens"] == sum(label != IGNORED for r in rows for label in r["labels"])
        assert (manifest[part]["truncated"], manifest[part]["dropped"]) == (0, 0)


def test_two_runs_make_the_same_bytes_and_another_seed_makes_others(prepared, chat_rows_file):
    first, second, other = (prepared(chat_rows_file, seed=seed) for seed in (1, 1, 2))
    prints = [artifacts.read_manifest(d)["fingerprint"] for d in (first, second, other)]
    assert prints[0] == prints[1] != prints[2]
    assert (first / TRAIN).read_bytes() == (second / TRAIN).read_bytes()
    assert prints[0] == prepare.fingerprint(first)


def test_max_rows_uses_only_so_many(prepared, rows_of, chat_rows_file):
    directory = prepared(chat_rows_file, max_rows=10, validation_share=0.2)
    assert (len(rows_of(directory, TRAIN)), len(rows_of(directory, VALIDATION))) == (8, 2)


def test_a_missing_column_is_named_beside_those_there_are(prepared, write_rows):
    file = write_rows([{"question": "a", "output": "b"}] * 3)
    with pytest.raises(
        DataError, match=r"data\.format = alpaca: needs the columns instruction; .* has question, output"
    ):
        prepared(file, format="alpaca")


@pytest.fixture
def file_with_bad_rows(write_rows):
    """Twenty text rows, of which the third and the tenth that train and the first held-out one are blank."""
    parts = split_indices(20, 0.1, 0, None)
    bad = [parts[TRAIN][2], parts[TRAIN][9], parts[VALIDATION][0]]
    rows = [{"text": "  " if i in bad else f"row {i}"} for i in range(20)]
    return write_rows(rows), [index + 1 for index in bad]


def test_bad_rows_of_both_splits_are_named_by_their_number_in_the_source(prepared, file_with_bad_rows):
    file, numbers = file_with_bad_rows
    with pytest.raises(DataError) as caught:
        prepared(file, format="text", validation_share=0.1, max_rejected=0.1)
    share, *named = caught.value.problems
    assert share.field == "data.max_rejected"
    assert "3 of 20 rows cannot be used: 3 x column 'text' is empty" in share.message
    assert [p.field for p in named] == [f"{file}, row {number}" for number in numbers]
    assert all("column 'text' is empty" in p.message for p in named)


def test_as_many_bad_rows_as_are_allowed_are_set_aside_and_listed(prepared, rows_of, file_with_bad_rows):
    import pyarrow.parquet as pq

    file, numbers = file_with_bad_rows
    directory = prepared(file, format="text", validation_share=0.1, max_rejected=0.15)
    listed = pq.read_table(directory / REJECTED).to_pylist()
    assert listed == [{"source": str(file), "row": n, "reason": "column 'text' is empty"} for n in numbers]
    manifest = artifacts.read_manifest(directory)
    assert (manifest["train"]["rejected"], manifest["validation"]["rejected"]) == (2, 1)
    assert (len(rows_of(directory, TRAIN)), len(rows_of(directory, VALIDATION))) == (16, 1)
    assert len(load_samples(directory)) == 1


def test_a_dataset_without_bad_rows_lists_none(prepared, chat_rows_file):
    import pyarrow.parquet as pq

    table = pq.read_table(prepared(chat_rows_file) / REJECTED)
    assert table.column_names == ["source", "row", "reason"]
    assert table.num_rows == 0


def test_of_many_bad_rows_the_first_five_are_named(prepared, write_rows):
    with pytest.raises(DataError) as caught:
        prepared(write_rows([{"text": ""}] * 40), format="text")
    assert len(caught.value.problems) == 6
    assert "40 of 40 rows cannot be used" in str(caught.value)


def test_what_the_chat_template_refuses_is_a_bad_row(prepared, write_rows, tmp_path):
    turn = {"role": "user", "content": "hi"}
    answer = {"role": "assistant", "content": "yes"}
    file = write_rows([{"messages": [turn, turn, answer]}] * 4)
    with pytest.raises(DataError, match=r"row 1: the model's chat template refuses it: .*must alternate"):
        prepared(file, validation_share=0.01)
    assert not (tmp_path / "prepared-0").exists()


def test_a_length_that_leaves_nothing_to_train_on_is_refused(prepared, chat_rows_file):
    with pytest.raises(DataError, match=r"data\.max_length = 3: no row for train.* keeps a token.*Raise max_length"):
        prepared(chat_rows_file, max_length=3)


def test_long_rows_are_cut_and_counted(prepared, rows_of, chat_rows_file):
    whole = rows_of(prepared(chat_rows_file, validation_share=0.02), TRAIN)
    longest = max(len(row["input_ids"]) for row in whole)
    too_long = sum(len(row["input_ids"]) == longest for row in whole)
    directory = prepared(chat_rows_file, validation_share=0.02, max_length=longest - 1)
    rows = rows_of(directory, TRAIN)
    counts = artifacts.read_manifest(directory)["train"]
    assert max(len(row["input_ids"]) for row in rows) == longest - 1
    assert counts["truncated"] == too_long
    assert counts["token_rows"] == counts["rows"] == 59


def test_rows_that_keep_no_answer_are_dropped_and_counted(prepared, rows_of, write_rows):
    questions = ["hi", "the quick brown fox jumps over the lazy dog " * 3] * 4
    answer = {"role": "assistant", "content": "yes"}
    file = write_rows([{"messages": [{"role": "user", "content": q}, answer]} for q in questions])
    directory = prepared(file, max_length=40, validation_share=0.3)
    counts = [artifacts.read_manifest(directory)[part] for part in ("train", "validation")]
    assert sum(c["dropped"] for c in counts) == 4
    assert sum(c["token_rows"] for c in counts) == 4
    assert all(any(label != IGNORED for label in row["labels"]) for row in rows_of(directory, TRAIN))


def test_long_texts_are_split_into_more_rows(prepared, rows_of, write_rows):
    file = write_rows([{"text": f"{i} " + "the quick brown fox " * 20} for i in range(4)])
    directory = prepared(file, format="text", max_length=32)
    counts = artifacts.read_manifest(directory)["train"]
    assert counts["rows"] == 3
    assert counts["token_rows"] == len(rows_of(directory, TRAIN)) > 3
    assert counts["truncated"] == 0


def test_a_text_that_fills_its_row_still_ends_in_eos(prepared, rows_of, write_rows, llama_tokenizer):
    text = "the quick brown fox"
    length = len(llama_tokenizer(text)["input_ids"])
    directory = prepared(write_rows([{"text": text}] * 4), format="text", max_length=length)
    ids = [i for row in rows_of(directory, TRAIN) for i in row["input_ids"]]
    assert llama_tokenizer.eos_token_id in ids


def test_samples_are_held_out_questions_without_their_answers(prepared, rows_of, chat_rows_file, llama_tokenizer):
    directory = prepared(chat_rows_file, validation_share=0.2)
    samples = load_samples(directory)
    held_out = {llama_tokenizer.decode(row["input_ids"]) for row in rows_of(directory, VALIDATION)}
    assert len(samples) == 4
    for sample in samples:
        prompt = llama_tokenizer.decode(sample["input_ids"])
        assert prompt == f"<s>[INST] {sample['question']} [/INST]"
        assert sample["reference"].strip()
        assert prompt + sample["reference"] + "</s>" in held_out


def test_samples_of_plain_text_are_continued_from_the_middle(prepared, write_rows, llama_tokenizer):
    file = write_rows([{"text": f"{i} the quick brown fox jumps"} for i in range(6)])
    samples = load_samples(prepared(file, format="text", validation_share=0.5))
    assert len(samples) == 3
    for sample in samples:
        opening = llama_tokenizer.decode(sample["input_ids"], skip_special_tokens=True)
        assert opening
        assert opening + sample["reference"] == sample["question"]
