"""Which machines `plan` and `preflight` plan for when no workflow runs."""

import pytest
from flytekit import FlyteContextManager
from flytekit.core.data_persistence import FileAccessProvider

from tasks.plan import is_for_this_machine


@pytest.mark.parametrize(
    ("hardware", "is_here"),
    [({"device": "CPU"}, True), ({"device": "CPU", "instance": "k3s"}, False), ({"device": "T4"}, False)],
)
def test_here_a_run_on_a_cpu_is_for_this_machine_and_in_a_cluster_for_the_cluster(
    run_config, tmp_path, hardware, is_here
):
    """In a pod the answer was "this machine", for a run that the workflow then planned for the catalogue's nodes."""
    config = run_config("qlora", hardware=hardware)
    assert is_for_this_machine(config) == is_here
    access = FileAccessProvider(str(tmp_path), raw_output_prefix="s3://bucket/raw")
    in_a_pod = FlyteContextManager.current_context().with_file_access(access)
    with FlyteContextManager.with_context(in_a_pod):
        assert not is_for_this_machine(config)
