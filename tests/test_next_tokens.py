"""What is kept of a model's next tokens is bounded, and another model's are compared at the same positions."""

import math

import pytest
import torch

from thriftune.models import next_tokens
from thriftune.models.next_tokens import Compared, Comparison, Kept, compare

LIMITS = {"rows": 2, "kept": 5}


def logits(seed: int, tokens: int = 20, vocabulary: int = 7) -> torch.Tensor:
    return torch.randn(tokens, vocabulary, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def told():
    """The places that a model tells of two rows: of the first one more than can be kept."""
    return [torch.arange(3, 20), torch.tensor([2, 9])]


def compared(first, second, told, tied=0.0) -> Compared:
    kept, comparison = Kept(len(told)), Comparison(tied)
    for one, places in zip(first, told, strict=True):
        kept.keep(one, places)
    seen = kept.beside(comparison)
    for one, places in zip(second, told, strict=True):
        seen(one, places)
    return comparison.compared


def test_positions_at_equal_distances_are_kept_where_all_are_too_many(told, monkeypatch):
    monkeypatch.setattr(next_tokens, "KEPT_BYTES", 4 * 7 * LIMITS["rows"] * LIMITS["kept"])
    rows, others = [logits(0), logits(1)], [logits(2), logits(3)]
    places = [torch.tensor([3, 7, 11, 15, 19]), told[1]]
    reference, made = (
        [one[some].log_softmax(-1) for one, some in zip(both, places, strict=True)] for both in (rows, others)
    )
    found = compared(rows, others, told)
    assert found == compare(reference, iter(made), 0.0)
    assert (found.rows, found.tokens) == (2, 7)
    kl = torch.cat([(was.exp() * (was - ours)).sum(-1) for was, ours in zip(reference, made, strict=True)]).mean()
    assert found.kl == pytest.approx(float(kl), rel=1e-5)


def test_all_positions_are_kept_where_there_is_room(told):
    rows = [logits(0), logits(1)]
    assert compared(rows, rows, told) == Compared(2, 19, 0.0, 1.0)
    assert compared(rows, [logits(0), -logits(1)], told).agreement == 17 / 19


def test_about_equally_likely_tokens_agree(told):
    close = [torch.zeros(20, 7).index_fill(1, torch.tensor([place]), 0.05) for place in (1, 4)]
    for tied, agreement in ((0.04, 0.0), (0.06, 1.0)):
        assert compared([close[0]] * 2, [close[1]] * 2, told, tied).agreement == agreement


def test_what_is_no_number_is_far_away(told):
    rows = [logits(0), logits(1)]
    broken = [rows[0], torch.full_like(rows[1], float("nan"))]
    assert compared(rows, broken, told).kl == float("inf")
    assert math.isnan(Comparison(0.0).compared.agreement)
