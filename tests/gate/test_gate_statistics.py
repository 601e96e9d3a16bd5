"""Paired statistics: intervals that hold what they say, for few items and many, and no claim from next to nothing."""

import tracemalloc

import numpy as np
import pytest
from scipy.stats import beta

from thriftune.inference.gate import statistics
from thriftune.inference.gate.statistics import Sample, fewest_items, items_needed, items_to_exclude, mcnemar, paired


def compared(base, tuned, kind="mean", tokens=None, confidence=0.95, is_same=False, **more):
    sample = Sample.of(np.array(base), np.array(tuned), kind, tokens, is_same=is_same)
    return paired(sample, confidence, 0, **more)


def changed(better, worse, same):
    """Scores of 0 and 1, of which so many rise, fall and stay."""
    base = [0.0] * better + [1.0] * worse + [1.0] * same
    return compared(base, [1.0] * better + [0.0] * worse + [1.0] * same)


@pytest.mark.parametrize(("items", "is_claimed"), [(2, False), (5, False), (6, True), (9, True)])
def test_a_few_items_that_all_got_better_are_not_enough(items, is_claimed):
    """A plain bootstrap of five equal differences has an interval without length: it would claim anything."""
    change = changed(items, 0, 0).change
    assert (change.low > 0) == is_claimed
    assert (change.value, change.high) == (1.0, 1.0)
    assert (items >= fewest_items(0.95)) == is_claimed


def test_two_models_that_do_the_same_show_no_change_and_not_that_it_is_unknown():
    for values in ([1.0] * 20, [0.0, 1.0] * 10, list(np.linspace(0, 3, 20))):
        change = compared(values, values, is_same=True).change
        assert (change.value, change.low, change.high) == (0, 0, 0)
    tokens = (np.arange(1.0, 21), np.arange(1.0, 21))
    assert compared(np.arange(20.0), np.arange(20.0), "per_token", tokens).change.low == 0


def test_items_of_which_none_changed_show_how_many_still_may():
    """Twenty answers without a marker said nothing of one in ten with it, and the interval had no length."""
    for items, share in ((20, 0.168), (300, 0.0122)):
        change = changed(0, 0, items).change
        assert (change.value, change.low, change.high) == (
            0,
            pytest.approx(-share, rel=0.1),
            pytest.approx(share, rel=0.1),
        )
    assert (items_to_exclude(0.02, 0.95), items_to_exclude(0.05, 0.95), items_to_exclude(0.0, 0.95)) == (183, 72, None)
    assert changed(0, 0, 183).change.low == pytest.approx(-0.02, rel=0.1)


@pytest.mark.parametrize("same", [0, 280])
@pytest.mark.parametrize(
    "pair", [(5, 0), (6, 0), (9, 2), (10, 2), (14, 6), (15, 6), (30, 14), (0, 6), (3, 12), (20, 20)]
)
def test_the_interval_leaves_out_zero_where_mcnemar_s_test_is_significant(pair, same):
    change = changed(*pair, same).change
    assert (change.low > 0 or change.high < 0) == (mcnemar(*pair) < 0.05), (change, mcnemar(*pair))


def test_mcnemar_s_test_is_the_sign_test():
    assert mcnemar(0, 0) == 1
    assert mcnemar(5, 0) == pytest.approx(2 / 2**5)
    assert mcnemar(8, 1) == mcnemar(1, 8) == pytest.approx(2 * (1 + 9) / 2**9)


@pytest.mark.parametrize(("right", "items"), [(0, 50), (20, 50), (50, 50), (150, 300)])
def test_the_interval_of_a_share_is_clopper_and_pearson_s(right, items):
    found = compared([1.0] * right + [0.0] * (items - right), [1.0] * items).base
    low = beta.ppf(0.025, right, items - right + 1) if right else 0
    high = beta.ppf(0.975, right + 1, items - right) if right < items else 1
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.01)


def test_a_loss_is_summed_over_tokens_and_its_items_are_resampled_whole():
    random = np.random.default_rng(0)
    tokens = random.integers(5, 200, 800).astype(float)
    base = random.gamma(8, 0.25, 800) * tokens
    tuned = base - 0.05 * tokens + 0.2 * random.normal(size=800) * tokens
    found = compared(base, tuned, "per_token", (tokens, tokens))
    assert found.base.value == pytest.approx(base.sum() / tokens.sum())
    assert found.change.value == pytest.approx((tuned - base).sum() / tokens.sum())
    each = (tuned - base - found.change.value * tokens) / tokens.mean()  # linearised, as survey statistics do
    half = 1.96 * each.std() / np.sqrt(800)
    assert (found.change.high - found.change.low) / 2 == pytest.approx(half, rel=0.12)
    assert found.deviation == pytest.approx(each.std())


def test_a_longer_text_weighs_more_and_one_without_tokens_nothing():
    tokens = np.array([1.0, 99, 0])
    found = compared([1.0, 99 * 3, 0], [2.0, 99 * 2, 0], "per_token", (tokens, tokens))
    assert found.base.value == pytest.approx(2.98)
    assert found.change.value == pytest.approx(-0.98)


def test_a_length_changes_by_a_share_of_the_base_s():
    found = compared([10.0, 30, 20, 20] * 100, [15.0, 45, 30, 30] * 100, "relative")
    assert found.change.value == pytest.approx(0.5)
    assert found.change.low == pytest.approx(0.5, abs=0.02)
    nothing = compared([0.0] * 10, [4.0] * 10, "relative").change
    assert nothing.value == 4, "a base that writes nothing counts as one token"


def test_the_order_of_items_and_the_number_of_resamples_change_nothing_that_matters():
    random = np.random.default_rng(1)
    base, tuned = random.random(200), random.random(200)
    order = random.permutation(200)
    found = compared(base, tuned).change
    other, more = compared(base[order], tuned[order]).change, compared(base, tuned, resamples=100_000).change
    assert (other.low, other.high) == pytest.approx((found.low, found.high), abs=1e-12)
    assert (more.low, more.high) == pytest.approx((found.low, found.high), abs=0.004)


def test_a_higher_confidence_is_a_longer_interval_down_to_the_last_resample():
    random = np.random.default_rng(2)
    values = random.random(50), random.random(50)
    spans = [c.high - c.low for at in (0.6, 0.9, 0.95, 0.99, 0.999) if (c := compared(*values, confidence=at).change)]
    assert spans == sorted(spans)
    assert spans[-1] / spans[2] == pytest.approx(3.29 / 1.96, rel=0.2)


def test_many_items_need_no_more_memory_than_few():
    values = np.random.default_rng(3).random((2, 20_000))
    tracemalloc.start()
    compared(*values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100 * 2**20, "all resamples at once would take 1.5 GB"


@pytest.mark.parametrize(
    ("base", "tuned", "said"),
    [([], [], "must be items"), ([1.0], [1.0, 0.0], "one value for each"), ([1.0, np.nan], [1.0, 1.0], "finite")],
)
def test_what_cannot_be_compared_is_refused(base, tuned, said):
    with pytest.raises(ValueError, match=said):
        Sample.of(np.array(base), np.array(tuned))
    with pytest.raises(ValueError, match="no tokens"):
        Sample.of(np.zeros(2), np.zeros(2), "per_token", (np.zeros(2), np.zeros(2)))


@pytest.mark.parametrize("gain", [0.06, 0.1])
def test_with_as_many_items_as_are_said_to_be_needed_four_of_five_comparisons_see_it(gain):
    share = 0.2  # of items change
    deviation = float(np.sqrt(share - gain**2))
    items = items_needed(deviation, gain, 0.95)
    random, seen = np.random.default_rng(4), 0
    for _ in range(200):
        better, worse, same = random.multinomial(items, [(share + gain) / 2, (share - gain) / 2, 1 - share])
        seen += changed(int(better), int(worse), int(same)).change.low > 0
    assert 0.7 < seen / 200 < 0.9


def test_a_change_at_the_threshold_itself_no_number_of_items_tells_from_it():
    assert items_needed(0.5, 0.0, 0.95) is None
    assert items_needed(0.0, 0.1, 0.95) >= fewest_items(0.95)


@pytest.mark.parametrize("items", [10, 30, 100])
@pytest.mark.parametrize("draw", [
    lambda r, n: r.choice([1.0, -1.0, 0.0], n, p=[0.1, 0.1, 0.8]),
    lambda r, n: r.normal(size=n),
    lambda r, n: r.standard_t(3, n),
])  # fmt: skip
def test_an_interval_is_wholly_above_the_truth_no_more_often_than_it_says(draw, items):
    """The percentile interval of ten even differences was above it in 5 %, where it promises 2.5 %."""
    random = np.random.default_rng(items)
    above = sum(compared(np.zeros(items), draw(random, items), resamples=1000).change.low > 0 for _ in range(300))
    assert above / 300 < 0.045


def test_how_far_repeats_lie_apart_is_in_the_unit_of_a_change():
    assert statistics.distance([0.5, 0.53, 0.49], "mean") == pytest.approx(0.04)
    assert statistics.distance([20.0, 25.0], "relative") == pytest.approx(0.25)
    assert statistics.distance([0.5], "mean") == 0
