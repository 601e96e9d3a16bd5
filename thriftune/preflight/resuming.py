"""Another run's checkpoints to resume from: they exist, one is complete, and it is of the same training."""

import logging
from collections.abc import Iterator

from thriftune.checkpoints import identity
from thriftune.checkpoints.resume_from import OR_ELSE, RESUME_FROM, newest_whole
from thriftune.config import RunConfig
from thriftune.errors import Problem, ThriftuneError
from thriftune.preflight.findings import skipped
from thriftune.preflight.outcome import attempt
from thriftune.training_plan import TrainingPlan

logger = logging.getLogger(__name__)


def check(
    config: RunConfig, plan: TrainingPlan | ThriftuneError, *, model: str, dataset: str, rows: int | None
) -> Iterator[Problem]:
    """The problems of the checkpoints to resume from; none for a run that names no checkpoints.

    Args:
        config: The run.
        plan: Its plan, or the error that planning raised.
        model: Version of the base model; empty if not known.
        dataset: Fingerprint that the prepared dataset will have; empty: not known.
        rows: Token rows that will be trained on; None: not known.
    """
    prefix = config.checkpoints.resume_from
    if not prefix:
        return
    logger.info("Preflight: the checkpoints in %s", prefix)
    newest = attempt(lambda: newest_whole(prefix), RESUME_FROM, prefix)
    yield from newest.findings
    if newest.value is None:
        return
    if not isinstance(plan, TrainingPlan):
        yield skipped(RESUME_FROM, "there is no plan to compare with the run that wrote them")
        return
    own = identity.of(config, plan, model=model, dataset=dataset, rows=rows)
    found = newest.value
    compared = identity.compare(own, found.content, found.step, place=prefix, or_else=OR_ELSE)
    yield from compared.problems
    for remark in compared.remarks if not compared.problems else ():
        yield Problem.coded(
            "checkpoint-goes-on-otherwise", RESUME_FROM, prefix, remark, "Check that this is what you want."
        )
