"""A prepared dataset: every row once, the same bytes every time, and a fingerprint of what decided them."""

import json
import re
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from preparing import Preparation, positions, write_rows

from thriftune import artifacts
from thriftune.config import DataConfig
from thriftune.data import batches, report, workers
from thriftune.data.prepare import fingerprint, prepare
from thriftune.data.prepared import TRAIN, VALIDATION, is_packed, load_samples, load_split
from thriftune.data.rejection import REJECTED
from thriftune.data.sources import version
from thriftune.data.tokenization import IGNORED
from thriftune.errors import DataError, ModelSourceError
from thriftune.models.tokenizer import fingerprint as tokenizer_fingerprint
from thriftune.models.tokenizer import load_tokenizer

FILES = {TRAIN, VALIDATION, REJECTED, "samples.json", report.HTML, report.JSON, "manifest.json"}


@pytest.fixture
def prepared(tmp_path, tiny_tokenizer_dir):
    return Preparation(tmp_path, tiny_tokenizer_dir)


def test_every_row_is_there_once_with_its_answer_as_labels(prepared, chat_rows_file, llama_tokenizer):
    made = prepared(chat_rows_file, format="chat", validation_share=0.1)
    train, validation = made.rows(TRAIN), made.rows(VALIDATION)
    assert (len(train), len(validation)) == (54, 6)
    assert len({*made.texts(TRAIN, llama_tokenizer), *made.texts(VALIDATION, llama_tokenizer)}) == 60
    for row in [*train, *validation]:
        assert list(row) == ["input_ids", "labels", "length"]
        assert row["length"] == len(row["input_ids"]) == len(row["labels"])
        trained = [label for label in row["labels"] if label != IGNORED]
        assert row["input_ids"][-len(trained) :] == trained
        assert llama_tokenizer.decode(trained).endswith(".</s>")


def test_training_reads_what_was_written(prepared, chat_rows_file):
    made = prepared(chat_rows_file, format="chat", packing=True)
    for name in (TRAIN, VALIDATION):
        assert load_split(made.directory, name).to_list() == made.rows(name)
    assert is_packed(load_split(made.directory, TRAIN))
    assert not is_packed(load_split(made.directory, VALIDATION))


def test_the_manifest_and_the_reports_say_what_was_written(prepared, chat_rows_file):
    made = prepared(chat_rows_file, format="chat", validation_share=0.1, seed=3, data_version="v1")
    assert {file.name for file in made.directory.iterdir()} == FILES
    manifest = artifacts.read_manifest(made.directory)
    assert (manifest["kind"], manifest["seed"], manifest["data_version"]) == ("dataset", 3, "v1")
    assert manifest["data"]["source"] == str(chat_rows_file)
    assert manifest["report"] == json.loads(json.dumps(asdict(made.stats)))
    for name, split in ((TRAIN, made.stats.train), (VALIDATION, made.stats.validation)):
        rows = made.rows(name)
        assert split.rows == split.examples == split.token_rows == len(rows)
        assert split.tokens == sum(row["length"] for row in rows)
        assert split.trained_tokens == sum(label != IGNORED for row in rows for label in row["labels"])
        assert sum(bar.count for bar in split.row_lengths) == len(rows)
    assert f"{made.stats.train.tokens:,}" in (made.directory / report.HTML).read_text()


def test_two_runs_make_the_same_bytes_of_every_file(prepared, chat_rows_file):
    first, second = (prepared(chat_rows_file, format="chat", seed=1, packing=True) for _ in range(2))
    for name in FILES:
        assert (first.directory / name).read_bytes() == (second.directory / name).read_bytes(), name


def test_several_processes_make_the_same_bytes_as_one(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "_SECONDS_ALONE", 0.0)
    monkeypatch.setattr(batches, "_BATCH_ROWS", 100)
    rows = [{"text": f"row {i} " + "the quick brown fox " * (i % 7)} for i in range(900)]
    rows += rows[:100]
    rows[10], rows[950] = "broken", {"text": "</s>"}
    file = write_rows(tmp_path / "own.jsonl", rows)
    alone, together = (prepared(file, processes=n, packing=True, max_length=64) for n in (1, 2))
    assert (alone.count("rejected"), alone.count("duplicates") + alone.count("leaked")) == (2, 98)
    for name in FILES:
        assert (alone.directory / name).read_bytes() == (together.directory / name).read_bytes(), name


def test_another_seed_holds_out_other_rows(prepared, chat_rows_file, llama_tokenizer):
    held_out = [
        set(prepared(chat_rows_file, format="chat", seed=seed, validation_share=0.2).texts(VALIDATION, llama_tokenizer))
        for seed in (0, 1)
    ]
    assert [len(texts) for texts in held_out] == [12, 12]
    assert held_out[0] != held_out[1]


def test_the_fingerprint_is_of_what_decides_the_rows_and_not_of_where_they_lie(prepared, tmp_path, llama_tokenizer):
    """The path was once part of it: the same rows in another folder were another dataset."""
    rows = [{"messages": [{"role": "user", "content": f"{i}"}, {"role": "assistant", "content": "a"}]} for i in "12345"]
    (tmp_path / "elsewhere").mkdir()
    file, moved = (write_rows(tmp_path / name, rows) for name in ("own.jsonl", "elsewhere/own.jsonl"))
    changed = write_rows(tmp_path / "changed.jsonl", [*rows[:-1], {**rows[-1], "more": 1}])
    other_template = tmp_path / "other-template"
    llama_tokenizer.save_pretrained(other_template)
    template = other_template / "chat_template.jinja"
    template.write_text(template.read_text().replace("[INST] ", "[INST]"))

    def of(source, **options):
        made = prepared(source, format="chat", data_version=version(str(source)), **options)
        manifest = artifacts.read_manifest(made.directory)
        return manifest["fingerprint"], manifest["content_sha256"]

    base = of(file)
    assert of(moved) == base
    others = [of(changed), of(file, seed=1), of(file, max_length=64), of(file, tokenizer_dir=other_template)]
    assert len({base[0], *(fingerprint for fingerprint, _ in others)}) == 5
    assert others[0][1] == base[1], "another column of a row that is not read changed what is trained on"
    assert others[3][1] != base[1]


def test_several_sources_of_the_same_rows_elsewhere_have_the_same_fingerprint():
    def of(*names, **more):
        config = DataConfig.model_validate({"sources": [{"source": n, "format": "text", **more} for n in names]})
        return fingerprint(config, 0, "a+b", "tokenizer")

    assert of("a.jsonl", "b.jsonl") == of("x/a.jsonl", "x/b.jsonl")
    assert len({of("a.jsonl", "b.jsonl"), of("a.jsonl"), of("a.jsonl", "b.jsonl", weight=1.0)}) == 3


def test_the_order_in_which_columns_are_named_does_not_matter():
    """Flyte's console and launch plans send them in another one each time."""
    columns = {"instruction": "ask", "output": "answer", "input": "given"}
    orders = (columns, dict(reversed(columns.items())))

    def source(order):
        return {"source": "a.jsonl", "format": "alpaca", "columns": order}

    for section in (source, lambda order: {"sources": [source(order)]}):
        found = [fingerprint(DataConfig.model_validate(section(order)), 0, "v", "t") for order in orders]
        assert found[0] == found[1]
    assert fingerprint(DataConfig.model_validate(source({**columns, "input": "other"})), 0, "v", "t") not in found


def test_max_rows_uses_only_so_many(prepared, chat_rows_file):
    made = prepared(chat_rows_file, format="chat", max_rows=10, validation_share=0.2)
    assert (len(made.rows(TRAIN)), len(made.rows(VALIDATION))) == (8, 2)
    (source,) = made.stats.sources
    assert (source.rows, source.used) == (60, 10)


def test_a_missing_column_is_named_beside_those_there_are(prepared, tmp_path):
    file = write_rows(tmp_path / "own.jsonl", [{"question": f"a{i}", "output": "b"} for i in range(3)])
    wanted = r"data\.format = alpaca: needs the columns instruction; .*own\.jsonl has question, output\..*data\.columns"
    with pytest.raises(DataError, match=wanted):
        prepared(file, format="alpaca")
    assert list(tmp_path.iterdir()) == [file], "something half-done was left"
    assert prepared(file, format="alpaca", columns={"instruction": "question"}).count("examples") == 3


def test_a_template_over_a_column_that_is_not_there_is_refused(prepared, tmp_path):
    file = write_rows(tmp_path / "own.jsonl", [{"question": "a", "answer": "b"}] * 3)
    with pytest.raises(DataError, match=r"data\.template = .+: needs the columns reply; .* has question, answer\."):
        prepared(file, format="template", template="Q: {question} A: {reply}")


def test_a_template_trains_on_its_last_field(prepared, tmp_path, llama_tokenizer):
    file = write_rows(tmp_path / "own.jsonl", [{"question": f"why {i}", "answer": f"because {i}"} for i in range(5)])
    made = prepared(file, format="template", template="Q: {question}\nA: {answer}")
    trained = {
        llama_tokenizer.decode([label for label in row["labels"] if label != IGNORED]).strip()
        for row in made.rows(TRAIN)
    }
    assert trained < {f"because {i}</s>" for i in range(5)}
    assert len(trained) == 4
    assert set(made.texts(TRAIN, llama_tokenizer)) < {f"<s>Q: why {i}\nA: because {i}</s>" for i in range(5)}


def test_copies_are_left_out_and_counted(prepared, tmp_path, llama_tokenizer):
    train, held_out = (positions(17, held_out=held_out, share=0.2) for held_out in (False, True))
    rows = [{"text": f"row {i}"} for i in range(17)]
    copies = [rows[held_out[0]], rows[train[3]], rows[held_out[0]]]
    rows += [{"text": row["text"], "id": i} for i, row in enumerate(copies)]
    file = write_rows(tmp_path / "own.jsonl", rows)

    def found(**policy):
        made = prepared(file, validation_share=0.2, max_length=1024, **policy)
        train, validation = made.stats.train, made.stats.validation
        assert (train.leaked, validation.leaked) == (0, 0)
        return train.duplicates, train.examples, validation.duplicates, validation.examples

    assert found() == found(leakage_check=False) == (1, 14, 2, 3)
    assert found(deduplicate=False) == found(deduplicate=False, leakage_check=False) == (0, 15, 0, 5)


def test_copies_do_not_add_to_what_is_held_out(prepared, tmp_path, llama_tokenizer):
    """Each of 200 rows ten times: a share of 0.05 held out 83 of the 200, because a copy of each was among the 100."""
    texts = [f"row {i}" for i in range(200)]
    rows = [{"text": text, "id": f"{text}, copy {copy}"} for copy in range(10) for text in texts]
    made = prepared(write_rows(tmp_path / "own.jsonl", rows), max_length=1024)
    assert (made.stats.train.examples, made.stats.validation.examples) == (190, 10)
    assert made.stats.train.leaked == 0
    train, held_out = ("".join(made.texts(name, llama_tokenizer)) for name in (TRAIN, VALIDATION))
    assert not [text for text in texts if f"{text}<" in train and f"{text}<" in held_out]


def test_rows_that_are_different_only_in_part_are_found_where_they_leak(prepared, tmp_path):
    """What a row says is one of the things that another says: seen only when both are examples."""
    held_out = positions(20, held_out=True)
    rows = [{"sentence": f"this are {i}", "corrections": ["This is it.", f"This is {i}."]} for i in range(20)]
    rows.append({"sentence": rows[held_out[0]]["sentence"], "corrections": ["This is it."]})
    file = write_rows(tmp_path / "own.jsonl", rows)
    made = prepared(file, format="grammar", validation_share=2 / 21)
    assert made.count("leaked") + made.count("duplicates") == 1


def test_a_long_document_that_is_held_out_is_kept_out_of_packed_rows_whole(prepared, tmp_path, llama_tokenizer):
    """Its first piece was taken out of training and the others stayed: held-out documents are not cut into pieces."""
    rows = [{"text": f"row {i} " + f"number {i} " * 40} for i in range(20)]
    (held_out, *_), train = (positions(20, held_out=held_out) for held_out in (True, False))
    made = prepared(
        write_rows(tmp_path / "own.jsonl", [*rows, rows[held_out]]), validation_share=0.1, max_length=32, packing=True
    )
    assert made.stats.validation.duplicates == 1
    texts = "".join(made.texts(TRAIN, llama_tokenizer))
    assert f"number {train[4]} " in texts
    assert f"number {held_out} " not in texts


def test_samples_are_held_out_questions_without_their_answers(prepared, chat_rows_file, llama_tokenizer):
    made = prepared(chat_rows_file, format="chat", validation_share=0.2)
    held_out, train = (set(made.texts(name, llama_tokenizer)) for name in (VALIDATION, TRAIN))
    samples = load_samples(made.directory)
    assert len(samples) == 4
    for sample in samples:
        prompt = llama_tokenizer.decode(sample["input_ids"])
        assert prompt == f"<s>[INST] {sample['question']} [/INST]"
        assert sample["reference"].strip()
        assert prompt + sample["reference"] + "</s>" in held_out - train


@pytest.mark.parametrize(
    "options",
    [
        {"template": "Q {q} A {a} Note {n}", "trained_fields": ["a"]},
        {"template": "Q {q} A {a}", "trained_fields": ["q", "a"]},
        {"template": "Q {q} A {a}", "train_on_inputs": True},
    ],
)
def test_a_sample_ends_where_its_last_answer_begins(prepared, tmp_path, llama_tokenizer, options):
    """Where more than the answer is trained, or more follows it, a sample was cut before EOS or in the middle."""
    rows = [{"q": f"why {i}", "a": "yes", "n": "ok"} for i in range(4)]
    file = write_rows(tmp_path / "own.jsonl", rows)
    samples = load_samples(prepared(file, format="template", validation_share=0.5, **options).directory)
    assert len(samples) == 2
    for sample in samples:
        assert re.fullmatch(r"<s>Q why \d A ?", llama_tokenizer.decode(sample["input_ids"]))
        assert sample["reference"].strip() == "yes"


def test_a_question_that_is_held_out_twice_is_one_sample(prepared, tmp_path):
    held_out = positions(20, held_out=True, share=0.2)
    rows = [{"prompt": f"Question {i}?", "completion": "Yes."} for i in range(20)]
    rows.append(rows[held_out[0]])
    made = prepared(write_rows(tmp_path / "own.jsonl", rows), format="prompt_completion", validation_share=0.2)
    assert made.stats.validation.duplicates == 1
    questions = [sample["question"] for sample in load_samples(made.directory)]
    assert questions == [rows[i]["prompt"] for i in held_out]


def test_samples_of_plain_text_are_continued_from_the_middle(prepared, tmp_path, llama_tokenizer):
    file = write_rows(tmp_path / "own.jsonl", [{"text": f"{i} the quick brown fox jumps"} for i in range(6)])
    samples = load_samples(prepared(file, validation_share=0.5).directory)
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


def test_a_bad_value_in_a_column_that_is_not_read_spoils_nothing(prepared, tmp_path):
    """A Parquet column that no format reads once had its rows rejected for bytes that are not UTF-8."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    junk = pa.Array.from_buffers(pa.string(), 3, pa.array([b"a", b"\xff\xfe", b"c"]).buffers())
    table = pa.table({"text": ["one", "two", "three"], "junk": junk})
    pq.write_table(table, tmp_path / "rows.parquet")
    made = prepared(tmp_path / "rows.parquet", format="text", validation_share=0.3)
    assert made.stats.train.rejected + made.stats.validation.rejected == 0
    assert made.stats.train.examples + made.stats.validation.examples == 3


def test_samples_come_from_every_source_in_turn(prepared, tmp_path):
    """All questions once came from the first source, whatever else was mixed in."""
    for name in "ab":
        rows = [{"prompt": f"{name}{i}", "completion": "x"} for i in range(40)]
        write_rows(tmp_path / f"{name}.jsonl", rows)
    sources = [{"source": str(tmp_path / f"{name}.jsonl"), "format": "prompt_completion"} for name in "ab"]
    made = prepared(sources=sources, validation_share=0.4)
    assert [sample["question"][0] for sample in load_samples(made.directory)] == ["a", "b", "a", "b"]


def test_a_tokenizer_that_is_not_the_one_that_was_checked_is_refused(chat_rows_file, tiny_tokenizer_dir, tmp_path):
    """What fetching had said of it, with another release of the library, was compared: no cached model fitted."""
    config = DataConfig(source=str(chat_rows_file), format="chat", max_length=128)

    def again(version):
        folder = tmp_path / "again"
        prepare(config, seed=0, tokenizer_dir=tiny_tokenizer_dir, destination=folder, tokenizer_version=version)
        return artifacts.read_manifest(folder)["fingerprint"]

    assert again(tokenizer_fingerprint(load_tokenizer(tiny_tokenizer_dir))) == again("")
    with pytest.raises(ModelSourceError, match="was changed after the preflight saw it") as caught:
        again("another")
    assert caught.value.problems[0].field == "model.source"


def test_rows_that_another_version_made_are_other_rows(monkeypatch):
    """A checkpoint of before would have gone on over other rows, under the same fingerprint."""
    config = DataConfig(source="rows.jsonl", format="chat")
    before = fingerprint(config, 0, "v", "t")
    monkeypatch.setattr("thriftune.data.prepare.PREPARATION", "other")
    assert fingerprint(config, 0, "v", "t") != before
