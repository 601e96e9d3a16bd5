"""What is registered twice from the same code is the same: Flyte refuses another structure under one version."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from workflows.benchmark import benchmark
from workflows.full_finetune import full_finetune, full_finetune_on_table
from workflows.generate import generate, generate_in_parts
from workflows.plan import calibrate, plan, preflight
from workflows.qlora_finetune import qlora_finetune, qlora_finetune_on_table
from workflows.sweep import sweep

ROOT = Path(__file__).parent.parent
WORKFLOWS = (
    full_finetune, full_finetune_on_table, qlora_finetune, qlora_finetune_on_table, generate, plan, preflight,
    calibrate, benchmark, generate_in_parts, sweep,
)  # fmt: skip
_VERSION = """
from flytekit.configuration import ImageConfig, SerializationSettings
from flytekit.remote import FlyteRemote
from workflows.full_finetune import full_finetune
settings = SerializationSettings(image_config=ImageConfig.auto(img_name="registry/thriftune:test"))
print(FlyteRemote._version_from_hash(b"code", settings, None, *FlyteRemote._get_pod_template_hash(full_finetune)))
"""


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda workflow: workflow.name)
def test_no_node_follows_several(workflow):
    """flytekit 1.16 orders them by their addresses in memory: `pyflyte run --remote` was refused now and then."""
    assert workflow.nodes
    assert {node.id: len(node.upstream_nodes) for node in workflow.nodes if len(node.upstream_nodes) > 1} == {}


def version(**settings):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("THRIFTUNE_")}
    command, given = [sys.executable, "-c", _VERSION], {**environment, **settings}
    done = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def test_other_settings_are_another_version():
    """They change tasks and not the code: `pyflyte run --remote` with another catalogue was refused."""
    settings = [
        {}, {}, {"THRIFTUNE_CATALOGUE": "s3://bucket/c.yaml"},
        {"THRIFTUNE_NIGHTLY_CRON": "0 3 * * *", "THRIFTUNE_WEEKLY_CONFIG": "configs/llama2-13b-full.yaml"},
    ]  # fmt: skip
    first, again, *others = (version(**given) for given in settings)
    assert first == again
    assert len({first, *others}) == 1 + len(others)
