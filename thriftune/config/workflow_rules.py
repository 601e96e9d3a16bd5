"""Reasons for a workflow to refuse a run file: another workflow's method, and a missing or unused table."""

from thriftune.config.choices import ANY_METHOD, METHODS
from thriftune.config.formats import TABLE
from thriftune.config.schema import RunConfig
from thriftune.errors import ConfigError


def require_workflow(config: RunConfig, workflow: str) -> None:
    """Refuse a configuration that was written for another workflow.

    Args:
        config: The run.
        workflow: The workflow that it was given to: `finetune`, which runs every method, or one named after some.

    Raises:
        ConfigError: The workflow runs other methods.
    """
    runs = [name for name, facts in METHODS.items() if workflow in (facts.workflow, ANY_METHOD)]
    if config.method not in runs:
        own = METHODS[config.method].workflow
        raise ConfigError.single(
            "method",
            config.method,
            f"this workflow runs method {' and '.join(runs)}.",
            f"Run `pyflyte run workflows/{own}.py {own} --config ...` instead.",
            code="wrong-workflow",
        )


def require_table(config: RunConfig, *, has_table: bool) -> None:
    """Refuse a table that the run does not read, or a missing table that it does read.

    Args:
        config: The run.
        has_table: Whether the workflow was given one.

    Raises:
        ConfigError: The table is unused or missing.
    """
    named = [source.source for source in config.data.all_sources]
    if (TABLE in named) == has_table:
        return
    workflow = METHODS[config.method].workflow
    if has_table:
        raise ConfigError.single(
            "data.source",
            ", ".join(named),
            "does not use the table that was given.",
            f"Write source: {TABLE}.",
            code="table-unused",
        )
    raise ConfigError.single(
        "data.source",
        TABLE,
        f"is the table given to a workflow, but {workflow} takes none.",
        f"Run `pyflyte run workflows/{workflow}.py {workflow}_on_table --config ... --table ...`.",
        code="table-missing",
    )
