"""The first task of a run: what the things that it names by a place hold now, so that plans can be cached."""

import json
import logging
import uuid

from flytekit import task

import thriftune
from tasks import settings
from tasks.declaring import hub_task, marking_registration
from thriftune import artifacts
from thriftune.config import RunConfig
from thriftune.errors import ThriftuneError
from thriftune.models import fetching as models
from thriftune.planning import catalogue
from thriftune.strategies import candidates

logger = logging.getLogger("thriftune.tasks.pin")


@task(**marking_registration(hub_task()))
def pin(config: RunConfig) -> str:
    """Say what a plan depends on besides the run: base model, catalogue of nodes, deepspeed_configs/, this release.

    Args:
        config: The run.

    Returns:
        A digest, which changes when one of them does. What cannot be read is never the same twice, and said by the
        plan and the preflight, with everything else that is wrong.
    """
    try:
        model = models.version(config.model.source, config.model.revision, settings.hub_token())
        prices = catalogue.load(settings.PLATFORM.catalogue).model_dump_json()
        settings_there = json.dumps([strategy.options(config) for strategy in candidates(config)])
    except ThriftuneError as error:
        logger.warning("The plan cannot be served from the cache: %s", error)
        return uuid.uuid4().hex
    return artifacts.key_of(model, prices, settings_there, thriftune.__version__)
