"""The first task of a run that only measures: its checks, and the node that each shard has."""

import json
import logging
from dataclasses import dataclass

from flytekit import task

from tasks import pages, settings
from tasks.benchmark_jobs import Asking
from tasks.declaring import hub_task
from tasks.preflight import hub_secret
from tasks.transfer import transient_errors_retried, try_outputs
from thriftune.config.benchmark_run import BenchmarkRun
from thriftune.errors import UserError
from thriftune.inference.benchmarks.measuring import Settings
from thriftune.models.quantization import FourBit
from thriftune.planned_node import EvaluationNode
from thriftune.planning import catalogue, evaluating, offers
from thriftune.preflight import benchmark_run, report
from thriftune.preflight.benchmark_run import CheckedModels
from thriftune.preflight.findings import Preflight, in_order

logger = logging.getLogger("thriftune.tasks.check_benchmarks")


@dataclass(frozen=True)
class CheckedRun:
    """A run that only measures, once it is checked.

    Attributes:
        asking: How its benchmarks are asked, and the node of each shard.
        parameters: Number of parameters of the model.
        model_version: Version of the model.
        adapter_versions: Versions of the adapters, by name.
        benchmarks_version: Versions of the benchmarks by name, as JSON.
    """

    asking: Asking
    parameters: int
    model_version: str
    adapter_versions: dict[str, str]
    benchmarks_version: str


@task(**hub_task(), enable_deck=True, deck_fields=())
def check_benchmarks(config: BenchmarkRun) -> CheckedRun:
    """Check a run that only measures, plan it, and refuse all problems at once, before any GPU is asked for.

    Args:
        config: The run.

    Returns:
        What its pods need to know, and present versions of what it reads.
    """
    token = settings.hub_token()
    with transient_errors_retried():
        found = benchmark_run.check(config, token, hub_secret(token), try_outputs())
        node, checked = _planned(config, found)
        logger.info("\n%s", report.text(checked))
        content = json.dumps(checked.as_json(), indent=2) + "\n"
        pages.show("preflight", config.name, report.html(checked), content)
        checked.require_ok()
    assert node is not None
    assert found.architecture is not None
    section, facts = config.benchmarks, checked.facts
    asked = Settings(
        batch=section.batch,
        max_new_tokens=section.max_new_tokens,
        temperature=section.temperature,
        seed=config.seed,
        style=found.style,
        trust_remote_code=config.model.trust_remote_code,
    )
    pods = "1 pod" if node.pods == 1 else f"{node.pods} pods, each"
    logger.info("%s with %d x %s of %s", pods, node.devices, node.device, node.instance)
    return CheckedRun(
        Asking(asked, node, FourBit() if config.quantize else None),
        found.architecture.parameters,
        facts.model_version,
        found.adapter_versions,
        facts.benchmarks_version,
    )


def _planned(config: BenchmarkRun, found: CheckedModels) -> tuple[EvaluationNode | None, Preflight]:
    """The node of each shard, and the findings with why there is none."""
    checked = found.preflight
    if found.architecture is None:
        return None, checked
    nodes = catalogue.load(settings.PLATFORM.catalogue)
    here = offers.this_machine(settings.local_root(), nodes.devices) if settings.is_local() else None
    on_spot = settings.PLATFORM.interruptible
    try:
        return evaluating.planned_models(config, found.architecture, nodes, here, interruptible=on_spot), checked
    except UserError as error:
        findings = in_order([*checked.findings, *error.problems])
        return None, Preflight(checked.run, findings, checked.facts)
