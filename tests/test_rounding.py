"""Weights in fewer bits."""

import pytest
import torch

from thriftune.models.rounding import _PIECE, rounded

DTYPES = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.1001, -0.1001, 1.00001, -0.99951, 6.1e-5, -3e-8, 1000.3])
def test_the_two_neighbours_are_taken_and_their_mean_is_the_weight(dtype, value):
    weight = torch.full((200_000,), value)
    result = rounded(weight, dtype, "stochastic", "w", seed=0)
    assert result.dtype == dtype
    low, high = sorted(result.unique().tolist())
    assert low < weight[0].item() < high
    assert torch.nextafter(torch.tensor(low, dtype=dtype), torch.tensor(float("inf"), dtype=dtype)).item() == high
    assert result.double().mean().item() == pytest.approx(weight[0].item(), abs=(high - low) / 100)


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_the_type_holds_stays_as_it_is(dtype):
    weight = torch.cat([torch.randn(5000).to(dtype).float(), torch.tensor([0.0, -0.0, 1.0, float("inf")])])
    for mode in ("nearest", "stochastic"):
        assert torch.equal(rounded(weight, dtype, mode, "w", seed=0).float(), weight)
    for mode in ("none", "stochastic"):  # of a weight that is kept in fp32, the bits of 16-bit numbers were counted
        assert torch.equal(rounded(weight, torch.float32, mode, "w", seed=0), weight)


def test_a_number_too_large_for_the_type_is_no_other_number():
    weight = torch.tensor([65519.0, 1e6, -1e6, float("nan")])
    result = rounded(weight, torch.float16, "stochastic", "w", seed=0)
    assert result[0] == 65504
    assert result[1:3].tolist() == [float("inf"), float("-inf")]
    assert result[3].isnan()


def test_random_numbers_depend_on_name_and_seed_alone():
    weight = torch.randn(64, 64)

    def drawn(name: str, seed: int) -> torch.Tensor:
        return rounded(weight, torch.bfloat16, "stochastic", name, seed)

    first = drawn("a", 0)
    torch.manual_seed(5)
    assert torch.equal(drawn("a", 0), first)
    assert not torch.equal(drawn("b", 0), first)
    assert not torch.equal(drawn("a", 1), first)
    assert drawn("a", 0).shape == weight.shape


def test_a_weight_of_several_pieces_is_rounded_whole():
    weight = torch.full((_PIECE + 3,), 1.001)
    result = rounded(weight, torch.bfloat16, "stochastic", "w", seed=0)
    assert set(result[-3:].tolist()) <= {1.0, 1.0078125}
    assert result.float().mean().item() == pytest.approx(1.001, abs=1e-4)


def test_changes_smaller_than_half_a_spacing_are_lost_to_the_nearest_number_and_kept_on_average():
    """What full fine-tuning lost of short runs: each weight moved less than the spacing of bf16, and came back."""
    base = torch.randn(100_000).bfloat16().float()
    moved = base * (1 + 1e-4)
    assert torch.equal(rounded(moved, torch.bfloat16, "nearest", "w", 0).float(), base)
    kept = rounded(moved, torch.bfloat16, "stochastic", "w", 0).float()
    assert ((kept - base) * base.sign()).mean().item() == pytest.approx(1e-4 * base.abs().mean().item(), rel=0.1)
