"""What trials of one machine or of one pod must not write over each other."""

import random
from dataclasses import replace

import pytest
from flytekit.bin.entrypoint import setup_execution

from tasks import checkpoints, trial_results
from tasks.transfer import upload
from thriftune.checkpoints.errors import LeaseError
from thriftune.stores.store import Store
from thriftune.sweeps.outcomes import Outcome


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


def test_what_a_sweep_stopped_itself_is_on_its_account_also_in_another_attempt(tmp_path, monkeypatch):
    """Else the hours before a node went away would cost nothing."""
    monkeypatch.setattr(checkpoints, "trial_store", lambda _: Store(str(tmp_path)))
    stopped = Outcome(3, "stopped", steps=(1,), losses=(2.0,), seconds=60.0)
    for execution, is_served in (("abc", False), ("xyz", True)):
        monkeypatch.setenv("FLYTE_INTERNAL_EXECUTION_ID", execution)
        with setup_execution(raw_output_data_prefix="memory://bucket/data/ab/abc-n3-0-0"):
            if not is_served:
                trial_results.remember_stopped("trial-key", "{}", stopped)
            found = trial_results.stopped_before(3, "trial-key", "{}")
            assert found == replace(stopped, is_served=is_served)
