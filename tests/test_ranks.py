"""Ranks that are forked are what torchrun starts: numbered, together, and ended by the first that fails."""

import json

import pytest
import ranks

_SEEN = """
import json, os, sys
from thriftune import distributed

rank = distributed.join("gloo")
given = os.environ.get("GIVEN_TO_THE_TEST")
with open(f"{sys.argv[1]}-{rank.index}", "w") as file:
    json.dump([rank.local_index, rank.world_size, distributed.mean(float(rank.index)), given], file)
distributed.leave()
"""
_FAILING = """
import os, time

if os.environ["RANK"] == "1":
    raise ValueError("this one cannot go on")
time.sleep(600)
"""


def test_ranks_know_their_numbers_and_their_environment_and_meet(tmp_path, monkeypatch):
    script = tmp_path / "script.py"
    script.write_text(_SEEN)
    for given in ("first", "second"):
        monkeypatch.setenv("GIVEN_TO_THE_TEST", given)
        ranks.run(2, script, tmp_path / given)
        seen = [json.loads((tmp_path / f"{given}-{rank}").read_text()) for rank in range(2)]
        assert seen == [[0, 2, 0.5, given], [1, 2, 0.5, given]]


def test_a_rank_that_fails_ends_the_others_and_says_why(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(_FAILING)
    with pytest.raises(AssertionError, match="this one cannot go on"):
        ranks.run(2, script, tmp_path / "job")
