"""A workflow refuses a run file that was written for another one, with the command to run instead."""

import pytest

from thriftune.config.workflow_rules import require_method, require_table
from thriftune.errors import ConfigError


@pytest.mark.parametrize(
    ("method", "other", "workflow"), [("full", "qlora", "full_finetune"), ("qlora", "full", "qlora_finetune")]
)
def test_the_other_workflow_is_refused_with_the_command_to_run(run_config, method, other, workflow):
    require_method(run_config(method), method)
    with pytest.raises(ConfigError, match=f"method = {method}: .*pyflyte run workflows/{workflow}.py {workflow}"):
        require_method(run_config(method), other)


def test_a_table_goes_with_the_source_that_names_it(run_config):
    config = run_config(data={"source": "input:table"})
    require_table(config, has_table=True)
    require_table(run_config(), has_table=False)
    with pytest.raises(ConfigError, match="full_finetune_on_table"):
        require_table(config, has_table=False)
    with pytest.raises(ConfigError, match="leaves out the table"):
        require_table(run_config(), has_table=True)
