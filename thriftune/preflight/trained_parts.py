"""What trains: the method's own check of the model, where `thriftune.preflight.adapters` does not say it better."""

import logging
from collections.abc import Iterator

from thriftune.config import LoraConfig, RunConfig
from thriftune.errors import Problem
from thriftune.methods import METHODS
from thriftune.preflight.base_model import BaseModel
from thriftune.preflight.findings import skipped
from thriftune.preflight.outcome import attempt

logger = logging.getLogger(__name__)


def check(config: RunConfig, base: BaseModel) -> Iterator[Problem]:
    """The problems of what a run trains, and what is worth knowing about it.

    Args:
        config: The run.
        base: Its base model.
    """
    method = METHODS[config.method]
    section = method.section(config)
    if section is None or isinstance(section, LoraConfig):
        return
    logger.info("Preflight: what trains")
    field, shape = method.facts.section, base.architecture
    if shape is None:
        yield skipped(field, "the base model's architecture is not known")
        return
    checked = attempt(lambda: method.check(config, shape), field, config.method)
    yield from checked.findings
    if not checked.failed:
        for remark in method.remarks(config, shape):
            yield Problem.coded("training-remark", field, config.method, remark)
