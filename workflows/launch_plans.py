"""Scheduled runs: QLoRA each night, full fine-tuning each week. Presets, no logic.

pyflyte register --image <registry>/thriftune:0.1.0 --destination-dir . workflows
pyflyte launchplan --activate nightly_qlora

Flyte's scheduler reads times as UTC if its pod is in UTC, as images usually are, or is configured so (docs/cluster.md).
So with daylight saving time a plan moves by an hour. Cron expressions have five fields. They and the run files are
settings (docs/settings.md), read when plans are registered; what was registered stays until the next registration.

A run with unchanged model, data and file is served from Flyte's cache and asks for no GPU. The shipped runs pin their
data to a commit, so all of them but the first are: name a run of your own, whose data grows.
"""

from flytekit import CronSchedule, LaunchPlan

from tasks.scheduling import run_file, shared_options, with_plain_default
from tasks.settings import PLATFORM
from workflows.full_finetune import full_finetune
from workflows.qlora_finetune import qlora_finetune

_NIGHTLY, _WEEKLY = run_file("nightly_config", "qlora_finetune"), run_file("weekly_config", "full_finetune")

# Each night adapters are trained on the present data. The run is a default: a person who launches the plan by hand may
# give another one, to try it on one cheap node with the schedule's bucket and labels.
nightly_qlora = with_plain_default(
    LaunchPlan.get_or_create(
        qlora_finetune,
        "nightly_qlora",
        default_inputs={"config": _NIGHTLY},
        schedule=CronSchedule(schedule=PLATFORM.nightly_cron),
        **shared_options(_NIGHTLY, PLATFORM.nightly_config),
    )
)

# Each week every weight is trained, on whole machines. The run is fixed: what this plan does and costs must not depend
# on who launches it. For another run, register another file.
weekly_full = LaunchPlan.get_or_create(
    full_finetune,
    "weekly_full",
    fixed_inputs={"config": _WEEKLY},
    schedule=CronSchedule(schedule=PLATFORM.weekly_cron),
    **shared_options(_WEEKLY, PLATFORM.weekly_config),
)
