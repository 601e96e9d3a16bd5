"""A workflow refuses a run file that was written for another one, with the command to run instead."""

import re

import pytest

from thriftune.config.choices import METHODS
from thriftune.config.workflow_rules import require_table, require_workflow
from thriftune.errors import ConfigError


@pytest.mark.parametrize(
    ("method", "other", "runs", "workflow"),
    [
        ("full", "qlora_finetune", "lora and qlora", "full_finetune"),
        ("lora", "full_finetune", "full and partial", "qlora_finetune"),
        ("qlora", "full_finetune", "full and partial", "qlora_finetune"),
    ],
)
def test_the_other_workflow_is_refused_with_the_command_to_run(run_config, method, other, runs, workflow):
    require_workflow(run_config(method), workflow)
    said = f"method = {method}: this workflow runs method {runs}. Run `pyflyte run workflows/{workflow}.py {workflow}"
    with pytest.raises(ConfigError, match=re.escape(said)):
        require_workflow(run_config(method), other)


@pytest.mark.parametrize("method", METHODS)
def test_one_workflow_runs_every_method(run_config, method):
    own = {"partial": {"partial": {"train": ["head"]}}}.get(method, {})
    assert require_workflow(run_config(method, **own), "finetune") is None


def test_a_table_goes_with_the_source_that_names_it(run_config):
    config = run_config(data={"source": "input:table"})
    require_table(config, has_table=True)
    require_table(run_config(), has_table=False)
    with pytest.raises(ConfigError, match="full_finetune_on_table"):
        require_table(config, has_table=False)
    with pytest.raises(ConfigError, match="does not use the table"):
        require_table(run_config(), has_table=True)
