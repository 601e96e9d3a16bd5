"""What trials of one machine or of one pod must not write over each other."""

import random

import pytest
from flytekit.bin.entrypoint import setup_execution

from tasks import trial_results
from tasks.transfer import upload
from thriftune.checkpoints.errors import LeaseError
from thriftune.stores.store import Store


def test_a_trial_that_another_run_of_this_machine_trains_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("THRIFTUNE_OUTPUTS", str(tmp_path))
    with trial_results.held_here("trial-key"):
        with pytest.raises(LeaseError, match="another run on this machine"), trial_results.held_here("trial-key"):
            pass
        with trial_results.held_here("trial-other"):
            pass
    with trial_results.held_here("trial-key"):
        pass


def test_uploads_of_processes_with_one_seed_have_places_of_their_own(tmp_path):
    """flytekit takes the name from `random`, which every training seeds: trials of a pod wrote over each other."""
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "weights").write_bytes(b"x")
    places = []
    with setup_execution(raw_output_data_prefix="memory://bucket/data/ab/run-n3-0-0"):
        for _ in range(2):
            random.seed(0)
            places.append(upload(tmp_path / "trial").path)
    assert len({*places}) == 2
    assert all(Store(place).get_bytes("weights") == b"x" for place in places)
