"""In how many bits a result is saved."""

import logging

import pytest

from thriftune.models import saving


@pytest.mark.parametrize(
    ("trained_in", "stored", "expected"),
    [
        ("bf16", "torch.float16", "bf16"),
        ("fp16", "torch.bfloat16", "fp16"),
        ("fp32", "torch.float16", "fp16"),
        ("fp32", "torch.bfloat16", "bf16"),
        ("fp32", "torch.float32", "bf16"),
        ("fp32", "None", "bf16"),
    ],
)
def test_sixteen_bits_are_those_it_trained_in_or_the_base_models(trained_in, stored, expected):
    assert saving.sixteen_bits(trained_in, stored) == expected


def decided(losses, *, or_fp32=True, base=2.0, trained=1.6):
    measured = []

    def loss_of(dtype, mode):
        measured.append((dtype, mode))
        return losses[mode]

    dtype = "fp32" if "none" in losses else "bf16"
    return saving.decide(dtype, 10, base, lambda: trained, loss_of, or_fp32=or_fp32), measured


def test_rounding_to_the_nearest_number_is_enough_where_it_costs_little():
    way, measured = decided({"nearest": 1.619})
    assert (way.dtype, way.rounding, way.saved_loss) == ("bf16", "nearest", 1.619)
    assert (way.rows, way.base_loss, way.trained_loss) == (10, 2.0, 1.6)
    assert measured == [("bf16", "nearest")], "a pass over the rows costs GPU time"


def test_stochastic_rounding_is_tried_next():
    way, _ = decided({"nearest": 1.96, "stochastic": 1.61})
    assert (way.dtype, way.rounding, way.saved_loss) == ("bf16", "stochastic", 1.61)


def test_fp32_is_saved_where_sixteen_bits_lose_more_than_a_twentieth_of_the_improvement(caplog):
    with caplog.at_level(logging.WARNING):
        way, _ = decided({"nearest": 1.96, "stochastic": 1.65})
    assert (way.dtype, way.rounding, way.saved_loss, way.rounded_loss) == ("fp32", "none", 1.6, 1.65)
    assert "saved in fp32" in caplog.text
    for number in ("2.0000", "1.6000", "1.6500"):
        assert number in caplog.text


def test_a_type_that_was_asked_for_is_kept_with_a_warning_and_both_losses(caplog):
    with caplog.at_level(logging.WARNING):
        way, _ = decided({"nearest": 1.96, "stochastic": float("nan")}, or_fp32=False)
    assert (way.dtype, way.rounding, way.saved_loss, way.rounded_loss) == ("bf16", "nearest", 1.96, None)
    assert "training.save_dtype: fp32" in caplog.text
    assert "1.9600" in caplog.text
    assert "1.6000" in caplog.text


def test_a_loss_that_is_no_number_is_never_tolerated():
    """Weights too large for fp16 become infinite."""
    way, _ = decided({"nearest": float("nan"), "stochastic": float("nan")})
    assert way.dtype == "fp32"


def test_noise_costs_no_bits_where_training_changed_nothing():
    way, _ = decided({"nearest": 2.00001}, trained=2.0)
    assert (way.dtype, way.rounding) == ("bf16", "nearest")
    way, _ = decided({"nearest": 1.9, "stochastic": 1.9}, trained=1.95)
    assert way.rounding == "nearest", "rounding that makes it better is no loss"


def test_without_rounding_there_is_one_way(caplog):
    with caplog.at_level(logging.WARNING):
        way, measured = decided({"none": 1.9}, or_fp32=False)
    assert measured == [("fp32", "none")]
    assert way.cost == pytest.approx(0.3)
    assert "loses part" in caplog.text
