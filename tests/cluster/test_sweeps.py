"""A sweep on a control plane: trials of one pod, a pod that is lost, and a larger sweep that trains what is missing."""

import signal

import pytest
import yaml
from test_workflows import write_config

from cluster import image
from cluster.conftest import IN_CLUSTER, SECRETS, Pyflyte, done
from cluster.control_plane import ControlPlane
from cluster.looking import attempts_of, output, pods_of
from cluster.records import Run
from cluster.striking import struck, whenever

pytestmark = pytest.mark.slow
SWEEP = ("workflows/sweep.py", "sweep")


@pytest.fixture(scope="module")
def libraries() -> tuple[str, ...]:
    return image.OF_TRAINING


@pytest.fixture(scope="module")
def start(pyflyte: Pyflyte, cluster: ControlPlane, sources: tuple[str, str], tmp_path_factory: pytest.TempPathFactory):
    """Start a sweep over learning rates, and wait for its end."""
    folder = tmp_path_factory.mktemp("sweeps")

    def run(*rates: float) -> Run:
        sections = {"hardware": {"nodes": 1}, "training": {"max_steps": 2}, "lora": {"rank": 4}}
        file = write_config(folder, "lora", *sources, **sections)
        content = yaml.safe_load(file.read_text())
        content["sweep"] = {"grid": {"training.learning_rate": list(rates)}, "parallel": 2}
        file.write_text(yaml.safe_dump(content))
        pyflyte("run", "--remote", *IN_CLUSTER, *SWEEP, "--config", str(file), settings=SECRETS)
        return done(cluster)

    return run


@pytest.fixture(scope="module")
def first(cluster: ControlPlane, start) -> Run:
    """A sweep whose pod of two trials loses its node once."""
    with whenever(cluster, "trains on the CPU", *struck(cluster, signal.SIGKILL)):
        return start(1e-3, 3e-2)


def test_trials_share_a_pod_which_is_tried_again_when_its_node_is_lost(first):
    assert attempts_of(first)["train_pack"] == 2
    table = output(first, "trials")
    assert [(row["status"], row["is_best"]) for row in table["rows"]] == [("trained", False), ("trained", True)]
    assert table["best"] == 1


def test_the_best_is_merged_and_in_the_store(first, cluster):
    model = first.outputs.literals["model"].scalar.blob.uri
    assert any(uri.endswith("model.safetensors") for uri in cluster.store.list(model))


def test_a_sweep_that_grew_trains_only_what_is_missing(first, start, cluster):
    grown = start(1e-3, 3e-2, 1e-2)
    rows = output(grown, "trials")["rows"]
    assert [row["is_served"] for row in rows] == [True, True, False]
    assert [row["model"] for row in rows[:2]] == [row["model"] for row in output(first, "trials")["rows"]]
    assert attempts_of(grown)["train_pack"] == 1
    again = start(1e-3, 3e-2, 1e-2)
    assert "train_pack" not in pods_of(again)
    assert output(again, "trials")["best"] == output(grown, "trials")["best"]
