"""A training that fell apart is noticed soon; one that is only noisy, new or nearly done is left alone."""

import json
import math
import random

import pytest

from thriftune.training.guards.divergence import PATIENCE, DivergenceGuard


def shown(guard, losses, first_step=1, loss_scale=None):
    """The first divergence in a row of losses."""
    verdicts = (guard.observe(first_step + i, loss, loss_scale) for i, loss in enumerate(losses))
    return next((verdict for verdict in verdicts if verdict is not None), None)


def noisy(count, mean, deviation=0.1, seed=0):
    source = random.Random(seed)
    return [max(0.001, source.gauss(mean, deviation)) for _ in range(count)]


@pytest.mark.parametrize(("loss", "kind"), [(math.nan, "nan"), (math.inf, "infinite"), (-math.inf, "infinite")])
def test_a_loss_that_is_no_number_counts_at_once(loss, kind):
    found = DivergenceGuard().observe(7, loss, 65536.0)
    assert (found.step, found.since, found.kind) == (7, 7, kind)
    assert f"{loss} at step 7" in found.message


@pytest.mark.parametrize(
    "losses",
    [
        noisy(500, 2.0, 0.3),
        [2.0] * 200 + [2.01] * 200,
        [10.0 * 0.98**i + 1.5 for i in range(400)],
        noisy(100, 0.8, 0.4, seed=3) * 4,
        [0.02] * 100 + [0.06] * 100,
        [1.2] * 60 + [9.0] * (PATIENCE - 1) + [1.2] * 60,
        noisy(60, 1.5) + [7.0, 1.5] * 40,
        noisy(60, 2.0) + noisy(200, 3.2),
        [11.0, 30.0, 200.0, 50.0, 9.0, 8.0] * 3 + [4.0] * 100,
    ],
    ids=["noise", "flat", "falling", "very noisy", "learnt by heart", "recovers", "outliers", "harder data", "warmup"],
)
def test_a_healthy_training_is_left_alone(losses):
    assert shown(DivergenceGuard(), losses) is None


@pytest.mark.parametrize("before", [1.2, 2.5, 3.4])
def test_a_collapse_to_token_frequencies_is_found_after_ten_losses(before):
    found = shown(DivergenceGuard(), noisy(100, before) + noisy(100, 7.3, 0.2))
    assert (found.step, found.since, found.kind) == (100 + PATIENCE, 101, "spike")
    assert f"{PATIENCE} losses in a row" in found.message


def test_a_loss_that_climbs_slowly_does_not_pull_its_own_yardstick_up():
    found = shown(DivergenceGuard(), noisy(100, 2.0) + [2.0 + 0.03 * i for i in range(200)])
    assert found.kind == "spike"
    assert found.loss < 4.5


def test_without_half_a_window_nothing_is_a_spike():
    assert shown(DivergenceGuard(window=50), [1.0] * 12 + [20.0] * 12) is None
    assert shown(DivergenceGuard(window=50), [1.0] * 25 + [20.0] * 24).kind == "spike"


def test_a_loss_scale_at_its_floor_counts_when_it_stays_there():
    guard = DivergenceGuard(patience=4)
    assert shown(guard, [2.0] * 3, 1, loss_scale=1.0) is None
    assert shown(guard, [2.0], 4, loss_scale=2.0) is None
    found = shown(guard, [2.0] * 4, 5, loss_scale=1.0)
    assert (found.step, found.since, found.kind) == (8, 5, "scale-floor")
    assert guard.observe(9, 2.0, 1.0) is None  # counted anew


def test_a_step_that_is_left_out_does_not_shift_where_a_spike_began():
    guard = DivergenceGuard()
    shown(guard, noisy(50, 2.0))
    steps = [51, 52, *range(54, 62)]
    verdicts = [guard.observe(step, 9.0) for step in steps]
    assert (verdicts[-1].step, verdicts[-1].since) == (61, 51)


def test_what_is_far_off_is_suspicious_until_it_is_over():
    """Checkpoints saved meanwhile took the place of the last good one."""
    guard = DivergenceGuard()
    shown(guard, noisy(50, 2.0))
    verdicts = []
    for step, (loss, scale) in enumerate([(2.0, 64.0), (9.0, 64.0), (2.0, 64.0), (2.0, 1.0), (2.0, 2.0)], 51):
        guard.observe(step, loss, scale)
        verdicts.append(guard.is_suspicious)
    assert verdicts == [False, True, False, True, False]


def test_a_scale_that_falls_is_dynamic_scaling_at_work():
    guard = DivergenceGuard(patience=4)
    assert [guard.observe(i, 2.0, 65536.0 / 2**i) for i in range(16)] == [None] * 16


def test_a_guard_that_went_through_json_goes_on_as_if_nothing_had_happened():
    """With an empty window, a run that resumed into a divergence trained on for half a window more."""
    losses = noisy(80, 2.0) + [8.0] * 30
    whole = DivergenceGuard()
    expected = [whole.observe(i, loss, 1.0 if 40 < i < 47 else 2.0) for i, loss in enumerate(losses)]
    assert sum(found is not None for found in expected) == 3
    for cut in (3, 44, 85):
        first = DivergenceGuard()
        found = [first.observe(i, loss, 1.0 if 40 < i < 47 else 2.0) for i, loss in enumerate(losses[:cut])]
        second = DivergenceGuard.from_state(json.loads(json.dumps(first.state(), allow_nan=False)))
        rest = enumerate(losses[cut:], cut)
        assert found + [second.observe(i, loss, 1.0 if 40 < i < 47 else 2.0) for i, loss in rest] == expected
        assert second.state() == whole.state()


def test_a_resumed_run_may_have_a_smaller_window():
    guard = DivergenceGuard()
    shown(guard, noisy(50, 2.0))
    resumed = DivergenceGuard.from_state(guard.state(), window=10, patience=2)
    assert resumed.state()["losses"] == guard.state()["losses"][-10:]
    assert shown(resumed, [9.0, 9.0], 51).step == 52
