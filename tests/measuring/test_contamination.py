"""Items that are among the training rows are found, exactly or after folding, and nothing else is."""

import json
import random

import pytest
from local_tasks import prepared, write_jsonl, write_task

from thriftune.config import DataConfig
from thriftune.data.items import Item
from thriftune.data.prepare import prepare as prepare_data
from thriftune.inference.benchmarks.contamination import contamination, in_texts, words_of

QUESTION = "Who wrote the long book about whales?"


def found_in(text, question=QUESTION, accepted=("Melville",)):
    return in_texts({"t": [Item("1", question, (), None, accepted)]}, [text])["t"]


@pytest.mark.parametrize(
    ("text", "exact", "folded", "answered"),
    [
        (f"{QUESTION} Melville.", 1, 1, 1),
        (f"They asked: {QUESTION}", 1, 1, 0),
        ("WHO  wrote — the long\nbook about whales?! melville", 0, 1, 1),
        ("Melville: who wrote the long book about whales", 0, 1, 0),
        ("Who wrote the long book about sharks? Melville", 0, 0, 0),
        ("Who wrote the long book", 0, 0, 0),
        ("Who wrote the long book about whales? Melvilles", 1, 1, 0),
        ("", 0, 0, 0),
    ],
)
def test_an_item_is_found_by_its_question(text, exact, folded, answered):
    found = found_in(text)
    assert (len(found.exact), len(found.folded), len(found.answered)) == (exact, folded, answered)
    assert found.share == folded
    assert found.examples == ((QUESTION,) if folded else ())


def test_chinese_is_found_without_spaces():
    found = found_in("我问了谁写了关于鲸鱼的书。她说梅尔维尔。", "谁写了关于鲸鱼的书", ("梅尔维尔",))
    assert (len(found.exact), len(found.answered)) == (1, 1)


def test_questions_of_few_words_are_not_looked_for():
    assert found_in("a cat and 2 + 2 and so on", "2 + 2?").items == 0


def test_planted_items_are_found_and_no_others():
    draw = random.Random(0)
    vocabulary = [f"word{number}" for number in range(50)]
    questions = [" ".join(draw.choices(vocabulary, k=draw.randint(5, 12))) for _ in range(200)]
    items = [Item(str(n), question, (), None, ("x",)) for n, question in enumerate(questions)]
    texts = [" ".join(draw.choices(vocabulary, k=40)) for _ in range(100)]
    planted = set(draw.sample(range(200), 30))
    texts += [f"{' '.join(draw.choices(vocabulary, k=5))}. {questions[n].upper()}!" for n in planted]
    expected = {
        item.id
        for item, question in zip(items, questions, strict=True)
        if any(f" {question} " in f" {' '.join(words_of(text))} " for text in texts)
    }
    assert {str(n) for n in planted} <= expected
    assert set(in_texts({"t": items}, iter(texts))["t"].folded) == expected


def test_prepared_rows_are_searched_and_held_out_ones_are_not(tmp_path, tiny_tokenizer_dir):
    asked = [{"role": "user", "content": f"What is the colour of house {n}?"} for n in range(20)]
    rows = [{"messages": [question, {"role": "assistant", "content": "Red."}]} for question in asked]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(source=str(source), format="chat", max_length=128, validation_share=0.5)
    place = tmp_path / "dataset"
    prepare_data(config, seed=0, tokenizer_dir=tiny_tokenizer_dir, destination=place, data_version="")
    items = [
        {"id": str(n), "question": f"what is  the colour of house {n}", "choices": ["Red", "Blue"], "answer": n % 2}
        for n in range(20)
    ]
    file = write_jsonl(tmp_path / "items.jsonl", items)
    yaml = write_task(tmp_path, "local_task")
    same = {"choices": ["Red", "Blue"], "answer": 0, "said": "Red"}
    write_jsonl(tmp_path / "test.jsonl", [{"question": item["question"].upper(), **same} for item in items[:4]])
    benchmarks = prepared(
        tmp_path,
        {"name": "mine", "file": str(file), "format": "multiple_choice"},
        {"name": "theirs", "file": str(yaml)},
        "held_out",
    )
    found = contamination(benchmarks, place, tiny_tokenizer_dir)
    assert set(found) == {"mine", "theirs"}
    assert found["mine"].items == 20
    assert len(found["mine"].folded) == 10
    assert found["mine"].exact == ()
    assert set(found["mine"].answered) == {name for name in found["mine"].folded if int(name) % 2 == 0}
    assert {name.rpartition("/")[2].lstrip("0") or "0" for name in found["theirs"].folded} == {
        name for name in found["mine"].folded if int(name) < 4
    }
