"""A prepared dataset: every row accounted for, the same bytes every time, and a fingerprint of what decided them."""

import json
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from thriftune import artifacts
from thriftune.config import DataConfig
from thriftune.data import report, workers
from thriftune.data.prepare import prepare
from thriftune.data.prepared import TRAIN, VALIDATION, is_packed, load_samples, load_split
from thriftune.data.rejection import REJECTED
from thriftune.data.selection import Fate, select
from thriftune.data.sources import version
from thriftune.data.statistics import stats_from_json
from thriftune.data.tokenization import IGNORED
from thriftune.errors import DataError

FILES = {TRAIN, VALIDATION, REJECTED, "samples.json", report.HTML, report.JSON, "manifest.json"}


@pytest.fixture
def prepared(tmp_path, tiny_tokenizer_dir):
    return Preparation(tmp_path, tiny_tokenizer_dir)


def test_every_row_is_there_once_with_its_answer_as_labels(prepared, chat_rows_file, llama_tokenizer):
    directory = prepared(chat_rows_file, format="chat", validation_share=0.1)
    train, validation = (rows_of(directory, name) for name in (TRAIN, VALIDATION))
    assert (len(train), len(validation)) == (54, 6)
    assert len({*texts_of(directory, TRAIN, llama_tokenizer), *texts_of(directory, VALIDATION, llama_tokenizer)}) == 60
    for row in [*train, *validation]:
        assert list(row) == ["input_ids", "labels", "length"]
        assert row["length"] == len(row["input_ids"]) == len(row["labels"])
        trained = [label for label in row["labels"] if label != IGNORED]
        assert row["input_ids"][-len(trained) :] == trained
        assert llama_tokenizer.decode(trained).endswith(".</s>")


def test_training_reads_what_was_written(prepared, chat_rows_file):
    directory = prepared(chat_rows_file, format="chat", packing=True)
    for name in (TRAIN, VALIDATION):
        assert load_split(directory, name).to_list() == rows_of(directory, name)
    assert is_packed(load_split(directory, TRAIN))
    assert not is_packed(load_split(directory, VALIDATION))


def test_the_manifest_and_the_reports_say_what_was_written(prepared, chat_rows_file):
    directory = prepared(chat_rows_file, format="chat", validation_share=0.1, seed=3, data_version="v1")
    assert {file.name for file in directory.iterdir()} == FILES
    manifest, stats = artifacts.read_manifest(directory), stats_of(directory)
    assert (manifest["kind"], manifest["seed"], manifest["data_version"]) == ("dataset", 3, "v1")
    assert manifest["data"]["source"] == str(chat_rows_file)
    assert manifest["report"] == json.loads(json.dumps(asdict(stats)))
    for name, split in ((TRAIN, stats.train), (VALIDATION, stats.validation)):
        rows = rows_of(directory, name)
        assert split.rows == split.examples == split.token_rows == len(rows)
        assert split.tokens == sum(row["length"] for row in rows)
        assert split.trained_tokens == sum(label != IGNORED for row in rows for label in row["labels"])
        assert sum(bar.count for bar in split.row_lengths) == len(rows)
    assert "<html" in (directory / report.HTML).read_text()


def test_two_runs_make_the_same_bytes_of_every_file(prepared, chat_rows_file):
    first, second = (prepared(chat_rows_file, format="chat", seed=1, packing=True) for _ in range(2))
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_several_processes_make_the_same_bytes_as_one(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_SECONDS_ALONE", 0.0)
    monkeypatch.setattr("thriftune.data.prepare._BATCH_ROWS", 100)
    rows = [{"text": f"row {i} " + "the quick brown fox " * (i % 7)} for i in range(900)]
    rows += rows[:100]
    rows[10], rows[950] = "broken", {"text": "</s>"}
    file = write_rows(tmp_path / "own.jsonl", rows)
    options = {"format": "text", "packing": True, "max_length": 64}
    alone, together = (prepared(file, processes=processes, **options) for processes in (1, 2))
    assert counts(alone, "duplicates") + counts(alone, "leaked") == 98
    assert counts(alone, "rejected") == 2
    for name in FILES:
        assert (alone / name).read_bytes() == (together / name).read_bytes(), name


def test_another_seed_holds_out_other_rows(prepared, chat_rows_file, llama_tokenizer):
    held_out = [
        set(texts_of(prepared(chat_rows_file, format="chat", seed=seed, validation_share=0.2), VALIDATION, llama_tokenizer))
        for seed in (0, 1)
    ]
    assert [len(texts) for texts in held_out] == [12, 12]
    assert held_out[0] != held_out[1]


def test_the_fingerprint_is_of_what_decides_the_rows_and_not_of_where_they_lie(
    prepared, tmp_path, llama_tokenizer, tmp_path
):
    """The path was once part of it: the same rows in another folder were another dataset."""
    rows = [{"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "a"}]} for i in "12345"]
    (tmp_path / "elsewhere").mkdir()
    file, moved = write_rows(tmp_path / "own.jsonl", rows), write_rows(tmp_path / "elsewhere/own.jsonl", rows)
    llama_tokenizer_dir = tmp_path / "other-tokenizer"
    llama_tokenizer.save_pretrained(llama_tokenizer_dir)
    template = llama_tokenizer_dir / "chat_template.jinja"
    template.write_text(template.read_text().replace("[INST] ", "[INST]"))

    def of(source, **options):
        manifest = artifacts.read_manifest(prepared(source, data_version=version(str(source)), **options))
        return manifest["fingerprint"], manifest["content_sha256"]

    base = of(file)
    assert of(moved) == base
    changed = write_rows(tmp_path / "own.jsonl", [*rows[:-1], {**rows[-1], "more": 1}], "changed.jsonl")
    others = [of(changed), of(file, seed=1), of(file, max_length=64), of(file, tokenizer_dir=llama_tokenizer_dir)]
    assert len({base[0], *(fingerprint for fingerprint, _ in others)}) == 5
    assert others[0][1] == base[1]
    assert others[3][1] != base[1]


def test_max_rows_uses_only_so_many(prepared, chat_rows_file):
    directory = prepared(chat_rows_file, format="chat", max_rows=10, validation_share=0.2)
    assert (len(rows_of(directory, TRAIN)), len(rows_of(directory, VALIDATION))) == (8, 2)
    (source,) = stats_of(directory).sources
    assert (source.rows, source.used) == (60, 10)


def test_a_missing_column_is_named_beside_those_there_are(prepared, tmp_path, tmp_path):
    file = write_rows(tmp_path / "own.jsonl", [{"question": f"a{i}", "output": "b"} for i in range(3)])
    wanted = r"data\.format = alpaca: needs the columns instruction; .*own\.jsonl has question, output\..*data\.columns"
    with pytest.raises(DataError, match=wanted):
        prepared(file, format="alpaca")
    assert list(tmp_path.iterdir()) == [file]
    assert counts(prepared(file, format="alpaca", columns={"instruction": "question"}), "rows") == 3


def test_a_template_over_a_column_that_is_not_there_is_refused(prepared, tmp_path):
    file = write_rows(tmp_path / "own.jsonl", [{"question": "a", "answer": "b"}] * 3)
    with pytest.raises(DataError, match=r"(?s)data\.template = .*: needs the columns reply; .* has question, answer\."):
        prepared(file, format="template", template="Q: {question}\nA: {reply}")


def test_a_template_trains_on_its_last_field(prepared, tmp_path, llama_tokenizer):
    file = write_rows(tmp_path / "own.jsonl", [{"question": f"why {i}", "answer": f"because {i}"} for i in range(5)])
    directory = prepared(file, format="template", template="Q: {question}\nA: {answer}")
    for row in rows_of(directory, TRAIN):
        trained = llama_tokenizer.decode([label for label in row["labels"] if label != IGNORED])
        number = trained.split()[-1].removesuffix("</s>")
        assert trained.strip() == f"because {number}</s>"
        assert llama_tokenizer.decode(row["input_ids"]) == f"<s>Q: why {number}\nA: because {number}</s>"


def test_copies_are_left_out_and_counted(prepared, tmp_path, llama_tokenizer):
    train, held_out = (positions(20, fate, share=0.2) for fate in (Fate.TRAIN, Fate.HELD_OUT))
    rows = [{"text": f"row {i}"} for i in range(20)]
    for position in (train[2], train[5], held_out[0]):  # two duplicates, or leaks, and what they are copies of
        rows[position] = {"text": "said three times"}
    rows[train[7]] = rows[train[8]]
    file = write_rows(tmp_path / "own.jsonl", rows)
    options = {"format": "text", "validation_share": 0.2, "max_length": 1024}

    def found(**more):
        directory = prepared(file, **options, **more)
        stats = stats_of(directory)
        text = "".join(texts_of(directory, TRAIN, llama_tokenizer))
        return stats.train.duplicates, stats.train.leaked, stats.validation.examples, text.count("said three times")

    assert found() == (1, 2, 4, 0)
    assert found(leakage_check=False)[:2] in ((3, 0), (2, 0), (1, 0))
    assert found(deduplicate=False) == (0, 2, 4, 0)
    assert found(deduplicate=False, leakage_check=False) == (0, 0, 4, 2)


def test_a_long_document_that_is_held_out_is_kept_out_of_packed_rows_whole(prepared, tmp_path, llama_tokenizer):
    """Its first piece was taken out of training and the others stayed: held-out documents are not cut into pieces."""
    rows = [{"text": f"row {i} " + f"number {i} " * 40} for i in range(20)]
    train, held_out = (positions(20, fate) for fate in (Fate.TRAIN, Fate.HELD_OUT))
    rows[train[3]] = rows[held_out[0]]
    directory = prepared(write_rows(tmp_path / "own.jsonl", rows), format="text", validation_share=0.1, max_length=32, packing=True)
    assert counts(directory, "leaked") == 1
    assert f"number {held_out[0]} " not in "".join(texts_of(directory, TRAIN, llama_tokenizer))


def test_samples_are_held_out_questions_without_their_answers(prepared, chat_rows_file, llama_tokenizer):
    directory = prepared(chat_rows_file, format="chat", validation_share=0.2)
    held_out, train = (set(texts_of(directory, name, llama_tokenizer)) for name in (VALIDATION, TRAIN))
    samples = load_samples(directory)
    assert len(samples) == 4
    for sample in samples:
        prompt = llama_tokenizer.decode(sample["input_ids"])
        assert prompt == f"<s>[INST] {sample['question']} [/INST]"
        assert sample["reference"].strip()
        assert prompt + sample["reference"] + "</s>" in held_out - train


def test_samples_of_plain_text_are_continued_from_the_middle(prepared, tmp_path, llama_tokenizer):
    file = write_rows(tmp_path / "own.jsonl", [{"text": f"{i} the quick brown fox jumps"} for i in range(6)])
    samples = load_samples(prepared(file, format="text", validation_share=0.5))
    assert len(samples) == 3
    for sample in samples:
        opening = llama_tokenizer.decode(sample["input_ids"], skip_special_tokens=True)
        assert opening
        assert opening + sample["reference"] == sample["question"]


def test_a_table_of_a_workflow_is_prepared_like_a_file(tmp_path, tiny_tokenizer_dir):
    file = tmp_path / "0.parquet"
    pq.write_table(pa.table({"text": [f"row {i}" for i in range(6)]}), file)
    config = DataConfig(source="input:table", format="text")
    stats = prepare(config, seed=0, tokenizer_dir=tiny_tokenizer_dir, destination=tmp_path / "out", table=[file])
    assert (stats.train.examples, stats.validation.examples) == (5, 1)
    assert [source.name for source in stats.sources] == ["input:table"]
