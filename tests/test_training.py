"""What is decided around the training loop."""

import pytest

from thriftune.errors import DivergedError
from thriftune.training.trainer import _require_finite


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run_before_anything_is_saved(loss):
    logged = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": loss}]
    _require_finite(logged[:1], 1e-3)
    with pytest.raises(DivergedError, match="training.learning_rate = 0.001: the loss is .* at step 2"):
        _require_finite(logged, 1e-3)
