"""What a container may use: limits of cgroup v2 and v1, as the files of a kubelet give them."""

import os
from pathlib import Path

import pytest

from thriftune.container import Fill, cpus, memory_fill

GIB = 2**30
THERE = len(os.sched_getaffinity(0))


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(f"{content}\n")


def test_the_tightest_limit_of_cgroup_v2_counts_without_the_file_cache(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/kubepods/pod1/main\n")
    stat = f"anon 5\nfile 7\ninactive_file {GIB}"
    write(tmp_path / "fs", memory__stat=stat)  # the root group has no limit file
    write(tmp_path / "fs/kubepods", memory__max=64 * GIB, memory__current=30 * GIB, memory__stat=stat)
    write(tmp_path / "fs/kubepods/pod1", memory__max=4 * GIB, memory__current=3 * GIB, memory__stat=stat)
    write(tmp_path / "fs/kubepods/pod1/main", memory__max="max", memory__current=3 * GIB, memory__stat=stat)
    assert memory_fill(tmp_path / "fs", own) == Fill(2.0, 4.0)


def test_a_container_sees_its_own_group_at_the_root(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/../../not/there\n")
    write(tmp_path / "fs", memory__max=4 * GIB, memory__current=3 * GIB, memory__stat="inactive_file 0")
    assert memory_fill(tmp_path / "fs", own) == Fill(3.0, 4.0)


def test_cgroup_v1(tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("5:cpu,cpuacct:/\n4:memory:/docker/abc\n0::/\n")
    files = {"memory__usage_in_bytes": 3 * GIB, "memory__stat": f"total_inactive_file {GIB}"}
    write(tmp_path / "fs/memory/docker/abc", memory__limit_in_bytes=8 * GIB, **files)
    write(tmp_path / "fs/memory", memory__limit_in_bytes=9223372036854771712, **files)
    assert memory_fill(tmp_path / "fs", own) == Fill(2.0, 8.0)


@pytest.mark.parametrize("content", [None, "", "nonsense", "4:cpu:/\n"])
def test_without_cgroups_there_is_no_limit(content, tmp_path):
    own = tmp_path / "cgroup"
    if content is not None:
        own.write_text(content)
    assert memory_fill(tmp_path / "fs", own) is None
    assert cpus(tmp_path / "fs", own) == THERE


@pytest.mark.parametrize(
    ("quota", "period", "given"), [("max", 100000, THERE), (50000, 100000, 0.5), (10 * THERE, 1, THERE)]
)
def test_cpus_are_those_of_the_tightest_group_of_cgroup_v2(quota, period, given, tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("0::/kubepods/pod1\n")
    write(tmp_path / "fs", memory__stat="")  # the root group has no limit file
    write(tmp_path / "fs/kubepods", cpu__max="max 100000")
    write(tmp_path / "fs/kubepods/pod1", cpu__max=f"{quota} {period}")
    assert cpus(tmp_path / "fs", own) == given


@pytest.mark.parametrize(("quota", "given"), [(-1, THERE), (25000, 0.25)])
def test_cpus_of_cgroup_v1(quota, given, tmp_path):
    own = tmp_path / "cgroup"
    own.write_text("5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n0::/\n")
    write(tmp_path / "fs/cpu/docker/abc", cpu__cfs_quota_us=quota, cpu__cfs_period_us=100000)
    write(tmp_path / "fs/cpu", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    assert cpus(tmp_path / "fs", own) == given
