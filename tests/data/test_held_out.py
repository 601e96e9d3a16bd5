"""What is held out: compared with a loop over all rows in memory, however they are copied, mixed and chosen."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from thriftune.data.formats import FORMATS
from thriftune.data.held_out import hold_out
from thriftune.data.selection import Mix, held_out_shares, select
from thriftune.data.sources import NumberedRow, OpenSource
from thriftune.errors import DataError

# A busy machine is slow at times.
checked = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def opened(rows):
    """Rows as a source."""
    raws = [json.dumps(row).encode() if isinstance(row, dict) else row for row in rows]
    return OpenSource("rows", (), len(raws), lambda: (NumberedRow("rows", n, raw) for n, raw in enumerate(raws, 1)))


@pytest.fixture
def sides(tmp_path):
    """For each used row of sources, by source and position, whether it is held out."""

    def decide(sources, *, name="text", share=0.2, seed=0, of_task=None, **options):
        of_task = len(sources) if of_task is None else of_task
        selections = select([len(rows) for rows in sources], Mix(**options), seed=seed)
        made = hold_out(
            [opened(rows) for rows in sources],
            selections,
            [FORMATS[name]] * len(sources),
            share=share,
            of_task=of_task,
            folder=tmp_path,
        )
        used = [
            (s, int(i)) for s, chosen in enumerate(selections) for i in np.flatnonzero(chosen.uses(0, chosen.count))
        ]
        return {place: bool(flag) for place, flag in zip(used, made.tolist(), strict=True)}

    return decide


@checked
@given(
    sources=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=12), min_size=1, max_size=3),
    share=st.floats(0.01, 0.99),
    max_rows=st.none() | st.integers(2, 30),
    seed=st.integers(0, 9),
)
def test_a_share_of_the_different_rows_is_held_out_and_every_copy_of_them(sides, sources, share, max_rows, seed):
    assume(sum(map(len, sources)) >= 2)
    rows = [[{"text": f"row {number}", "id": n} for n, number in enumerate(numbers)] for numbers in sources]
    try:
        found = sides(rows, share=share, seed=seed, max_rows=max_rows)
    except DataError:  # of all that is used, one row is left: see below
        assume(False)
    held_out, train = ({sources[s][i] for (s, i), held in found.items() if held is side} for side in (True, False))
    assert not held_out & train
    firsts = {}
    for source, position in found:
        firsts.setdefault(sources[source][position], source)
    unique = [list(firsts.values()).count(source) for source in range(len(sources))]
    assert len(held_out) == sum(held_out_shares(unique, share))


def test_rows_that_are_all_different_are_held_out_by_their_ranks_alone(sides):
    """As long as nothing is there twice, what a row says does not decide on which side it is."""
    one, other = (sides([[{"text": f"{word} {i}"} for i in range(50)]]) for word in ("a", "b"))
    assert one == other
    assert sum(one.values()) == 10


def test_rows_that_differ_only_in_what_is_not_read_are_one(sides):
    chat = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So.", "weight": 1}]
    other = [{"content": "Why?", "id": 7, "role": "user"}, {"role": "assistant", "content": "So.", "weight": 0}]
    filler = [{"messages": [{**turn, "content": f"{turn['content']} {i}"} for turn in chat]} for i in range(8)]
    rows = [{"messages": chat, "id": 1}, *filler, {"id": 2, "messages": other}]
    for seed in range(20):
        found = sides([rows], name="chat", seed=seed)
        assert found[0, 0] == found[0, 9]
        assert sum(found.values()) == 2 + found[0, 0]


def test_rows_that_cannot_be_read_are_no_copies_of_each_other(sides):
    found = sides([[b"broken"] * 10 + [{"text": f"row {i}"} for i in range(10)]])
    assert sum(found.values()) == 4


def test_rows_that_all_say_the_same_cannot_be_split(sides):
    """Twenty copies: all of them leaked, and the error named no cause."""
    with pytest.raises(DataError, match="20 identical rows: cannot be split"):
        sides([[{"text": "the only row"}] * 20])


def test_copies_that_differ_in_what_a_template_does_not_write_are_copies(sides):
    """Ids of calls are drawn anew for each copy, and 15 of 40 conversations were held out in place of 2."""

    def called(number, copy):
        call = {"id": f"call-{number}-{copy}", "type": "function", "function": {"name": "sky", "arguments": {}}}
        return {
            "messages": [
                {"role": "user", "content": f"Question {number}?{' ' * copy}"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "blue", "tool_call_id": call["id"]},
                {"role": "assistant", "content": "Blue."},
            ]
        }

    found = sides([[called(number, copy) for number in range(10) for copy in range(3)]], name="chat")
    held_out = {place // 3 for (_, place), is_held_out in found.items() if is_held_out}
    assert len(held_out) == 2
    assert sum(found.values()) == 3 * 2
