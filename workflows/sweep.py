"""A sweep: a run trained again and again with other values, many trials on one node, and the best of them.

pyflyte run workflows/sweep.py sweep --config configs/demo-sweep.yaml
"""

from typing import NamedTuple

from flytekit import dynamic, workflow
from flytekit.types.directory import FlyteDirectory

from tasks.declaring import dynamic_task
from tasks.plan_sweep import plan_round
from thriftune.config.sweep import SweepRun
from thriftune.sweeps.rounds import PlannedRound, SoFar
from thriftune.sweeps.table import SweepTable
from thriftune.sweeps.trials import number_of_rounds
from workflows.trials import conclude, measure_round, train_round


class SweepResult(NamedTuple):
    """The result of a sweep: the best model or adapter, and what came of all trials."""

    model: FlyteDirectory
    trials: SweepTable


@dynamic(**dynamic_task())
def run_rounds(config: SweepRun, first: PlannedRound) -> SweepResult:
    """Train the trials, those of each round after what came of the rounds before, and choose the best."""
    planned, found = first, SoFar()
    for number in range(number_of_rounds(config)):
        if number:
            planned = plan_round(config=config, before=found)
        found = train_round(config=config, planned=planned, before=found)
        if not config.sweep.is_decided_by_loss:
            found = measure_round(config=config, planned=planned, found=found)
    concluded = conclude(config=config, found=found)
    return SweepResult(concluded.model, concluded.trials)


@workflow
def sweep(config: SweepRun) -> SweepResult:
    """Train a run with other values in each trial, and choose the best.

    Args:
        config: The sweep: a YAML file like configs/demo-sweep.yaml.

    Returns:
        The model of the best trial (merged where the run merges, else its adapter), and the table of all trials.
    """
    result: SweepResult = run_rounds(config=config, first=plan_round(config=config, before=SoFar()))
    return SweepResult(result.model, result.trials)
