import pytest

from thriftune.config import ModelConfig
from thriftune.hardware import DEVICES
from thriftune.models.architecture import of
from thriftune.planning.memory import estimate
from thriftune.strategies import STRATEGIES, Machines
from thriftune.strategies.memory.activations import StepShape
from thriftune.strategies.zero.strategy import settings_of

MODEL = ModelConfig(source="meta-llama/Llama-2-13b-hf")


@pytest.mark.parametrize(
    ("stage", "precision", "per_parameter"),
    [
        (0, "fp16", 14),
        (0, "fp32", 12),
        (1, "fp16", 12 / 4 + 2),
        (2, "fp32", 12 / 4 + 4),
        (3, "fp16", 3),
        (3, "fp32", 3),
    ],
)
def test_the_first_of_four_nodes_writes(stage, precision, per_parameter):
    size = STRATEGIES["zero"].checkpoint_bytes(1_000_000, precision, stage_settings(stage), nodes=4)
    assert size == 1_000_000 * per_parameter


def test_the_disk_holds_models_and_four_checkpoints():
    needed = estimated(3, stage_settings(3))
    parameters = of(MODEL).parameters
    assert needed.disk == {
        "models": pytest.approx(6 * parameters / 2**30),
        "checkpoints": pytest.approx(4 * 12 * parameters / 3 / 2**30),
    }


def test_a_result_in_sixteen_bits_takes_half_of_one_in_fp32():
    """`save_dtype: auto` may come to fp32: on the disk, and on the host of the rank that gathers it."""
    parameters = of(MODEL).parameters
    half, whole = estimated(3, stage_settings(3), saved_bytes=2), estimated(3, stage_settings(3))
    assert whole.disk["models"] - half.disk["models"] == pytest.approx(2 * parameters / 2**30)
    assert whole.host["gathered model"] - half.host["gathered model"] == pytest.approx(2 * parameters / 2**30)


def test_a_run_that_may_convert_has_room_for_the_checkpoint_of_all_nodes():
    assert estimated(3, stage_settings(3), converts=True).disk == estimated(1, stage_settings(3)).disk


def test_what_is_offloaded_to_nvme_is_counted_beside_checkpoints():
    offload = {"offload_optimizer": {"device": "nvme", "nvme_path": "/tmp"}}
    needed = estimated(1, stage_settings(3, **offload))
    assert needed.disk["offloaded"] > 0
    assert needed.disk_gib == pytest.approx(sum(needed.disk.values()))


@pytest.mark.parametrize(("name", "precision"), [("single", "fp16"), ("single", "fp32"), ("layers", "bf16")])
def test_without_zero_one_process_writes_weights_and_moments_in_fp32(name, precision):
    """It writes no weights in 16 bits: those are autocast's, made anew from the fp32 ones."""
    assert STRATEGIES[name].checkpoint_bytes(1_000_000, precision, "", nodes=1) == 12 * 1_000_000


def stage_settings(stage, **section):
    return settings_of("", {"zero_optimization": {"stage": stage, **section}})


def estimated(nodes, settings, **options):
    step_shape, machines = StepShape(1, 8, True, "fp16"), Machines(DEVICES["T4"], 14.56, nodes, 8)
    return estimate(STRATEGIES["zero"], of(MODEL), step_shape, machines, settings=settings, **options)
