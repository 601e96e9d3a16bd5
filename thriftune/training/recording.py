"""What a finished training or a calibration leaves in the ledger: its plan and its measurements, beside each other."""

from dataclasses import replace

from thriftune.config import RunConfig
from thriftune.overhead import COLLECTIVES, CONTEXT, MARGIN
from thriftune.planning.ledger import Quantities, Record, Setup, Trial, run_key
from thriftune.planning.ledger.record import now
from thriftune.planning.time.run import FETCH, LOAD
from thriftune.training.memory_watch import MemoryUse
from thriftune.training.result import Pace, TrainingResult
from thriftune.training_plan import RunTime, TrainingPlan


def record_of(
    config: RunConfig, plan: TrainingPlan, family: str, result: TrainingResult, fetching_seconds: float
) -> Record | None:
    """The record of a training, of the steps of its last attempt.

    Args:
        config: The run.
        plan: Its plan.
        family: `model_type` of its model.
        result: What was measured.
        fetching_seconds: How long model and rows took to be there, before anything was loaded.

    Returns:
        The record; None if the last attempt did no step, so that it measured nothing.
    """
    if result.pace is None or result.steps <= result.resumed_at:
        return None
    # With a smaller micro batch than planned, memory and time are those of another plan.
    is_as_planned = not result.halvings.count
    return Record(
        when=now(),
        run=config.name,
        setup=Setup.of(plan, family),
        planned=planned(plan, result.memory) if is_as_planned else Quantities(),
        corrected_by=Quantities.known(seconds_per_step=plan.time.correction if plan.time else None),
        hours=result.gpu_hours,
        measured=measured(result.memory, result.pace, fetching_seconds),
    )


def record_of_trial(
    config: RunConfig, plan: TrainingPlan, family: str, memory: MemoryUse, pace: Pace | None, fetching_seconds: float
) -> Record:
    """The record of a calibration, whose rows are as long as the run allows.

    Args:
        config: The run.
        plan: Its plan.
        family: `model_type` of its model.
        memory: What was held; where memory ran out, what was held until then.
        pace: How fast the steps were; None where memory ran out.
        fetching_seconds: How long the model took to be there, before anything was loaded.
    """
    trial = Trial(run_key(config), plan.settings, plan.micro_batch, plan.accumulation, ran_out=pace is None)
    record = Record(now(), config.name, Setup.of(plan, family), Quantities(), Quantities(), trial=trial)
    if pace is None:  # what was held then is less than what is needed: there is nothing to compare
        return record
    said = planned(plan, memory)
    if plan.time is not None and plan.time.full_seconds:
        seconds = plan.time.full_seconds
        tokens = plan.global_batch * config.data.max_length
        said = replace(said, seconds_per_step=seconds, tokens_per_second=tokens / seconds)
    return replace(
        record,
        planned=said,
        corrected_by=Quantities.known(seconds_per_step=plan.time.correction if plan.time else None),
        measured=measured(memory, pace, fetching_seconds),
    )


def measured(memory: MemoryUse, pace: Pace, fetching_seconds: float) -> Quantities:
    """What was measured, of the quantities that a record compares.

    Args:
        memory: What was held.
        pace: How fast the steps were.
        fetching_seconds: How long model and rows took to be there, before anything was loaded.
    """
    return Quantities.known(
        allocated_gib=memory.device,
        reserved_gib=memory.reserved,
        context_gib=memory.context,
        seconds_per_step=pace.seconds_per_step,
        tokens_per_second=pace.tokens_per_second,
        startup_seconds=fetching_seconds + pace.loading_seconds,
    )


def planned(plan: TrainingPlan, memory: MemoryUse) -> Quantities:
    """What a plan says of the quantities that a record compares.

    Args:
        plan: The plan.
        memory: Has the plan's prediction as it can be compared with what this process measured.
    """
    time = {} if plan.time is None else _times(plan.time)
    if not plan.hardware.is_gpu:
        return Quantities.known(allocated_gib=memory.predicted_device, **time)
    items = plan.memory.device
    return Quantities.known(
        **time,
        allocated_gib=memory.predicted_device,
        reserved_gib=memory.predicted_device + items.get(MARGIN, 0.0),
        context_gib=items.get(CONTEXT, 0.0) + items.get(COLLECTIVES, 0.0),  # both are beside torch's allocator
    )


def _times(time: RunTime) -> dict[str, float | None]:
    return {
        "seconds_per_step": time.step.seconds,
        "tokens_per_second": time.tokens_per_second,
        "startup_seconds": sum(time.beside.get(what, 0.0) for what in (FETCH, LOAD)),
    }
