"""Launch plans: scheduled, with a value for every input, alone, and with somebody told when they fail."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from documents import run_files
from flytekit import FlyteContextManager, LaunchPlan, task, workflow
from flytekit.clis.sdk_in_container import pyflyte
from flytekit.core.type_engine import TypeEngine
from flytekit.interaction.string_literals import literal_string_repr

from tasks import scheduling
from tasks.platform import Platform
from tasks.scheduling import run_file, with_plain_default
from thriftune.config import RunConfig
from thriftune.errors import ConfigError

ROOT = Path(__file__).parent.parent
_LOOK = """
import json
from flytekit.models.core.execution import WorkflowExecutionPhase as phase
from workflows.launch_plans import nightly_qlora, weekly_full
def told(plan):
    return [(sorted(n.phases), n.email.recipients_email) for n in plan.notifications]
print(json.dumps({plan.name: {
    "workflow": plan.workflow.name,
    "cron": plan.schedule.cron_schedule.schedule,
    "defaults": sorted(k for k, v in plan.parameters.parameters.items() if v.default is not None),
    "fixed": sorted(plan.fixed_inputs.literals),
    "told": told(plan),
    "bad_ends": sorted([phase.FAILED, phase.TIMED_OUT, phase.ABORTED]),
    "at_once": plan.concurrency.max_concurrency,
    "labels": plan.labels.values,
    "annotations": plan.annotations.values,
    "bucket": plan.raw_output_data_config and plan.raw_output_data_config.output_location_prefix,
} for plan in (nightly_qlora, weekly_full)}))
"""


@task
def name_of(config: RunConfig) -> str:
    """Of a run."""
    return config.name


@workflow
def naming(config: RunConfig) -> str:
    """What a plan starts."""
    return name_of(config=config)


def plans(**settings):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("THRIFTUNE_")}
    return subprocess.run(
        [sys.executable, "-c", _LOOK], cwd=ROOT, env={**environment, **settings}, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def as_shipped():
    done = plans()
    assert done.returncode == 0, done.stderr[-2000:]
    assert "THRIFTUNE_NOTIFY is not set: nobody is told" in done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_every_input_of_a_scheduled_plan_has_a_value(as_shipped):
    """The scheduler gives none: a plan that lacks one is registered, and fails each night."""
    assert set(as_shipped) == {"nightly_qlora", "weekly_full"}
    assert as_shipped["nightly_qlora"]["defaults"] == ["config"]
    assert as_shipped["nightly_qlora"]["fixed"] == []  # may be launched by hand with another run
    assert as_shipped["weekly_full"]["fixed"] == ["config"]


def test_no_run_of_a_plan_overlaps_another(as_shipped):
    assert [plan["at_once"] for plan in as_shipped.values()] == [1, 1]


def test_schedules_have_five_fields_and_do_not_start_together(as_shipped):
    crons = [plan["cron"] for plan in as_shipped.values()]
    assert all(len(cron.split()) == 5 for cron in crons)
    assert len(set(crons)) == 2


def test_a_run_can_be_traced_back_to_its_file(as_shipped):
    for plan in as_shipped.values():
        file = ROOT / plan["annotations"]["thriftune/config"]
        assert plan["labels"]["run"] == yaml.safe_load(file.read_text())["name"]


@pytest.mark.parametrize("file", run_files(), ids=lambda file: file.stem)
def test_a_default_is_the_run_of_its_file_in_a_form_that_every_client_reads(file):
    """`pyflyte run remote-launchplan` ended with an AttributeError, even if another run was given."""
    run = RunConfig.model_validate(yaml.safe_load(file.read_text()))
    plan = LaunchPlan.create(f"plan-of-{file.stem}", naming, {"config": run})
    literal = with_plain_default(plan).parameters.parameters["config"].default
    assert isinstance(literal_string_repr(literal), dict)
    again = TypeEngine.to_python_value(FlyteContextManager.current_context(), literal, RunConfig)
    assert json.dumps(again.model_dump(mode="json"), sort_keys=True) == json.dumps(
        run.model_dump(mode="json"), sort_keys=True
    )


@pytest.mark.parametrize("arguments", [["--help"], ["nightly_qlora", "--help"], ["weekly_full", "--help"]])
@pytest.mark.parametrize("where", [[], ["--remote"]])
def test_pyflyte_runs_the_file_of_the_plans(where, arguments):
    """A default that is no run ended in "Flytekit does not support Unary expressions"."""
    done = CliRunner().invoke(pyflyte.main, ["run", *where, str(ROOT / "workflows" / "launch_plans.py"), *arguments])
    assert done.exit_code == 0, done.output[-2000:]
    assert ("nightly_qlora" if len(arguments) == 1 else "--inputs-file") in done.output


def test_a_plan_that_is_called_here_gives_its_workflow_the_run():
    run = run_file("nightly_config", "qlora_finetune")
    assert with_plain_default(LaunchPlan.create("called-here", naming, {"config": run}))() == run.name


def test_settings_decide_who_is_told_when_and_where_results_go(tmp_path):
    run = yaml.safe_load((ROOT / "configs" / "demo-full.yaml").read_text())
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({**run, "name": "own-run"}))
    done = plans(
        THRIFTUNE_NOTIFY="ml@example.org,ops@example.org",
        THRIFTUNE_RAW_OUTPUT="s3://results/thriftune",
        THRIFTUNE_LABELS="team=ml",
        THRIFTUNE_WEEKLY_CONFIG=str(tmp_path / "own.yaml"),
        THRIFTUNE_WEEKLY_CRON="30 6 * * 0",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    weekly = json.loads(done.stdout.splitlines()[-1])["weekly_full"]
    assert weekly["told"] == [[weekly["bad_ends"], ["ml@example.org", "ops@example.org"]]]
    assert weekly["bucket"] == "s3://results/thriftune"
    assert weekly["labels"] == {"app": "thriftune", "run": "own-run", "team": "ml"}
    assert weekly["cron"] == "30 6 * * 0"
    assert weekly["workflow"] == "workflows.full_finetune.full_finetune"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "THRIFTUNE_NIGHTLY_CONFIG"),
        ("name: [", "THRIFTUNE_NIGHTLY_CONFIG"),
        ("name: a\n", "NIGHTLY_CONFIG = .*method"),
    ],
)
def test_a_run_file_that_cannot_be_is_refused_when_plans_are_registered(monkeypatch, tmp_path, content, said):
    file = tmp_path / "run.yaml"
    if content is not None:
        file.write_text(content)
    monkeypatch.setattr(scheduling, "PLATFORM", Platform(nightly_config=str(file)))
    with pytest.raises(ConfigError, match=said):
        run_file("nightly_config", "qlora_finetune")


def test_the_shipped_runs_are_those_of_their_methods():
    nightly, weekly = run_file("nightly_config", "qlora_finetune"), run_file("weekly_config", "full_finetune")
    assert isinstance(nightly, RunConfig)
    with pytest.raises(
        ConfigError, match="THRIFTUNE_NIGHTLY_CONFIG.*is a run of method qlora, but .* is for full_fine"
    ):
        run_file("nightly_config", "full_finetune")
    assert (nightly.method, weekly.method) == ("qlora", "full")
