"""Several sources in one dataset: each read in its own way, in the proportion that was asked for."""

from dataclasses import replace
from pathlib import Path

import pytest
from preparing import Preparation, write_rows

from thriftune.config import DataConfig
from thriftune.data.prepare import fingerprint
from thriftune.data.prepared import TRAIN, VALIDATION
from thriftune.data.summary import summary
from thriftune.errors import DataError


@pytest.fixture
def prepared(tmp_path, tiny_tokenizer_dir):
    return Preparation(tmp_path, tiny_tokenizer_dir)


@pytest.fixture
def sources(tmp_path):
    """Sixty quotes, twenty chats and ten prompts, each with a word of its own in its answers."""
    quotes = [{"quote": f"apple {i}", "author": "Somebody"} for i in range(60)]
    chats = [
        {"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"stone {i}"}]}
        for i in range(20)
    ]
    prompts = [{"question": f"{i}?", "reply": f"moon {i}"} for i in range(10)]
    columns = {"prompt": "question", "completion": "reply"}
    return [
        {"source": str(write_rows(tmp_path / "quotes.jsonl", quotes)), "format": "quotes"},
        {"source": str(write_rows(tmp_path / "chats.jsonl", chats)), "format": "chat"},
        {
            "source": str(write_rows(tmp_path / "prompts.jsonl", prompts)),
            "format": "prompt_completion",
            "columns": columns,
        },
    ]


def weighted(sources, *weights):
    return [{**source, "weight": weight} for source, weight in zip(sources, weights, strict=True)]


def found(made, name, tokenizer):
    """How many rows of a split come from each of the three sources."""
    texts = made.texts(name, tokenizer)
    return [sum(word in text for text in texts) for word in ("apple", "stone", "moon")]


def mixture(made, tokenizer):
    train, held_out = (found(made, name, tokenizer) for name in (TRAIN, VALIDATION))
    assert sum(train) + sum(held_out) == made.count("examples")
    assert [source.used for source in made.stats.sources] == [a + b for a, b in zip(train, held_out, strict=True)], (
        "the report says otherwise"
    )
    return [source.used for source in made.stats.sources]


def test_without_weights_every_source_is_used_whole(prepared, sources, llama_tokenizer):
    made = prepared(sources=sources, validation_share=0.1)
    assert mixture(made, llama_tokenizer) == [60, 20, 10]
    assert found(made, VALIDATION, llama_tokenizer) == [6, 2, 1]
    assert [source.format for source in made.stats.sources] == ["quotes", "chat", "prompt_completion"]


@pytest.mark.parametrize(
    ("weights", "max_rows", "used"),
    [
        ((2, 1, 1), None, [20, 10, 10]),
        ((0.2, 0.1, 0.1), None, [20, 10, 10]),
        ((6, 2, 0.5), None, [60, 20, 5]),
        ((2, 1, 1), 20, [10, 5, 5]),
    ],
)
def test_weights_are_shares_of_the_rows(prepared, sources, llama_tokenizer, weights, max_rows, used):
    made = prepared(sources=weighted(sources, *weights), max_rows=max_rows, validation_share=0.2)
    assert mixture(made, llama_tokenizer) == used


def test_max_rows_is_of_all_sources_together(prepared, sources, llama_tokenizer):
    assert mixture(prepared(sources=sources, max_rows=9), llama_tokenizer) == [6, 2, 1]


def test_the_seed_decides_which_rows_of_a_mix_are_used(prepared, sources, llama_tokenizer):
    def used(seed):
        made = prepared(sources=weighted(sources, 1, 1, 1), seed=seed)
        return {text for name in (TRAIN, VALIDATION) for text in made.texts(name, llama_tokenizer)}

    assert used(0) == used(0)
    assert used(0) != used(1)
    assert len(used(0)) == 30


def test_the_same_rows_in_two_sources_are_copies_on_one_side(prepared, sources):
    """Each source held out rows of its own: twice as many as were asked for, and what trained of them leaked."""
    made = prepared(sources=[sources[0], sources[1], sources[0]], validation_share=0.1)
    assert (made.count("rows"), made.count("examples"), made.count("duplicates")) == (140, 80, 60)
    assert (made.stats.validation.examples, made.count("leaked")) == (8, 0)


def test_documents_of_one_source_are_joined_beside_the_rows_of_others(prepared, sources, tmp_path, llama_tokenizer):
    file = write_rows(tmp_path / "texts.jsonl", [{"text": f"sea {i}"} for i in range(30)])
    made = prepared(sources=[*sources, {"source": str(file), "format": "text"}], max_length=64)
    for name in (TRAIN, VALIDATION):
        texts = made.texts(name, llama_tokenizer)
        blocks = [text for text in texts if "sea" in text]
        assert not any(word in block for block in blocks for word in ("apple", "stone", "moon"))
    assert sum(text.count("sea") for text in made.texts(TRAIN, llama_tokenizer)) >= 28
    assert made.count("examples") == 120
    assert made.count("token_rows") < 120


def test_columns_that_are_missing_in_several_sources_are_told_at_once(prepared, sources):
    wrong = [{**sources[0], "format": "text"}, sources[1], {**sources[2], "columns": {}}]
    with pytest.raises(DataError) as caught:
        prepared(sources=wrong)
    assert [problem.field for problem in caught.value.problems] == ["data.sources.0.format", "data.sources.2.format"]
    assert "needs the columns text; " in caught.value.problems[0].message
    assert caught.value.problems[1].message.endswith("prompts.jsonl has question, reply.")
    assert "data.sources.2.columns" in caught.value.problems[1].remedy


def test_bad_rows_are_told_by_the_file_they_are_in(prepared, sources, tmp_path):
    (tmp_path / "chats.jsonl").write_text((tmp_path / "chats.jsonl").read_text() + "broken\n")
    made = prepared(sources=sources, max_rejected=0.05)
    assert made.rejected() == [{"source": sources[1]["source"], "row": 21, "reason": "is not JSON (Expecting value)"}]


def test_a_file_of_two_formats_is_two_sources(prepared, tmp_path, llama_tokenizer):
    """A glob has one format; a source has its own."""
    rows = [{"quote": f"apple {i}", "author": "A", "text": f"stone {i}"} for i in range(8)]
    file = str(write_rows(tmp_path / "both.jsonl", rows))
    made = prepared(sources=[{"source": file, "format": name} for name in ("quotes", "text")], max_length=64)
    assert made.count("examples") == 16
    assert [(source.format, source.used) for source in made.stats.sources] == [("quotes", 8), ("text", 8)]


def replayed(source, share):
    return {**source, "share": share}


def test_replayed_rows_have_their_share_of_the_training_rows_and_none_is_held_out(prepared, sources, llama_tokenizer):
    made = prepared(**sources[1], replay=replayed(sources[0], 0.5), validation_share=0.2)
    assert found(made, TRAIN, llama_tokenizer) == [16, 16, 0]
    assert found(made, VALIDATION, llama_tokenizer) == [0, 4, 0]
    assert [source.is_replayed for source in made.stats.sources] == [False, True]
    short = [replace(source, name=Path(source.name).name) for source in made.stats.sources]  # a log cuts long paths
    assert "quotes.jsonl (quotes, replayed): 16 of 60" in summary(replace(made.stats, sources=tuple(short)))


def test_the_rows_of_the_task_that_are_held_out_are_the_same_with_and_without_replay(prepared, sources):
    alone = prepared(**sources[1], validation_share=0.2)
    beside = prepared(**sources[1], replay=replayed(sources[0], 0.5), validation_share=0.2)
    assert beside.rows(VALIDATION) == alone.rows(VALIDATION)


def test_too_few_rows_to_replay_limit_those_of_the_task_and_it_is_said(prepared, sources, llama_tokenizer, caplog):
    made = prepared(**sources[0], replay=replayed(sources[2], 0.25), validation_share=0.25)
    assert found(made, TRAIN, llama_tokenizer) == [30, 0, 10]
    assert "20 rows are not used: too few replayed rows for them (data.replay.share)" in caplog.text


def test_a_replayed_row_that_is_held_out_too_does_not_train(prepared, tmp_path, llama_tokenizer):
    """A collection of general rows may contain the task's: the held-out ones must not be learnt by heart from there."""
    task = [{"quote": f"apple {i}", "author": "Somebody"} for i in range(20)]
    general = [*task, *({"quote": f"stone {i}", "author": "Somebody"} for i in range(20))]
    replay = {"source": str(write_rows(tmp_path / "general.jsonl", general)), "format": "quotes", "share": 8 / 11}
    made = prepared(
        source=write_rows(tmp_path / "task.jsonl", task), format="quotes", replay=replay, validation_share=0.25
    )
    train, held_out = (set(made.texts(name, llama_tokenizer)) for name in (TRAIN, VALIDATION))
    assert len(held_out) == 5
    assert not train & held_out
    assert (made.stats.train.leaked, made.stats.train.duplicates, made.stats.validation.duplicates) == (5, 15, 0)


def test_the_replayed_source_counts_in_the_fingerprint(sources):
    def key(**more):
        return fingerprint(DataConfig.model_validate({**sources[0], **more}), 0, "", "")

    replay = replayed(sources[1], 0.5)
    assert len({key(), key(replay=replay), key(replay={**replay, "share": 0.4})}) == 3
    assert key(replay={**replay, "source": "elsewhere.jsonl"}) == key(replay=replay)
