"""What the cache knows a plan by: it changes when the plan would, and not otherwise."""

import pytest
import yaml
from flytekit import FlyteContextManager
from flytekit.core.type_engine import TypeEngine
from flytekit.models.literals import Literal, Scalar
from google.protobuf.struct_pb2 import Struct

from tasks import pin as pin_task
from tasks.pin import pin
from tasks.plan import plan
from tasks.platform import Platform
from tasks.preflight import _secrets
from thriftune.config import RunConfig

CATALOGUE = """
currency: USD
region: here
as_of: 2026-01-01
nodes:
  cpu.small: {device: CPU, gpus: 0, gpu_gib: 0, bf16: true, interconnect: none, host_gib: 16, vcpus: 4, disk_gb: 50,
              network_gbps: 10, price_per_hour: 0.1}
"""


@pytest.fixture
def config(run_config, tiny_model_dir):
    return run_config(model={"source": str(tiny_model_dir)})


def test_the_same_is_the_same(config):
    assert pin(config=config) == pin(config=config)


def test_the_same_run_is_planned_once_however_it_is_written(config):
    """Flyte's cache compares bytes: a file, a dict and the console's form of one run are different ones."""
    written = config.model_dump(mode="json", exclude_unset=True)
    again = RunConfig.model_validate(dict(reversed(written.items())))
    assert pin(config=again) == pin(config=config)
    assert pin(config=config.model_copy(update={"seed": 7})) != pin(config=config)
    assert plan.metadata.cache_ignore_input_vars == ("config",)


def test_a_run_that_came_as_a_struct_is_the_same(run_config, tiny_model_dir):
    """So come the default of a launch plan and the console's form: as unordered maps, with every number a float."""
    zero = {"zero_optimization": {"stage": 3, "reduce_bucket_size": 1048576, "offload_param": {"device": "cpu"}}}
    run = run_config(
        model={"source": str(tiny_model_dir)},
        data={"columns": {"messages": "talk", "tools": "functions", "system": "rules"}},
        zero={"config": {**zero, "aio": {"block_size": 1048576, "queue_depth": [8, 0.5]}}},
    )
    sent = Struct()
    sent.update(_reversed(run.model_dump(mode="json")))
    literal = Literal(Scalar(generic=sent))
    context = FlyteContextManager.current_context()
    pinned = [pin(config=TypeEngine.to_python_value(context, literal, RunConfig)), pin(config=run)]
    assert pinned[0] == pinned[1]


def _reversed(value):
    """With the keys of every mapping in the other order."""
    if isinstance(value, dict):
        return {key: _reversed(part) for key, part in reversed(value.items())}
    return value


def test_a_model_that_was_written_over_is_another(config, tmp_path, tiny_model_dir):
    copy = tmp_path / "model"
    copy.mkdir()
    for file in tiny_model_dir.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    moved = config.model_copy(update={"model": config.model.model_copy(update={"source": str(copy)})})
    before = pin(config=moved)
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    assert pin(config=moved) != before


def test_another_price_is_another_plan(config, monkeypatch, tmp_path):
    file = tmp_path / "catalogue.yaml"
    file.write_text(CATALOGUE)
    monkeypatch.setattr(pin_task.settings, "PLATFORM", Platform(catalogue=str(file)))
    before = pin(config=config)
    content = yaml.safe_load(CATALOGUE)
    content["nodes"]["cpu.small"]["price_per_hour"] = 0.2
    file.write_text(yaml.safe_dump(content))
    assert pin(config=config) != before


def test_what_cannot_be_read_is_never_served_from_the_cache(run_config):
    """The plan says what is wrong with it; a plan of another day would not."""
    lost = run_config(model={"source": "./nowhere"})
    assert pin(config=lost) != pin(config=lost)


@pytest.mark.parametrize(("environment", "there"), [({}, False), ({"WANDB_MODE": "offline"}, True)])
def test_a_run_that_reports_needs_a_key_and_says_which_setting_names_it(
    run_config, monkeypatch, tmp_path, environment, there
):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (state,) = _secrets(run_config(training={"report_to": "wandb"}), None)
    assert (state.setting, state.is_there) == ("THRIFTUNE_WANDB_SECRET", there)
    assert _secrets(run_config(), None) == []


def test_other_rows_are_planned_anew(config, tmp_path):
    """Hours and cost are those of the rows that are there: a file that had grown got the plan of the small one."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "one"}\n')
    run = config.model_copy(update={"data": config.data.model_copy(update={"source": str(rows)})})
    before = pin(config=run)
    assert pin(config=run) == before
    rows.write_text('{"text": "one"}\n' * 100)
    assert pin(config=run) != before
