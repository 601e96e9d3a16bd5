"""The sample: the first rows only, converted as data preparation converts them, and what is said of them."""

import gzip
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import chat_rows, write_jsonl
from preflighting import Checking, codes

from thriftune import limits
from thriftune.data.prepare import prepare
from thriftune.data.statistics import Bin
from thriftune.models.tokenizer import load_tokenizer
from thriftune.preflight import rows, sampling


@pytest.fixture
def check(tiny_model_dir, chat_rows_file):
    return Checking(tiny_model_dir, chat_rows_file)


def pairs(count, answer="It is {}."):
    return [{"prompt": f"What is {n}?", "completion": answer.format(n)} for n in range(count)]


def read(check, tmp_path, method="full", table=(), **overrides):
    return sampling.read(check.run(method, **overrides), tmp_path / "scratch", None, table)


def tried(check, tmp_path, tokenizer_dir, **overrides):
    run = check.run(**overrides)
    sample = sampling.read(run, tmp_path / "scratch", None, ()).value
    return rows.convert(sample, run, load_tokenizer(tokenizer_dir)).value


def test_a_good_run_has_no_error_and_its_facts(check):
    result = check()
    assert codes(result) == codes(result, "warning") == set()
    result.require_ok()
    facts = result.facts
    assert (facts.rows_sampled, facts.rows_total, facts.is_whole, facts.examples) == (60, 60, True, 60)
    assert (facts.training_rows, facts.total_steps, facts.warmup_steps) == (54, 2, 1)
    assert 0 < facts.trained_share < 1
    assert facts.too_long == 0
    assert sum(bar.count for bar in facts.lengths) == 60
    assert facts.lengths[-1].high >= facts.max_length == 64
    assert facts.parameters > 100_000
    assert len(facts.model_version) == len(facts.data_version) == 16
    assert "this machine" in facts.plan


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"max_length": 20, "long_rows": "split"},
        {"long_rows": "drop"},
        {"packing": True},
        {"max_rows": 31},
        {"train_on_inputs": True},
        {"replay": {"format": "prompt_completion", "share": 0.2}},
    ],
)
def test_what_it_finds_of_all_rows_is_what_data_preparation_writes(check, tmp_path, tiny_tokenizer_dir, data):
    long = [{"messages": [*row["messages"], *row["messages"]]} for row in chat_rows()[:9]]
    file = write_jsonl(tmp_path / "rows.jsonl", [*chat_rows(), *chat_rows()[:7], *long, {"messages": []}])
    if "replay" in data:
        general = write_jsonl(tmp_path / "general.jsonl", pairs(30))
        data = {"replay": {**data["replay"], "source": str(general)}}
    data = {"source": str(file), "max_rejected": 0.1, **data}
    found = tried(check, tmp_path, tiny_tokenizer_dir, data=data)
    run = check.run(data=data)
    written = prepare(
        run.data, seed=run.seed, tokenizer_dir=tiny_tokenizer_dir, destination=tmp_path / "prepared", processes=1
    )
    assert written.train.duplicates
    assert written.train.too_long or data.get("max_rows")
    assert found.train == written.train
    assert found.validation == written.validation


def test_documents_are_joined_and_cut_as_data_preparation_does(check, tmp_path, tiny_tokenizer_dir):
    file = write_jsonl(
        tmp_path / "rows.jsonl", [{"text": f"Day {n}. " + "The sea is blue. " * n} for n in range(1, 30)]
    )
    data = {"source": str(file), "format": "text", "max_length": 32}
    found = tried(check, tmp_path, tiny_tokenizer_dir, data=data)
    run = check.run(data=data)
    written = prepare(
        run.data, seed=run.seed, tokenizer_dir=tiny_tokenizer_dir, destination=tmp_path / "prepared", processes=1
    )
    assert (found.train, found.validation) == (written.train, written.validation)
    assert max(found.lengths) > 32
    assert codes(check(data=data)) == codes(check(data=data), "warning") == set()


def test_only_the_first_rows_of_a_file_are_read_and_the_others_counted(check, tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", pairs(2500))
    sample = read(check, tmp_path, data={"source": str(file), "format": "prompt_completion"}).value
    assert (sample.count, sample.is_whole) == (1000, False)
    assert sample.sources[0].total == 2500
    result = check(data={"source": str(file), "format": "prompt_completion"}, training={"max_steps": None})
    assert result.facts.training_rows == 2250
    assert result.facts.total_steps == 563
    assert (result.facts.rows_sampled, result.facts.rows_total, result.facts.is_whole) == (1000, 2500, False)


def test_a_large_batch_is_sampled_twice_over(check, tmp_path):
    file = write_jsonl(tmp_path / "rows.jsonl", pairs(2500))
    data = {"source": str(file), "format": "prompt_completion"}
    assert read(check, tmp_path, data=data, training={"global_batch": 800}).value.count == 1600


def test_files_after_those_that_are_enough_are_not_opened(check, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", pairs(700))
    write_jsonl(tmp_path / "b.jsonl", pairs(700))
    (tmp_path / "c.jsonl").write_text("no JSON, and never read\n")
    sample = read(check, tmp_path, data={"source": f"{tmp_path}/*.jsonl", "format": "prompt_completion"}).value
    assert sample.count == 1000
    assert [row.number for row in sample.sources[0].rows[698:702]] == [699, 700, 1, 2]


def test_a_store_is_asked_for_the_first_files_only(check, tmp_path):
    import fsspec

    store = fsspec.filesystem("memory")
    for number in range(3):
        lines = "".join(json.dumps(row) + "\n" for row in pairs(600))
        store.pipe(f"/preflight/{number}.jsonl.gz", gzip.compress(lines.encode()))
    data = {"source": "memory://preflight/*.jsonl.gz", "format": "prompt_completion"}
    sample = read(check, tmp_path, data=data).value
    assert sample.count == 1000
    assert sample.sources[0].total is None
    assert {row.place for row in sample.sources[0].rows} == {f"memory:///preflight/{n}.jsonl.gz" for n in (0, 1)}
    assert not list(tmp_path.glob("scratch/**/2.jsonl.gz"))
    result = check(data=data, training={"max_steps": None})
    assert result.facts.total_steps is None
    (note,) = [found for found in result.findings if found.code == "check-skipped"]
    assert (note.field, note.message) == ("training", "not checked: the number of rows is not known.")


def test_each_of_several_sources_gives_as_many_rows(check, tmp_path):
    one, two = write_jsonl(tmp_path / "one.jsonl", pairs(900)), write_jsonl(tmp_path / "two.jsonl", pairs(30))
    sources = [{"source": str(file), "format": "prompt_completion"} for file in (one, two)]
    data = {"source": "", "format": None, "sources": sources}
    sample = read(check, tmp_path, data=data).value
    assert [(len(source.rows), source.is_whole, source.total) for source in sample.sources] == [
        (500, False, 900),
        (30, True, 30),
    ]
    assert codes(check(data=data)) == set()


def test_weights_and_max_rows_decide_how_many_rows_the_run_has(check, tmp_path):
    files = [write_jsonl(tmp_path / f"{n}.jsonl", pairs(count)) for n, count in enumerate((900, 3000))]
    sources = [
        {"source": str(f), "format": "prompt_completion", "weight": w} for f, w in zip(files, (3, 1), strict=True)
    ]
    data = {"source": "", "format": None, "sources": sources}
    assert check(data=data).facts.rows_total == 1200
    assert check(data={**data, "max_rows": 700}).facts.rows_total == 700


def test_the_rows_of_a_table_are_counted_from_its_metadata(check, tmp_path):
    file = tmp_path / "00000.parquet"
    pq.write_table(pa.Table.from_pylist(pairs(3000)), file)
    data = {"source": "input:table", "format": "prompt_completion"}
    result = check(options={"table": [file], "table_version": "t1"}, data=data)
    assert codes(result) == set()
    assert (result.facts.rows_sampled, result.facts.rows_total) == (1000, 3000)
    assert result.facts.data_version == "t1"


def test_bad_rows_of_a_sample_are_an_error_only_where_they_are_too_many_of_all(check, tmp_path):
    """Of the first rows of a sorted file, more may be bad than of all of them."""
    bad = [{"prompt": "", "completion": ""}] * 20
    data = {"format": "prompt_completion", "source": str(write_jsonl(tmp_path / "rows.jsonl", [*bad, *pairs(4000)]))}
    result = check(data=data)
    assert codes(result) == set()
    assert "rejected-in-sample" in codes(result, "warning")
    few = {"format": "prompt_completion", "source": str(write_jsonl(tmp_path / "few.jsonl", [*bad, *pairs(1500)]))}
    assert codes(check(data=few)) == {"too-many-rejected"}
    (share, *_reasons) = check(data=few).errors
    assert "20 of 1520 rows (1.3%) cannot be used." in share.message


def test_a_format_that_is_wrong_is_an_error_also_where_nobody_counts_the_rows(check, tmp_path):
    import fsspec

    store, lines = fsspec.filesystem("memory"), "".join(json.dumps({"text": 3}) + "\n" for _ in range(1500))
    store.pipe("/wrong/rows.jsonl", lines.encode())
    data = {"source": "memory://wrong/rows.jsonl", "format": "text"}
    assert codes(check(data=data)) == {"too-many-rejected"}


def test_the_first_rows_of_the_replayed_source_are_looked_at_and_its_problems_named_as_its_own(check, tmp_path):
    replay = {"format": "prompt_completion", "share": 0.2}
    missing = check(data={"replay": {**replay, "source": str(tmp_path / "none.jsonl")}})
    assert [(found.field, found.code) for found in missing.errors] == [("data.replay.source", "data-not-found")]
    other = write_jsonl(tmp_path / "other.jsonl", [{"text": "a"}])
    wrong = check(data={"replay": {**replay, "source": str(other)}})
    assert [(found.field, found.code) for found in wrong.errors] == [("data.replay.format", "data-columns-missing")]


def test_rows_to_replay_that_are_too_few_are_a_warning_and_the_steps_are_counted_with_them(check, tmp_path):
    general = write_jsonl(tmp_path / "general.jsonl", pairs(9))
    replay = {"source": str(general), "format": "prompt_completion"}
    few = check(data={"replay": {**replay, "share": 0.25}})
    (warning,) = [found for found in few.findings if found.code == "replay-too-few-rows"]
    assert (warning.field, warning.value) == ("data.replay.share", "0.25")
    assert warning.message == "the source has 9 rows, too few for the others: 30 of 60 rows of the task are not used."
    assert few.facts.training_rows == 27 + 9
    enough = check(data={"replay": {**replay, "share": 0.1}})
    assert codes(enough, "warning") == set()
    assert enough.facts.training_rows == 54 + 6


def test_some_long_rows_are_a_warning_with_what_becomes_of_them(check, tmp_path):
    lines = [*pairs(90), *pairs(10, answer="It is {} and " + "red " * 80)]
    data = {"source": str(write_jsonl(tmp_path / "rows.jsonl", lines)), "format": "prompt_completion"}
    (warning,) = [f for f in check(data=data).findings if f.code == "rows-too-long"]
    assert warning.message == "10.0% of all examples are longer: 10 cut at the end."
    assert re.fullmatch(r"Raise it, or choose another data.long_rows: \d+ holds all of them\.", warning.remedy)
    (warning,) = [f for f in check(data={**data, "long_rows": "drop"}).findings if f.code == "rows-too-long"]
    assert warning.message.endswith("10 dropped.")
    (warning,) = [f for f in check(data={**data, "long_rows": "split"}).findings if f.code == "rows-too-long"]
    assert warning.message.endswith("10 split over several rows.")
    facts = check(data=data).facts
    assert facts.too_long == 0.1
    assert facts.longest > 80


def test_one_very_long_row_does_not_flatten_the_histogram(check, tmp_path):
    lines = [*pairs(50), *pairs(1, answer="It is {} and " + "red " * 4000)]
    data = {"source": str(write_jsonl(tmp_path / "rows.jsonl", lines)), "format": "prompt_completion"}
    facts = check(data=data).facts
    assert len(facts.lengths) <= 24
    assert facts.lengths[-1] == Bin(facts.lengths[-1].low, facts.longest, 1)
    assert facts.lengths[-2].high < 4 * facts.max_length


def test_a_row_longer_than_the_model_s_positions_is_a_warning(check):
    result = check(data={"max_length": 512})
    (warning,) = [f for f in result.findings if f.severity == "warning"]
    assert (warning.code, warning.value) == ("max-length-beyond-positions", "512")
    assert "256 positions" in warning.message


def test_a_prompt_that_does_not_fit_is_a_warning(check):
    result = check(evaluation={"prompts": ["What is red?"], "max_new_tokens": 250})
    assert codes(result, "warning") == {"evaluation-prompt-too-long"}
    assert codes(check(evaluation={"prompts": ["What is red?"]}), "warning") == set()


def test_a_conversation_that_the_template_refuses_is_a_bad_row_where_others_are_rendered(check, tmp_path):
    """A template that wants a system message, or refuses one, is no broken template."""
    system = [{"role": "system", "content": "Be brief."}, *chat_rows()[0]["messages"]]
    file = write_jsonl(tmp_path / "rows.jsonl", [*chat_rows(), *[{"messages": system}] * 5])
    assert codes(check(data={"source": str(file)})) == {"too-many-rejected"}


def test_keys_that_are_not_read_are_named(check, tmp_path):
    """A capital letter, and every answer was to half a question: nobody said that `Input` is not `input`."""
    alpaca = [{"instruction": f"Add {n}.", "Input": "1", "output": "2", "id": f"row-{n}"} for n in range(30)]
    made = check(data={"source": str(write_jsonl(tmp_path / "rows.jsonl", alpaca)), "format": "alpaca"})
    (warning,) = [found for found in made.findings if found.code == "key-not-read"]
    assert warning.message == "has 30 rows that say something under 'Input', which is not read (did you mean 'input'?)."
    assert warning.remedy == "Rename or remove it in the data. Or map it in data.columns."
    (note,) = [found for found in made.findings if found.code == "other-keys"]
    assert note.message == "its rows also have keys that are not read: id (30)."


def test_keys_of_one_of_several_sources_and_of_messages_are_named_there(check, tmp_path):
    turns = [
        {"role": "user", "content": "Why?", "train": True},
        {"role": "assistant", "content": "So.", "date": "1.1."},
    ]
    lines = [{"messages": [*turns[:1], {**turns[1], "content": f"So, {n}."}]} for n in range(30)]
    sources = [{"source": str(check.rows), "format": "chat"}]
    sources.append({"source": str(write_jsonl(tmp_path / "rows.jsonl", lines)), "format": "chat"})
    made = check(data={"source": "", "format": None, "sources": sources})
    (warning,) = [found for found in made.findings if found.code == "key-not-read"]
    assert (warning.field, "messages[].train of user" in warning.message) == ("data.sources.1.source", True)
    assert warning.remedy == "Rename or remove it in the data."
    (note,) = [found for found in made.findings if found.code == "other-keys"]
    assert "messages[].date (30)" in note.message


def test_rows_over_a_limit_are_bad_rows_of_the_sample(check, tmp_path):
    """Arguments nested 900 deep ended the preflight in a RecursionError, and a giant took its memory."""
    deep = json.loads("[" * 900 + "]" * 900)
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "sky", "arguments": {"a": deep}}}]}
    giant = {"messages": "a" * limits.ROW_BYTES}
    bad = [{"messages": [{"role": "user", "content": "Why?"}, call]}, giant]
    file = write_jsonl(tmp_path / "rows.jsonl", [*chat_rows()[:30], *bad, *chat_rows()[30:]])
    with file.open("a") as stream:
        stream.write("[" * 200_000 + "\n")
    result = check(data={"source": str(file), "max_rejected": 0.01})
    assert codes(result) == {"too-many-rejected"}
    text = "\n".join(str(found) for found in result.findings)
    assert "row 31, 63" in text
    assert "is nested more than 64 levels deep" in text
    assert "is larger than 4 MiB" in text
    assert codes(check(data={"source": str(file), "max_rejected": 1.0})) == set()


def test_no_more_is_sampled_than_fits(check, tmp_path, monkeypatch):
    """A thousand rows are few, and a thousand long ones are not."""
    monkeypatch.setattr(sampling, "SAMPLE_BYTES", 10_000)
    rows = [{"prompt": f"What is {n}?", "completion": "It is. " * 100} for n in range(40)]
    write_jsonl(tmp_path / "a.jsonl", rows[:30])
    write_jsonl(tmp_path / "b.jsonl", rows[30:])
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for source in (f"{tmp_path}/*.jsonl", tmp_path / "rows.parquet"):
        sample = read(check, tmp_path, data={"source": str(source), "format": "prompt_completion"}).value
        assert (sample.count, sample.is_whole, sample.sources[0].total) == (14, False, 40)
