"""What tasks hold while they move a model of many shards: fetching Llama-2-70B was killed for memory each time."""

import os

import pytest
from bucket import Bucket
from planning import planned

from benchmarks import task_memory
from thriftune.planning import pod_requests
from thriftune.stores import transfer


@pytest.fixture(scope="module")
def peaks(tmp_path_factory, tiny_tokenizer_dir):
    server, folder = Bucket(), tmp_path_factory.mktemp("shards")
    model = task_memory.make_model(folder / "model", tiny_tokenizer_dir, hidden=1024, layers=12)
    assert len(list(model.glob("*.safetensors"))) >= task_memory.SHARDS
    assert sum(file.stat().st_size for file in model.iterdir()) > transfer.MEMORY_GIB * 2**30
    names = {"FLYTE_AWS_ENDPOINT": server.endpoint}
    names |= {"FLYTE_AWS_ACCESS_KEY_ID": "test", "FLYTE_AWS_SECRET_ACCESS_KEY": "test"}
    without = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FLYTE_"))}
    yield task_memory.measure(model, f"s3://{server.name}", {**without, **names})
    server.stop()


@pytest.mark.parametrize("task", task_memory.TASKS)
def test_a_task_does_not_hold_what_it_moves(peaks, task):
    assert peaks[task].most - peaks[task].before < transfer.MEMORY_GIB


def test_the_pod_that_fetches_has_room_for_its_libraries_and_a_transfer(peaks, run_config):
    config = run_config("qlora", hardware={"device": "T4"}, training={"precision": "fp16"})
    request = pod_requests.fetching(config, planned(config))
    assert peaks["fetch_model"].most < request.memory_gib
