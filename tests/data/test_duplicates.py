"""Copies are found however the digests are cut into parts: compared with one loop over all of them."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thriftune.data import duplicates
from thriftune.data.duplicates import Copy, find_copies

# A busy machine is slow at times.
checked = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

KEEP, DUPLICATE, LEAKED = Copy.KEEP, Copy.DUPLICATE, Copy.LEAKED


@pytest.fixture
def find(tmp_path):
    """The marks of digests, each given as a number, of which some are held out."""

    def marks(keys, held_out, *, deduplicate=True, leakage_check=True):
        files = [tmp_path / name for name in ("digests", "held_out", "marks")]
        files[0].write_bytes(b"".join(digest_of(key) for key in keys))
        files[1].write_bytes(bytes(held_out))
        find_copies(*files, deduplicate=deduplicate, leakage_check=leakage_check)
        return list(files[2].read_bytes())

    return marks


def digest_of(key):
    """Sixteen bytes, of which pairs of keys share the first half, and others the second."""
    return (key // 2).to_bytes(8, "little") + (key % 2 * 2**63 + key // 8).to_bytes(8, "little")


def by_hand(keys, held_out, *, deduplicate, leakage_check):
    marks = []
    for i, (key, held) in enumerate(zip(keys, held_out, strict=True)):
        others = [j for j, other in enumerate(keys) if other == key]
        rivals = [j for j in others if held_out[j]] if leakage_check else []
        if leakage_check and not held and rivals:
            marks.append(LEAKED)
        elif deduplicate and i != (rivals or others)[0]:
            marks.append(DUPLICATE)
        else:
            marks.append(KEEP)
    return marks


@pytest.mark.parametrize(("sorted_at_once", "scanned_at_once"), [(1 << 19, 1 << 18), (3, 2), (1, 7)])
@checked
@given(
    pieces=st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=40), policy=st.tuples(*[st.booleans()] * 2)
)
def test_the_marks_are_those_of_a_loop_over_all(find, monkeypatch, sorted_at_once, scanned_at_once, pieces, policy):
    monkeypatch.setattr(duplicates, "_SORTED_AT_ONCE", sorted_at_once)
    monkeypatch.setattr(duplicates, "_SCANNED_AT_ONCE", scanned_at_once)
    keys, held_out = [key for key, _ in pieces], [held for _, held in pieces]
    options = {"deduplicate": policy[0], "leakage_check": policy[1]}
    assert find(keys, held_out, **options) == by_hand(keys, held_out, **options)


@checked
@given(pieces=st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=30))
def test_everything_that_is_said_is_kept_exactly_once(find, pieces):
    keys, held_out = [key for key, _ in pieces], [held for _, held in pieces]
    kept = [key for key, mark in zip(keys, find(keys, held_out), strict=True) if mark == KEEP]
    assert sorted(kept) == sorted(set(keys))


@pytest.mark.parametrize(
    ("held_out", "marks"), [((0, 1), [LEAKED, KEEP]), ((1, 0), [KEEP, LEAKED]), ((0, 1, 1), [LEAKED, KEEP, DUPLICATE])]
)
def test_of_copies_on_both_sides_the_held_out_one_stays(find, held_out, marks):
    """When the training row came first, it leaked and the held-out one was its duplicate: both were lost."""
    assert find([7] * len(held_out), held_out) == marks


def test_each_check_can_be_left_out(find):
    keys, held_out = [1, 1, 2, 2, 3, 3], [0, 0, 0, 1, 1, 1]
    assert find(keys, held_out) == [KEEP, DUPLICATE, LEAKED, KEEP, KEEP, DUPLICATE]
    assert find(keys, held_out, leakage_check=False) == [KEEP, DUPLICATE] * 3
    assert find(keys, held_out, deduplicate=False) == [KEEP, KEEP, LEAKED, KEEP, KEEP, KEEP]
    assert find(keys, held_out, deduplicate=False, leakage_check=False) == [KEEP] * 6


def test_nothing_has_no_copies(find):
    assert find([], []) == []
