"""What is decided around the training loop."""

import pytest
import torch
from planning import planned

from thriftune.errors import DivergedError
from thriftune.full import save_dtype
from thriftune.training import _require_finite

ZERO3 = {"zero_optimization": {"stage": 3}}


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run_before_anything_is_saved(loss):
    logged = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": loss}]
    _require_finite(logged[:1], 1e-3)
    with pytest.raises(DivergedError, match="training.learning_rate = 0.001: the loss is .* at step 2"):
        _require_finite(logged, 1e-3)


@pytest.mark.parametrize(
    ("asked", "precision", "base", "saved"),
    [
        ("auto", "bf16", torch.float32, torch.bfloat16),
        ("auto", "fp32", torch.float16, torch.float16),
        ("auto", "fp32", torch.bfloat16, torch.bfloat16),
        ("auto", "fp32", torch.float32, torch.bfloat16),
        ("auto", "fp32", None, torch.bfloat16),
        ("fp32", "fp32", torch.float16, torch.float32),
        ("fp16", "bf16", torch.bfloat16, torch.float16),
    ],
)
def test_saved_weights_have_the_precision_asked_for_or_sixteen_bits(run_config, asked, precision, base, saved):
    config = run_config(training={"save_dtype": asked, "precision": precision})
    plan = planned(config, ZERO3)
    assert save_dtype(config, plan, base) == saved
