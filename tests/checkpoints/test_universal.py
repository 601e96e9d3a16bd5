"""A training goes on with another number of ranks as if nothing had been: real DeepSpeed over gloo, tiny model."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from thriftune import artifacts
from thriftune.config import ModelConfig
from thriftune.disk import DiskFullError
from thriftune.errors import UserError
from thriftune.models import architecture
from thriftune.strategies import STRATEGIES
from thriftune.strategies.zero import universal
from thriftune.strategies.zero.strategy import settings_of

WORKER = Path(__file__).parent / "universal_worker.py"
STEPS, SAVED_AT = 8, 4
TOLERANCE = 1e-5
# Micro batch by number of ranks: 12 rows a step, in 6, 3, 2 and 3 accumulations.
MICRO_BATCH = {1: 2, 2: 2, 3: 2, 4: 1}
# 20,000 weights a sub-group: ranks have several, as those of a model of any size do with the library's 25 million.
ZERO3 = {"stage": 3, "overlap_comm": False, "contiguous_gradients": True, "sub_group_size": 20_000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("universal")


@pytest.fixture(scope="module")
def zero3(folder, tiny_model_dir):
    """Eight steps on 2 ranks with a checkpoint at step 4, and the last four again on 1 and on 4 ranks."""
    return resumed(folder / "zero3", tiny_model_dir, ZERO3, [1, 4])


def resumed(
    folder: Path, model: Path, section: dict, ranks: list[int], written_by: int = 2, save_at: int = SAVED_AT, **job
) -> dict:
    """Train on `written_by` ranks with a checkpoint, and from it on others: results by ranks, and the "whole" one."""
    folder.mkdir()
    common = {"model": str(model), "section": section, "steps": STEPS, **job}
    saved = str(checkpoint_of(folder, save_at))
    jobs = {"whole": {**common, "ranks": written_by, "save_at": save_at}}
    for number in ranks:
        converts = number != written_by and section["stage"] > 0
        jobs[number] = {**common, "ranks": number, "resume": saved, "converts": converts}
    for name, content in jobs.items():
        content["output"] = str(folder / ("whole" if name == "whole" else f"resumed-{name}"))
        content["micro_batch"] = MICRO_BATCH[content["ranks"]]
    run(folder / "jobs.json", list(jobs.values()))
    return {name: json.loads(Path(f"{content['output']}.json").read_text()) for name, content in jobs.items()}


def checkpoint_of(folder: Path, step: int = SAVED_AT) -> Path:
    return folder / "whole" / f"checkpoint-{step}"


def run(file: Path, jobs: list[dict]) -> None:
    file.write_text(json.dumps(jobs))
    done = subprocess.run([sys.executable, WORKER, file], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def assert_same(result: dict, whole: dict, after: int = SAVED_AT, tolerance: float = TOLERANCE) -> None:
    steps = [str(step) for step in range(after + 1, STEPS + 1)]
    assert result["rows"] == whole["rows"][after:]
    assert [result["learning_rates"][s] for s in steps] == [whole["learning_rates"][s] for s in steps]
    for step in steps:
        assert result["losses"][step] == pytest.approx(whole["losses"][step], abs=tolerance), step
    assert result["tokens"] == whole["tokens"]
    assert set(result["adam_steps"]) == set(whole["adam_steps"]) == {STEPS}
    assert result["loss_scale"] == whole["loss_scale"]
    assert whole["losses"][str(STEPS)] < whole["losses"]["1"] - 1, "it must train, or the comparison says nothing"


@pytest.mark.parametrize("ranks", [1, pytest.param(4, marks=pytest.mark.faults)])
def test_zero3_of_two_ranks_goes_on_with_others(zero3, ranks):
    assert_same(zero3[ranks], zero3["whole"])
    assert len(zero3["whole"]["adam_steps"]) > 1, "with one sub-group there are no steps to keep apart"


def test_a_checkpoint_is_as_large_as_the_plan_counts(zero3, folder, tiny_model_dir):
    """Each rank's file has some kilobytes besides, which are much of a model this small."""
    assert checkpoint_size(folder / "zero3") == pytest.approx(planned_size(tiny_model_dir, "fp32", 3), rel=0.1)


@pytest.mark.faults
@pytest.mark.parametrize(("stage", "precision"), [(0, "fp32"), (0, "fp16"), (1, "fp16"), (2, "fp32"), (2, "bf16")])
def test_checkpoints_of_other_stages_are_as_large_as_the_plan_counts(tmp_path, tiny_model_dir, stage, precision):
    resumed(tmp_path / "run", tiny_model_dir, {**ZERO3, "stage": stage}, [], precision=precision)
    assert checkpoint_size(tmp_path / "run") == pytest.approx(planned_size(tiny_model_dir, precision, stage), rel=0.1)


def checkpoint_size(folder: Path) -> int:
    return sum(file.stat().st_size for file in checkpoint_of(folder).rglob("*") if file.is_file())


def planned_size(model: Path, precision: str, stage: int) -> int:
    parameters = architecture.of(ModelConfig(source=str(model))).parameters
    settings = settings_of("", {"zero_optimization": {"stage": stage}})
    return STRATEGIES["zero"].checkpoint_bytes(parameters, precision, settings, nodes=1)


def test_what_is_converted_has_no_shard_of_a_rank_in_it(zero3, folder):
    """DeepSpeed copies rank 0's shard into what every rank loads."""
    converted = folder / "zero3" / "resumed-1" / "universal"
    assert (converted / "latest_universal").read_text() == "global_step4_universal"
    assert not (converted / "latest").exists()
    assert (converted / "trainer_state.json").is_file()
    common = converted / "global_step4_universal" / "zero" / "optimizer_state.pt"
    assert common.stat().st_size < 10_000, "a shard has 800,000 bytes"
    assert artifacts.read_manifest(converted)["world_size"] == 2


@pytest.mark.parametrize(
    "missing",
    ["zero_pp_rank_1_mp_rank_00_optim_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt",
     "zero_pp_rank_1_mp_rank_00_model_states.pt"],
)  # fmt: skip
def test_missing_shard_is_named_and_nothing_is_made(zero3, folder, tmp_path, missing):
    """DeepSpeed's converter says of most of them that some shape is invalid."""
    checkpoint = shutil.copytree(checkpoint_of(folder / "zero3"), tmp_path / "checkpoint-4")
    (checkpoint / "global_step4" / missing).unlink()
    with pytest.raises(FileNotFoundError, match=missing):
        universal.to_universal(checkpoint)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-4"]


def test_directory_that_deepspeed_did_not_write_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"latest is missing"):
        universal.to_universal(tmp_path)
    (tmp_path / "latest").write_text("global_step4")
    with pytest.raises(FileNotFoundError, match=r"global_step4 is missing"):
        universal.to_universal(tmp_path)


def test_states_on_nvme_are_refused(zero3, folder, tmp_path):
    checkpoint = shutil.copytree(checkpoint_of(folder / "zero3"), tmp_path / "checkpoint-4")
    (checkpoint / "global_step4" / "offloaded_tensors").mkdir()
    with pytest.raises(UserError, match="NVMe"):
        universal.to_universal(checkpoint)


def test_full_disk_is_found_before_it_is_full(zero3, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(universal, "free_bytes", lambda _: 1_000_000)
    with pytest.raises(DiskFullError):
        universal.to_universal(checkpoint_of(folder / "zero3"), tmp_path / "converted")
    assert not list(tmp_path.iterdir())


def test_conversion_that_was_killed_is_not_taken_for_whole(zero3, folder, tmp_path):
    checkpoint = checkpoint_of(folder / "zero3")
    destination = tmp_path / "converted"
    # It stops for good once half of the parameters are joined.
    code = (
        "import sys, time; from pathlib import Path; from thriftune.strategies.zero import universal\n"
        "from deepspeed.checkpoint import ds_to_universal\n"
        "merge, done = ds_to_universal.merge_zero3_slices, []\n"
        "def slow(*args):\n"
        "    done.append(merge(*args))\n"
        "    while len(done) > 10: time.sleep(1)\n"
        "ds_to_universal.merge_zero3_slices = slow\n"
        "universal.to_universal(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    )
    converting = subprocess.Popen([sys.executable, "-c", code, checkpoint, destination], env=on_cpu())
    try:
        wait_for(lambda: len(list(tmp_path.glob("*.partial/global_step4_universal/zero/*"))) > 10, converting)
    finally:
        converting.send_signal(signal.SIGKILL)
        converting.wait()
    assert list(tmp_path.glob("*.partial"))
    assert not destination.exists()
    assert universal.to_universal(checkpoint, destination) == destination
    assert artifacts.is_whole(destination)
    assert [p.name for p in tmp_path.iterdir()] == ["converted"], "what was abandoned is taken off the disk"
    before = sorted((p, p.stat().st_mtime_ns) for p in destination.rglob("*"))
    universal.to_universal(checkpoint, destination)
    assert sorted((p, p.stat().st_mtime_ns) for p in destination.rglob("*")) == before, "it was made again"


def test_conversion_prints_nothing(zero3, folder, tmp_path, capfd):
    universal.to_universal(checkpoint_of(folder / "zero3"), tmp_path / "converted")
    assert capfd.readouterr() == ("", "")


def on_cpu() -> dict[str, str]:
    return {**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def wait_for(condition, process: subprocess.Popen) -> None:
    for _ in range(600):
        if condition():
            return
        assert process.poll() is None, "it ended by itself"
        time.sleep(0.1)
    raise TimeoutError


def test_universal_config_changes_no_configuration():
    config = {"zero_optimization": {"stage": 3}, "checkpoint": {"tag_validation": "Fail"}}
    new = universal.universal_config(config)
    assert new["checkpoint"] == {"tag_validation": "Fail", "load_universal": True}
    assert config["checkpoint"] == {"tag_validation": "Fail"}
    assert new["zero_optimization"] is not config["zero_optimization"]
    assert universal.universal_config({})["checkpoint"] == {"load_universal": True}


def test_each_part_counts_its_own_steps():
    import torch

    class Wrapper:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    parts = [torch.ones(3, requires_grad=True) for _ in range(3)]
    adam = torch.optim.AdamW(parts)
    shared = torch.tensor(4.0)
    for part in parts:
        part.grad = torch.ones(3)
        adam.state[part] = {"step": shared, "exp_avg": torch.zeros(3), "exp_avg_sq": torch.zeros(3)}
    universal.separate_steps(Wrapper(Wrapper(adam)))
    adam.step()
    assert [float(state["step"]) for state in adam.state.values()] == [5, 5, 5]


def global_batches(rows: int, micro_batch: int, accumulation: int, ranks: int) -> list[list[int]]:
    """What every step of one epoch trains on, from the classes that the Trainer cuts its batches with."""
    from accelerate.data_loader import BatchSamplerShard
    from torch.utils.data import BatchSampler

    whole = BatchSampler(range(rows), micro_batch, drop_last=False)
    shards = [list(BatchSamplerShard(whole, ranks, rank)) if ranks > 1 else list(whole) for rank in range(ranks)]
    starts = range(0, len(shards[0]), accumulation)
    return [sorted(r for shard in shards for b in shard[at : at + accumulation] for r in b) for at in starts]


def test_same_rows_form_each_global_batch_for_any_number_of_ranks():
    """All but the last step of an epoch, and that one too when the ranks' micro batches need no filling up."""
    cuts = [(m, 12 // (m * n), n) for n in (1, 2, 3, 4, 6, 12) for m in (1, 2, 3, 4, 6, 12) if 12 % (m * n) == 0]
    assert len(cuts) > 15
    for rows in range(25, 61):
        expected = [list(range(at, min(at + 12, rows))) for at in range(0, rows, 12)]
        for micro_batch, accumulation, ranks in cuts:
            batches = global_batches(rows, micro_batch, accumulation, ranks)
            assert len(batches) == len(expected)
            assert batches[:-1] == expected[:-1]
            filling = -rows % (micro_batch * ranks) if ranks > 1 else 0
            assert batches[-1] == sorted(expected[-1] + list(range(filling)))


def test_grouping_by_length_of_transformers_depends_on_the_ranks():
    """Why a trainer that goes on with other ranks needs a sampler of its own for it: each rank's part is its unit."""
    import torch
    from transformers.trainer_pt_utils import get_length_grouped_indices

    lengths = [7 * i % 31 for i in range(3000)]
    orders = [
        get_length_grouped_indices(lengths, unit, generator=torch.Generator().manual_seed(0)) for unit in (12, 6, 3)
    ]
    assert all(a != b for a, b in pairwise(orders))


@pytest.mark.faults
@pytest.mark.parametrize("stage", [1, 2])
def test_zero1_and_zero2_go_on_with_others(tmp_path, tiny_model_dir, stage):
    section = {**ZERO3, "stage": stage}
    del section["sub_group_size"]
    results = resumed(tmp_path / "run", tiny_model_dir, section, [1, 4])
    for ranks in (1, 4):
        assert_same(results[ranks], results["whole"])


@pytest.mark.faults
def test_two_nodes_instead_of_three(tmp_path, tiny_model_dir):
    """In the middle of the second epoch: the order of that epoch, and not the first, is gone on with."""
    results = resumed(tmp_path / "run", tiny_model_dir, ZERO3, [2, 3], written_by=3, rows=48, save_at=6)
    assert_same(results[2], results["whole"], after=6)
    assert_same(results[3], results["whole"], after=6)


@pytest.mark.faults
@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 1e-3), ("bf16", 5e-3)])
@pytest.mark.parametrize("stage", [2, 3])
def test_16_bit_training_goes_on_with_its_loss_scale(tmp_path, tiny_model_dir, stage, precision, tolerance):
    """Sums of gradients are rounded otherwise with other accumulations; the first loss after resuming is exact."""
    results = resumed(tmp_path / "run", tiny_model_dir, {**ZERO3, "stage": stage}, [1], precision=precision)
    assert_same(results[1], results["whole"], tolerance=tolerance)
    first = str(SAVED_AT + 1)
    assert results[1]["losses"][first] == pytest.approx(results["whole"]["losses"][first], abs=1e-5)
    if precision == "fp16":
        assert results[1]["loss_scale"] > 2**8, "the scale must have moved, or the comparison says nothing"


@pytest.mark.faults
def test_zero0_needs_no_conversion(tmp_path, tiny_model_dir):
    results = resumed(tmp_path / "run", tiny_model_dir, {**ZERO3, "stage": 0}, [1])
    assert_same(results[1], results["whole"])


@pytest.mark.faults
def test_number_of_ranks_changes_twice(tmp_path, tiny_model_dir):
    """What ranks that resumed from a converted checkpoint save is an ordinary checkpoint again."""
    common = {"model": str(tiny_model_dir), "section": ZERO3, "steps": STEPS}
    first, second = tmp_path / "two", tmp_path / "four"
    jobs = [
        {**common, "ranks": 2, "output": str(first), "save_at": 3},
        {**common, "ranks": 4, "micro_batch": 1, "output": str(second), "resume": str(first / "checkpoint-3"),
         "converts": True, "save_at": 6},
        {**common, "ranks": 1, "output": str(tmp_path / "one"), "resume": str(second / "checkpoint-6"),
         "converts": True},
    ]  # fmt: skip
    run(tmp_path / "jobs.json", jobs)
    whole, last = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("two", "one"))
    assert_same(last, whole, after=6)


@pytest.mark.faults
def test_steps_must_be_kept_apart(tmp_path, tiny_model_dir):
    """Says when `separate_steps` can go: DeepSpeed counts the steps of all sub-groups in one tensor."""
    results = resumed(tmp_path / "run", tiny_model_dir, ZERO3, [1], separate_steps=False)
    assert min(results[1]["adam_steps"]) > STEPS
    last = str(STEPS)
    assert abs(results[1]["losses"][last] - results["whole"]["losses"][last]) > 1e-3
