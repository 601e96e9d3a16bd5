"""The first task of a run: a digest of it and of the present content behind its URLs, so that plans can be cached.

Calibrations of the run count, and no other records of the ledger do: a run that is started again must find the plan,
and with it the checkpoints, of its first start, whatever others have run meanwhile.
"""

import json
import logging
import uuid

from flytekit import task

import thriftune
from tasks import ledger, settings
from tasks.declaring import hub_task, marking_registration
from thriftune import artifacts
from thriftune.config import RunConfig
from thriftune.data import sources
from thriftune.errors import ThriftuneError
from thriftune.models import fetching as models
from thriftune.planning import catalogue
from thriftune.planning.ledger import run_key
from thriftune.strategies import candidates

logger = logging.getLogger("thriftune.tasks.pin")


@task(**marking_registration(hub_task()))
def pin(config: RunConfig) -> str:
    """Make a digest of what a plan depends on: the run, its model, the catalogue, deepspeed_configs/, this release.

    And the version of its rows, whether nodes are from the spot market, and the calibrations that were made for it.

    Args:
        config: The run.

    Returns:
        A digest, which changes when one of them does. If one cannot be read the digest is new each time, so that plan
        and preflight run, and report this with all other problems.
    """
    try:
        model = models.version(config.model.source, config.model.revision, settings.hub_token())
        prices = catalogue.load(settings.PLATFORM.catalogue).model_dump_json()
        settings_there = json.dumps([strategy.options(config) for strategy in candidates(config)])
    except ThriftuneError as error:
        logger.warning("The plan cannot be served from the cache: %s", error)
        return uuid.uuid4().hex
    # Of the run as it was read: a file, a dict and Flyte's console send the same run in different encodings. Keys are
    # sorted, also of mappings that a person names: those of a Struct come in another order in each process.
    run = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    market = "spot" if settings.PLATFORM.interruptible else "on demand"
    key = run_key(config)
    tried = sorted(record.as_json().decode() for record in ledger.records() if record.trial and record.trial.run == key)
    rows = _version_of_rows(config)
    return artifacts.key_of(run, model, rows, prices, settings_there, market, thriftune.__version__, *tried)


def _version_of_rows(config: RunConfig) -> str:
    """The version of a run's rows, whose number decides hours and cost; empty where it cannot be read.

    The preflight then says why. A table that is given to the workflow is not read for a plan.
    """
    try:
        return sources.versions(config.data, settings.hub_token())
    except ThriftuneError:
        return ""
