"""Several nodes make one checkpoint together, or none."""

import threading

import pytest
from checkpointing import GatedStore, content_of, restore, until, whole_steps, write_checkpoint

from thriftune.checkpoints import layout
from thriftune.checkpoints.manifest import Manifest
from thriftune.checkpoints.restoring import complete, verify_and_fetch
from thriftune.checkpoints.saving import BackgroundSaver
from thriftune.errors import TransientError
from thriftune.stores.store import Store

pytest_plugins = ("store_kinds",)


def saver_of(store, node, nodes, keep=2, give_up_s=20.0):
    return BackgroundSaver(
        store, node=node, nodes=nodes, world_size=2 * nodes, keep=keep, poll_s=0.02, give_up_s=give_up_s
    )


def written(tmp_path, node, step):
    return write_checkpoint(tmp_path / f"node{node}/{step}", step, ranks=range(2 * node, 2 * node + 2))


def test_a_checkpoint_holds_every_ranks_shards_from_every_node(store, tmp_path):
    nodes = 3
    savers = [saver_of(Store(store.prefix), node, nodes) for node in range(nodes)]
    expected = {}
    for step in (10, 20, 30):
        for node, saver in reversed(list(enumerate(savers))):
            directory = written(tmp_path, node, step)
            expected.update(content_of(directory))
            saver.save(directory, step, {"from": node})
        assert all(saver.wait(30) for saver in savers)
    for saver in savers:
        saver.close()
        assert (saver.failures, saver.last_complete) == ([], 30)
    restored = restore([store], tmp_path / "new")
    assert restored is not None
    assert content_of(restored.directory) == expected
    assert (restored.manifest.nodes, restored.manifest.world_size) == (nodes, 2 * nodes)
    assert restored.manifest.content == {"from": 0}
    assert {layout.step_of(name) for name in store.names()} == {20, 30}
    for node in range(nodes):
        assert [p.name for p in (tmp_path / f"node{node}").iterdir()] == ["30"], "each keeps the newest"


def test_without_the_part_of_a_node_that_died_there_is_no_manifest(local, tmp_path, caplog):
    savers = [saver_of(Store(local.prefix), node, 3, give_up_s=0.3) for node in range(3)]
    for node in (0, 2):
        savers[node].save(written(tmp_path, node, 10), 10, {})
    for node in (0, 2):
        assert savers[node].wait(20)
        assert savers[node].last_complete is None
    assert "no part came from node 1 in 0.3 s." in savers[0].failures[0]
    assert "The checkpoint of step 10 could not be saved, training goes on" in caplog.text
    assert complete([local]) == []
    for node, saver in enumerate(savers):  # and a death of one checkpoint is not that of the next
        saver.save(written(tmp_path, node, 20), 20, {})
    assert all(saver.wait(20) for saver in savers)
    assert whole_steps(local, tmp_path) == [20]
    assert {layout.step_of(name) for name in local.names()} == {20}, "what was left incomplete is cleared away"


def test_a_node_that_failed_says_so_and_nobody_waits_for_it(local, tmp_path):
    class Failing(Store):
        def upload(self, file, name, sha256=""):
            raise TransientError("its link is down.")

    savers = [saver_of(Store(local.prefix), 0, 2, give_up_s=300), saver_of(Failing(local.prefix), 1, 2, give_up_s=300)]
    for step in (10, 20, 30):
        for node, saver in enumerate(savers):
            saver.save(written(tmp_path, node, step), step, {})
        assert all(saver.wait(20) for saver in savers)
    assert "node 1 uploaded no part: it failed (its link is down.)" in savers[0].failures[0]
    savers[0].save(written(tmp_path, 0, 40), 40, {})  # the one at fault stops the job, not those that wait for it
    with pytest.raises(TransientError, match="The last 3 checkpoints"):
        savers[1].save(written(tmp_path, 1, 40), 40, {})


def test_a_part_of_workers_that_are_gone_is_not_taken_for_a_new_one(local, tmp_path):
    # Restarted in the same attempt, node 0 took node 1's part of before the restart, while node 1 uploaded anew.
    dead = saver_of(Store(local.prefix), 1, 2, give_up_s=0.1)
    dead.save(write_checkpoint(tmp_path / "dead", 99, ranks=range(2, 4)), 10, {})
    assert dead.wait(20)
    assert local.get_bytes(layout.part_name(10, 1)) is not None
    gate = threading.Event()
    savers = [saver_of(Store(local.prefix), 0, 2), saver_of(GatedStore(local.prefix, gate), 1, 2)]
    expected = {}
    for node, saver in enumerate(savers):
        directory = written(tmp_path, node, 10)
        expected.update(content_of(directory))
        saver.save(directory, 10, {})
    until(lambda: local.get_bytes(layout.part_name(10, 0)))
    assert not savers[0].wait(0.2)
    assert complete([local]) == []
    gate.set()
    assert all(saver.wait(20) for saver in savers)
    restored = restore([local], tmp_path / "new")
    assert restored is not None
    assert content_of(restored.directory) == expected


def test_nodes_of_different_speed_still_finish_checkpoints_together(local, tmp_path):
    gate = threading.Event()
    slow = GatedStore(local.prefix, gate)
    savers = [saver_of(Store(local.prefix), 0, 2), saver_of(slow, 1, 2)]
    for step in (10, 20, 30, 40):
        for node, saver in enumerate(savers):
            saver.save(written(tmp_path, node, step), step, {})
        until(lambda: slow.begun and local.get_bytes(layout.part_name(10, 0)))
    gate.set()
    assert all(saver.wait(30) for saver in savers)
    assert [saver.last_complete for saver in savers] == [40, 40]
    assert [saver.failures for saver in savers] == [[], []]
    assert whole_steps(local, tmp_path) == [40, 10]


def test_a_step_that_one_node_left_out_is_given_up_at_once(local, tmp_path):
    gate = threading.Event()
    slow = GatedStore(local.prefix, gate)
    savers = [saver_of(Store(local.prefix), 0, 2, give_up_s=300), saver_of(slow, 1, 2, give_up_s=300)]
    savers[1].save(written(tmp_path, 1, 10), 10, {})
    until(lambda: slow.begun)
    for step in (20, 30):  # node 1 leaves 20 out; node 0, which had less to do, has begun it
        savers[1].save(written(tmp_path, 1, step), step, {})
    for step in (10, 20):
        savers[0].save(written(tmp_path, 0, step), step, {})
        if step == 10:
            gate.set()
            until(lambda: savers[0].last_complete == 10)
    savers[0].save(written(tmp_path, 0, 30), 30, {})
    assert all(saver.wait(20) for saver in savers)
    assert [saver.last_complete for saver in savers] == [30, 30]
    assert savers[0].failures in (
        [],
        ["step 20: IncompleteError: node 1 uploaded no part: it was skipped for a newer one."],
    )


def test_files_of_one_name_from_two_nodes_do_not_overwrite_each_other(local, tmp_path):
    savers = [saver_of(Store(local.prefix), node, 2) for node in range(2)]
    for node, saver in enumerate(savers):
        directory = written(tmp_path, node, 10)
        (directory / "latest").write_text(f"written by node {node}")
        saver.save(directory, 10, {})
    assert all(saver.wait(20) for saver in savers)
    restored = restore([local], tmp_path / "new")
    assert restored is not None
    assert (restored.directory / "latest").read_text() == "written by node 0"


def test_nodes_agree_by_going_on_together_when_one_finds_damage(local, tmp_path):
    savers = [saver_of(Store(local.prefix), node, 2) for node in range(2)]
    for step in (10, 20):
        for node, saver in enumerate(savers):
            saver.save(written(tmp_path, node, step), step, {})
        assert all(saver.wait(20) for saver in savers)
    shard = layout.file_name(20, 1, "global_step/rank_3_optim_states.pt")
    data = bytearray(local.get_bytes(shard) or b"")
    data[100] ^= 1
    local.put_bytes(shard, bytes(data))

    def wanted(node):
        return lambda name: f"rank_{2 * node}_" in name or f"rank_{2 * node + 1}_" in name or "trainer" in name

    chosen = None
    for store, manifest in complete([local]):
        problems = [
            verify_and_fetch(store, manifest, tmp_path / f"new{node}/{manifest.step}", wanted(node))
            for node in range(2)
        ]
        if not any(problems):
            chosen = manifest.step
            break
        assert problems[0] == [], "node 0 does not need the damaged file"
        assert "rank_3_optim_states.pt of step 20 is not what was saved" in problems[1][0]
    assert chosen == 10
    assert "global_step/rank_0_optim_states.pt" in content_of(tmp_path / "new0/10")
    assert "global_step/rank_2_optim_states.pt" not in content_of(tmp_path / "new0/10")


def test_a_part_of_another_shape_of_the_job_is_refused(local, tmp_path):
    saver = saver_of(local, 0, 2)
    stray = Manifest(10, 8, 4, (), {})
    local.put_bytes(layout.part_name(10, 1), stray.to_bytes())
    saver.save(written(tmp_path, 0, 10), 10, {})
    assert saver.wait(20)
    assert "the part of node 1 is from 8 ranks on 4 nodes" in saver.failures[0]
    assert complete([local]) == []
