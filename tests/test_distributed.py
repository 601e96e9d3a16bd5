"""Rank and world size come from what torchrun sets; a lone process needs nothing."""

import pytest

from thriftune import distributed
from thriftune.distributed import Rank, current_rank

VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_a_lone_process_is_rank_0_of_1():
    assert current_rank() == Rank(index=0, local_index=0, world_size=1)
    assert current_rank().is_main


def test_the_rank_is_what_torchrun_says(monkeypatch):
    for name, value in zip(VARIABLES, ("5", "1", "8"), strict=True):
        monkeypatch.setenv(name, value)
    assert current_rank() == Rank(index=5, local_index=1, world_size=8)
    assert not current_rank().is_main


def test_local_rank_0_of_another_node_is_not_the_main_one(monkeypatch):
    monkeypatch.setenv("RANK", "4")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert not current_rank().is_main


@pytest.mark.parametrize(("local_rank", "calls"), [("0", 1), ("1", 0)])
def test_only_local_rank_0_acts_for_its_node(monkeypatch, local_rank, calls):
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    done = []
    distributed.once_per_node(lambda: done.append(1))
    assert len(done) == calls


def test_outside_a_job_there_is_nobody_to_wait_for():
    distributed.barrier()
    assert distributed.gather_objects(2.5) == [2.5]


def test_deepspeed_is_told_of_the_cpu_through_its_variable(monkeypatch):
    import os

    monkeypatch.setenv("DS_ACCELERATOR", "cuda")
    distributed.use_cpu_accelerator()
    assert os.environ["DS_ACCELERATOR"] == "cpu"


def test_two_processes_join_and_gather_in_rank_order(tmp_path):
    import os
    import subprocess
    import sys

    script = tmp_path / "worker.py"
    script.write_text(
        "import sys\n"
        "from thriftune import distributed\n"
        "rank = distributed.join('gloo')\n"
        "again = distributed.join('gloo')\n"
        "assert rank == again and rank.world_size == 2\n"
        "distributed.once_per_node(lambda: open(sys.argv[1] + '/once', 'a').write('x'))\n"
        "gathered = distributed.gather_objects(float(rank.index) + 0.5)\n"
        "open(f'{sys.argv[1]}/rank{rank.index}', 'w').write(str(gathered))\n"
        "distributed.leave()\n"
    )
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [*torchrun, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    assert [(tmp_path / f"rank{i}").read_text() for i in range(2)] == ["[0.5, 1.5]"] * 2
    assert (tmp_path / "once").read_text() == "x"
