"""The first task of every workflow: everything that can be refused without a GPU is refused here."""

from flytekit import task
from flytekit.types.structured import StructuredDataset

import deepspeed_configs
from tasks import settings
from tasks.transfer import table_version, transient_errors_retried
from thriftune import models, planner, publishing
from thriftune.config import Method, RunConfig
from thriftune.data import sources
from thriftune.errors import ConfigError
from thriftune.hardware import detect_device, gpu_count
from thriftune.planner import TrainingPlan


@task(**settings.hub_task())
def plan(config: RunConfig, method: Method, table: StructuredDataset | None = None) -> TrainingPlan:
    """Check a run and work out what it trains on and how.

    Args:
        config: The run.
        method: What the workflow runs: full or qlora.
        table: The rows of source input:table, if the workflow was given them.

    Returns:
        The plan, with the versions that model and data have now.
    """
    planner.require_method(config, method)
    planner.require_table(config, has_table=table is not None)
    if settings.is_local():
        planner.require_local_hardware(config, detect_device(), gpu_count())
    deepspeed = _deepspeed_config(config) if method == "full" else None
    token = settings.hub_token()
    if config.publish:
        publishing.require_token(config.publish, token)
    with transient_errors_retried():
        return planner.make_plan(
            config,
            deepspeed,
            model_version=models.version(config.model.source, config.model.revision, token),
            data_version=sources.versions(config.data, token, table=table_version(table) if table else ""),
        )


def _deepspeed_config(config: RunConfig) -> dict[str, object]:
    named = config.zero_or_default.config
    if isinstance(named, dict):
        return named
    try:
        return deepspeed_configs.load(named)
    except (FileNotFoundError, ValueError) as error:
        raise ConfigError.single("zero.config", named, str(error), "Name another file, or repair this one.") from error
