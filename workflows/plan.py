"""Plan and check a run: its needs, its costs, and everything else that can be known before a GPU is asked for.

pyflyte run workflows/plan.py plan --config configs/llama2-7b-full.yaml
pyflyte run workflows/plan.py preflight --config configs/llama2-7b-full.yaml
pyflyte run workflows/plan.py calibrate --config configs/demo-qlora.yaml
"""

from flytekit import dynamic, workflow

from tasks.calibrate import calibration_task, show_calibrated
from tasks.declaring import dynamic_task
from tasks.fetch_model import fetch_model
from tasks.plan import plan_to_calibrate, show_plan
from tasks.preflight import preflight_alone
from tasks.provisioning import on_cpu_node, on_planned_node
from tasks.results import step_of_model
from thriftune.config import RunConfig
from thriftune.planning import pod_requests
from thriftune.training_plan import TrainingPlan


@workflow
def plan(config: RunConfig) -> str:
    """Find the machines on which a run costs least, and show its time, cost and needs. Downloads no weights.

    Args:
        config: The run. What its file leaves open of strategy, hardware, micro batch and ZeRO is chosen.

    Returns:
        The plan as JSON.
    """
    result: str = show_plan(config=config)
    return result


@workflow
def preflight(config: RunConfig) -> str:
    """Check everything about a run that needs no GPU, and report all problems together.

    Args:
        config: The run.

    Returns:
        The report as JSON.
    """
    result: str = preflight_alone(config=config)
    return result


@dynamic(**dynamic_task())
def calibrate_plan(config: RunConfig, plan: TrainingPlan, model_version: str) -> str:
    """Fetch the model, train a few steps on the nodes of the plan, and plan again."""
    _, step = step_of_model(config.model, model_version)
    fetched = fetch_model(model=config.model, version=model_version, **step.inputs)
    on_cpu_node(fetched.model, plan, pod_requests.fetching(config, plan))
    record = on_planned_node(calibration_task(plan)(config=config, plan=plan, model=fetched.model), plan, as_job=True)
    result: str = show_calibrated(config=config, plan=plan, record=record)
    return result


@workflow
def calibrate(config: RunConfig) -> str:
    """Measure a plan on the machines that it names: three steps with rows of full length, which need no data.

    What they take goes into the ledger, and later plans are corrected by it.

    Args:
        config: The run.

    Returns:
        Planned and measured figures, and the corrected plan, as JSON.
    """
    planned = plan_to_calibrate(config=config)
    result: str = calibrate_plan(config=config, plan=planned.plan, model_version=planned.model_version)
    return result
