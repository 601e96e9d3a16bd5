"""Results of benchmarks: joined from parts, and kept as Parquet."""

from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from thriftune.inference.benchmarks.results import FILE, ItemResult, Results, TaskFacts

FACTS = TaskFacts("ours", "v1", {"accuracy": True}, "accuracy")
ROWS = TaskFacts("held_out", "v1", {"loss": False}, "loss")
CHOICE = ItemResult(
    "ours",
    "b",
    "fruit",
    "Which? ",
    "aa",
    "pear",
    "fig",
    {"accuracy": 0.0, "accuracy_sum": 1.0},
    (-1.5, -2.25),
    0,
    False,
)
ROW = ItemResult("held_out", "000001", "", "Say é\n", "bb", "ü", "", {"loss": 12.5}, tokens=7)


def test_what_is_written_is_read(tmp_path):
    results = Results((FACTS, ROWS), (CHOICE, ROW, replace(CHOICE, item="c", stopped=True, correct=True)))
    results.write(tmp_path)
    assert Results.read(tmp_path) == results
    assert pq.read_table(tmp_path / FILE).column("item").to_pylist() == ["b", "000001", "c"]


def test_no_items_at_all_are_kept_too(tmp_path):
    Results((FACTS,)).write(tmp_path)
    assert Results.read(tmp_path) == Results((FACTS,))


def test_parts_are_joined_in_order():
    other = replace(CHOICE, item="a")
    parts = [Results((FACTS,), (CHOICE,)), Results((ROWS,), (ROW,)), Results((FACTS,), (other,))]
    joined = Results.joined(parts)
    assert joined == Results((ROWS, FACTS), (ROW, other, CHOICE))
    assert joined == Results.joined(parts[::-1])


def test_a_part_without_items_does_not_hide_the_metrics():
    empty = Results((replace(FACTS, metrics={}, main=""),))
    for parts in ([empty, Results((FACTS,), (CHOICE,))], [Results((FACTS,), (CHOICE,)), empty]):
        assert Results.joined(parts).tasks == (FACTS,)


def test_the_same_item_twice_is_refused():
    with pytest.raises(ValueError, match="Item b of ours was measured twice"):
        Results.joined([Results((FACTS,), (CHOICE,)), Results((FACTS,), (replace(CHOICE, answer="pear"),))])


def test_two_versions_are_refused():
    with pytest.raises(ValueError, match="ours was measured in two versions, v1 and v2"):
        Results.joined([Results((FACTS,)), Results((replace(FACTS, version="v2"),))])
