"""What is read from the Trainer's log, and the random numbers of ranks."""

import pytest
import torch
from transformers import TrainerState

from thriftune.errors import DivergedError
from thriftune.training.result import Validation, logged_losses, logged_validations
from thriftune.training.trainer import seed_by_rank


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_ends_the_run_before_anything_is_saved(loss):
    logged = [{"step": 1, "loss": 2.0, "num_input_tokens_seen": 30}, {"step": 2, "loss": loss}]
    assert logged_losses(TrainerState(log_history=logged[:1]), 1e-3) == ([1], [2.0], [30.0])
    with pytest.raises(DivergedError, match="training.learning_rate = 0.001: the loss is .* at step 2"):
        logged_losses(TrainerState(log_history=logged), 1e-3)


def test_held_out_losses_are_those_of_each_step_once_the_last_where_it_was_done_again():
    logged = [
        {"step": 0, "eval_loss": 5.0, "num_input_tokens_seen": 0},
        {"step": 2, "eval_loss": 4.0, "num_input_tokens_seen": 60},
        {"step": 2, "loss": 4.5, "num_input_tokens_seen": 60},
        {"step": 2, "eval_loss": 3.0, "num_input_tokens_seen": 60},
    ]
    found = logged_validations(TrainerState(log_history=logged))
    assert found == [Validation(0, 0.0, 5.0), Validation(2, 60.0, 3.0)]


def test_ranks_drop_out_different_parts_and_the_first_those_of_a_single_process(monkeypatch):
    """All ranks had the seed of the run, and so the same dropout on their different rows."""
    drawn = {}
    for rank in (None, 0, 1, 2):
        monkeypatch.delenv("RANK", raising=False)
        if rank is not None:
            monkeypatch.setenv("RANK", str(rank))
        torch.manual_seed(3)
        seed_by_rank(3)
        drawn[rank] = tuple(torch.rand(4).tolist())
    assert drawn[None] == drawn[0]
    assert len(set(drawn.values())) == 3
