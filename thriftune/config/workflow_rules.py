"""What a workflow refuses of a run file: another workflow's method, and a table too many or missing."""

from thriftune.config.schema import Method, RunConfig
from thriftune.data.sources import TABLE
from thriftune.errors import ConfigError


def require_method(config: RunConfig, method: Method) -> None:
    """Refuse a configuration that was written for the other workflow.

    Raises:
        ConfigError: The method is another one.
    """
    if config.method != method:
        workflow = "full_finetune" if config.method == "full" else "qlora_finetune"
        raise ConfigError.single(
            "method",
            config.method,
            f"this workflow runs method {method}.",
            f"Run `pyflyte run workflows/{workflow}.py {workflow} --config ...` instead.",
            code="wrong-workflow",
        )


def require_table(config: RunConfig, *, has_table: bool) -> None:
    """Refuse a workflow that was given a table its run does not read, or none that it reads.

    Args:
        config: The run.
        has_table: Whether the workflow was given one.

    Raises:
        ConfigError: One is there without the other.
    """
    named = [source.source for source in config.data.all_sources]
    if (TABLE in named) == has_table:
        return
    workflow = "full_finetune" if config.method == "full" else "qlora_finetune"
    if has_table:
        raise ConfigError.single(
            "data.source",
            ", ".join(named),
            "leaves out the table that was given.",
            f"Write source: {TABLE}.",
            code="table-unused",
        )
    raise ConfigError.single(
        "data.source",
        TABLE,
        f"is the table given to a workflow, and {workflow} takes none.",
        f"Run `pyflyte run workflows/{workflow}.py {workflow}_on_table --config ... --table ...`.",
        code="table-missing",
    )
