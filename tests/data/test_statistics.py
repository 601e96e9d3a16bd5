"""The numbers of a report: compared with counting by hand, and the same after a trip through JSON."""

import itertools
import json
from collections import Counter
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thriftune.data.arrangement import Rows
from thriftune.data.statistics import Bin, DataStats, SourceStats, SplitCounter, bins, padding_share, stats_from_json
from thriftune.data.tokenization import IGNORED

# A busy machine is slow at times.
checked = settings(deadline=None)

lists_of_lengths = st.lists(st.integers(1, 40), min_size=1, max_size=6)


def histogram(lengths, max_length=40):
    return np.bincount(lengths, minlength=max_length + 1).astype(np.int64)


def padding_by_hand(lengths, batch):
    """Over all batches that could be drawn: tokens of padding, of all tokens in them."""
    batches = list(itertools.product(lengths, repeat=batch))
    return 1 - sum(map(sum, batches)) / sum(batch * max(drawn) for drawn in batches)


@checked
@given(lists_of_lengths, st.integers(1, 3))
def test_padding_is_that_of_all_batches_there_could_be(lengths, batch):
    assert padding_share(histogram(lengths), batch) == pytest.approx(padding_by_hand(lengths, batch), abs=1e-12)


@pytest.mark.parametrize(
    ("lengths", "batch", "share"),
    [([7, 7, 7], 8, 0.0), ([1, 3], 2, 1 - 2 / 2.5), ([5, 40], 1, 0.0), ([], 8, 0.0)],
)
def test_padding_worked_out_by_hand(lengths, batch, share):
    assert padding_share(histogram(lengths), batch) == pytest.approx(share)


@checked
@given(st.integers(2, 200), st.data())
def test_bars_of_a_histogram_follow_each_other_and_add_up(max_length, data):
    lengths = data.draw(st.lists(st.integers(1, max_length), max_size=50))
    bars = bins(histogram(lengths, max_length))
    assert (bars[0].low, bars[-1].high) == (1, max_length)
    assert len(bars) <= 24
    assert len({bar.high - bar.low for bar in bars[:-1]}) <= 1
    assert all(following.low == bar.high + 1 for bar, following in pairwise(bars))
    assert [bar.count for bar in bars] == [sum(bar.low <= n <= bar.high for n in lengths) for bar in bars]


def test_a_histogram_of_few_lengths_has_a_bar_for_each():
    assert bins(histogram([1, 3, 3], 3)) == (Bin(1, 1, 1), Bin(2, 2, 0), Bin(3, 3, 2))


def rows_of_lengths(*lengths, trained=0):
    total = sum(lengths)
    labels = np.array([IGNORED] * (total - trained) + [1] * trained, dtype=np.int32)
    return Rows(np.ones(total, np.int32), labels, np.cumsum([0, *lengths]))


@pytest.fixture
def counted():
    """What a packed split of five examples counted: rows of 2, 2, 4, 6 and 2 tokens in two rows of 8."""
    counter = SplitCounter(8)
    counter.before_packing(rows_of_lengths(2, 2, 4))
    counter.before_packing(rows_of_lengths(6, 2))
    counter.written(rows_of_lengths(8, 8, trained=5))
    counter.examples, counter.duplicates, counter.leaked = 5, 2, 1
    counts = Counter({(False, "rows"): 9, (False, "rejected"): 1, (True, "rows"): 3, (True, "dropped"): 1})
    return counter.stats(counts, held_out=False), counter.stats(counts, held_out=True)


def test_a_split_has_its_own_counts_and_no_other_ones(counted):
    train, held_out = counted
    assert (train.rows, train.rejected, train.dropped) == (9, 1, 0)
    assert (held_out.rows, held_out.rejected, held_out.dropped) == (3, 0, 1)
    assert (train.examples, train.duplicates, train.leaked) == (5, 2, 1)
    assert (train.token_rows, train.tokens, train.trained_tokens, train.masked_tokens) == (2, 16, 5, 11)
    assert [(bar.low, bar.count) for bar in train.lengths if bar.count] == [(2, 3), (4, 1), (6, 1)]
    assert [(bar.low, bar.count) for bar in train.row_lengths if bar.count] == [(8, 2)]


def test_padding_saved_is_the_share_of_pad_tokens_that_packing_saves(counted):
    train, _ = counted
    before = padding_by_hand([2, 2, 4, 6, 2], 8)
    assert train.padding_to_longest == pytest.approx(before)
    assert (train.padding, train.padding_saved) == (0.0, 1.0)
    half = rows_of_lengths(4, 8)
    counter = SplitCounter(8)
    counter.before_packing(half)
    counter.written(half)
    assert counter.stats(Counter(), held_out=False).padding_saved == 0.0


def test_the_numbers_survive_json(counted):
    source = SourceStats("rows.jsonl", "chat", rows=12, used=12)
    stats = DataStats((source, source), *counted, reasons={"column 'a' is empty": 1}, packing=True, max_length=8)
    assert stats_from_json(json.loads(json.dumps(asdict(stats)))) == stats
