"""Tokens on their way into rows: none is lost, none is trained on twice, and examples in a row stay apart."""

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thriftune.data import arrangement
from thriftune.data.arrangement import Joiner, Packer, Rows, RowWriter, joined, packed, rows_of
from thriftune.data.tokenization import IGNORED

# A busy machine is slow at times.
checked = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

SEED = (0, 0)
CAPACITY = 8

# Which tokens of an example carry loss; the first never does.
masks = st.lists(st.booleans(), min_size=1, max_size=CAPACITY)
examples_of_masks = st.lists(masks, max_size=30)


def make(masks, start=0):
    """Rows whose tokens are all different, from `start` on."""
    lengths = [len(mask) for mask in masks]
    ids = np.arange(start, start + sum(lengths), dtype=np.int32)
    trained = [is_trained and i > 0 for mask in masks for i, is_trained in enumerate(mask)]
    ends = np.cumsum([0, *lengths])
    return Rows(ids, np.where(np.array(trained, dtype=bool), ids, IGNORED).astype(np.int32), ends)


def as_lists(rows):
    """Each row as (token, label) pairs."""
    pairs = list(zip(rows.input_ids.tolist(), rows.labels.tolist(), strict=True))
    return [pairs[start:end] for start, end in zip(rows.ends, rows.ends[1:], strict=False)]


def lots_of(rows, sizes):
    """The same rows, handed over a few at a time."""
    start, count = 0, len(rows.ends) - 1
    for size in sizes:
        yield rows.taken(np.arange(start, min(start + size, count)))
        start = min(start + size, count)
    yield rows.taken(np.arange(start, count))


def streamed(arranger, rows, sizes):
    lots = [out for lot in lots_of(rows, sizes) for out in arranger.add(lot)]
    return [*lots, *arranger.finish()]


chunk_sizes = st.lists(st.integers(0, 7), max_size=6)


@checked
@given(examples_of_masks, st.data())
def test_taken_rows_are_those_asked_for_in_that_order(masks, data):
    rows = make(masks)
    indices = data.draw(st.lists(st.integers(0, len(masks) - 1), max_size=9)) if masks else []
    assert as_lists(rows.taken(np.array(indices, dtype=np.int64))) == [as_lists(rows)[i] for i in indices]


@checked
@given(st.lists(examples_of_masks, max_size=4))
def test_lots_of_rows_are_joined_in_order(lots):
    parts = [make(masks, start=1000 * number) for number, masks in enumerate(lots)]
    assert as_lists(joined(parts)) == [row for part in parts for row in as_lists(part)]


def test_packed_rows_worked_out_by_hand():
    rows = packed(make([[0, 1, 1], [0, 0, 1, 1, 1], [0, 1]]), 8, SEED)
    assert rows.input_ids.tolist() == [3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    assert rows.labels.tolist() == [IGNORED, IGNORED, 5, 6, 7, IGNORED, 9, IGNORED, 1, 2]
    assert rows.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1, 0, 1, 2]
    assert (rows.ends.tolist(), rows.lengths.tolist()) == ([0, 7, 10], [7, 3])


@checked
@given(examples_of_masks)
def test_packing_keeps_every_example_whole_and_none_is_lost(masks):
    rows = make(masks)
    result = packed(rows, CAPACITY, SEED)
    found = []
    for start, end in zip(result.ends, result.ends[1:], strict=False):
        assert 0 < end - start <= CAPACITY
        starts = [i for i in range(start, end) if result.position_ids[i] == 0]
        assert starts[0] == start
        for begin, stop in zip(starts, [*starts[1:], end], strict=True):
            assert result.position_ids[begin:stop].tolist() == list(range(stop - begin))
            found.append(list(zip(result.input_ids[begin:stop], result.labels[begin:stop], strict=True)))
    assert sorted(found) == sorted(as_lists(rows))


@checked
@given(examples_of_masks, chunk_sizes)
def test_a_packer_of_small_windows_loses_nothing(monkeypatch, masks, sizes):
    monkeypatch.setattr(arrangement, "_WINDOW_EXAMPLES", 5)
    monkeypatch.setattr(arrangement, "_WINDOW_TOKENS", 12)
    rows = make(masks)
    packer = Packer(CAPACITY)
    lots = streamed(packer, rows, sizes)
    result = joined(lots)
    assert sorted(pair for row in as_lists(result) for pair in row) == sorted(
        pair for row in as_lists(rows) for pair in row
    )
    assert all((lot.lengths <= CAPACITY).all() for lot in lots)
    assert list(packer.finish()) == []


def test_each_window_of_a_run_and_each_seed_has_a_packing_of_its_own(monkeypatch):
    monkeypatch.setattr(arrangement, "_WINDOW_EXAMPLES", 20)
    same_run, lots = Packer(4, seed=3), []
    for packer in (same_run, same_run, Packer(4), Packer(4)):
        lots += packer.add(make([[0, 1]] * 20))
    orders = [lot.input_ids.tolist() for lot in lots]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2] == orders[3]
    assert all(lot.lengths.tolist() == [4] * 10 for lot in lots)


def test_a_window_is_packed_as_soon_as_it_is_full(monkeypatch):
    """Else all examples would wait in memory for the end."""
    monkeypatch.setattr(arrangement, "_WINDOW_EXAMPLES", 3)
    packer = Packer(CAPACITY)
    assert list(packer.add(make([[0, 1]] * 2))) == []
    assert [lot.lengths.tolist() for lot in packer.add(make([[0, 1]] * 3))] == [[6, 4]]
    assert [lot.lengths.tolist() for lot in packer.finish()] == []
    monkeypatch.setattr(arrangement, "_WINDOW_TOKENS", 10)
    assert [lot.lengths.tolist() for lot in packer.add(make([[0] * 8, [0] * 2]))] == [[8, 2]]


def test_blocks_worked_out_by_hand():
    joiner = Joiner(4)
    first = list(joiner.add(make([[0, 1, 1], [0, 1]])))
    assert [as_lists(lot) for lot in first] == [[[(0, IGNORED), (1, 1), (2, 2), (3, IGNORED)]]]
    # Token 3 opened a document, and stays without loss; as the last of a block it is read again by the next one.
    second = [*joiner.add(make([[0, 1]], start=5)), *joiner.finish()]
    assert [as_lists(lot) for lot in second] == [[[(3, IGNORED), (4, 4), (5, IGNORED), (6, 6)]]]
    assert list(joiner.finish()) == []


@checked
@given(examples_of_masks, st.integers(2, 9))
def test_every_token_of_every_document_is_predicted_exactly_once(masks, length):
    rows = make(masks)
    blocks = [row for lot in streamed(Joiner(length), rows, [3, 3]) for row in as_lists(lot)]
    assert all(len(block) == length for block in blocks[:-1])
    assert all(2 <= len(block) <= length for block in blocks)
    assert all(block[0][1] == IGNORED for block in blocks)
    predicted = [pair for block in blocks for pair in block[1:]]
    assert predicted == [pair for document in as_lists(rows) for pair in document][1:]
    assert all(end[-1][0] == start[0][0] for end, start in pairwise(blocks))


@checked
@given(examples_of_masks, chunk_sizes, st.integers(2, 9))
def test_blocks_are_the_same_however_the_documents_arrive(masks, sizes, length):
    rows = make(masks)
    at_once, in_lots = (joined(streamed(Joiner(length), rows, chunks)) for chunks in ([], sizes))
    assert as_lists(at_once) == as_lists(in_lots)


@checked
@given(examples_of_masks, st.data())
def test_rows_of_a_slice_of_a_batch_are_those_of_the_slice(masks, data):
    """Arrow keeps the values of a slice whole: its offsets do not start at zero."""
    rows = make(masks)
    batch = as_batch(rows)
    start = data.draw(st.integers(0, len(masks)))
    size = data.draw(st.integers(0, len(masks) - start))
    assert as_lists(rows_of(batch.slice(start, size))) == as_lists(rows)[start : start + size]


def as_batch(rows):
    ends = pa.array(rows.ends.astype(np.int32))
    columns = {
        name: pa.ListArray.from_arrays(ends, pa.array(values, pa.int32()))
        for name, values in (("input_ids", rows.input_ids), ("labels", rows.labels))
    }
    return pa.RecordBatch.from_pydict(columns)


def test_a_batch_without_rows_has_none():
    assert as_lists(rows_of(as_batch(make([])))) == []


@pytest.mark.parametrize("has_positions", [False, True])
def test_written_rows_come_back_through_datasets(tmp_path, has_positions):
    from datasets import Dataset

    lots = [make([[0, 1, 1], [0, 1]]), make([]), make([[0] * 8, [0, 1, 0, 1]], start=70_000)]
    if has_positions:
        lots = [packed(lot, CAPACITY, SEED) for lot in lots]
    with RowWriter(tmp_path / "rows.parquet", has_positions=has_positions) as writer:
        for lot in lots:
            writer.write(lot)
    loaded = Dataset.from_parquet(str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))
    lists = ["input_ids", "labels", *(["position_ids"] if has_positions else [])]
    assert loaded.column_names == [*lists, "length"]
    wanted = [row for lot in lots for row in as_lists(lot)]
    assert [list(zip(row["input_ids"], row["labels"], strict=True)) for row in loaded] == wanted
    assert loaded["length"][:] == [len(row) for row in wanted]
    schema = pq.read_schema(tmp_path / "rows.parquet")
    assert {str(schema.field(name).type) for name in lists} == {"list<element: int32>"}
    assert str(schema.field("length").type) == "int32"
    if has_positions:
        assert loaded["position_ids"][:] == [[0, 1, 2, 0, 1], list(range(8)), [0, 1, 2, 3]]


def test_the_same_rows_are_written_as_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        with RowWriter(tmp_path / name, has_positions=True) as writer:
            writer.write(packed(make([[0, 1, 1], [0, 1]] * 50), CAPACITY, SEED))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
