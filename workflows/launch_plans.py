"""Runs that come round by themselves: QLoRA each night, full fine-tuning each week. Presets, no logic.

pyflyte register --image <registry>/thriftune:0.1.0 --destination-dir . workflows
pyflyte launchplan --activate nightly_qlora

Flyte's scheduler reads times as UTC where its pod is in UTC, as images usually are, or is told to (docs/cluster.md), so
against clocks with daylight saving time a plan moves by an hour. Cron expressions have five fields. Both, and the run
files, are settings (docs/settings.md), read when plans are registered: what was registered stays until the next time.

A run on an unchanged model, data and file is served from Flyte's cache and asks for no GPU. The shipped runs pin their
data to a commit, so theirs are, after the first: name a run of your own, whose data grows.
"""

from flytekit import CronSchedule, LaunchPlan

from tasks.scheduling import run_file, shared_options
from tasks.settings import PLATFORM
from workflows.full_finetune import full_finetune
from workflows.qlora_finetune import qlora_finetune

_NIGHTLY, _WEEKLY = run_file("nightly_config", "qlora_finetune"), run_file("weekly_config", "full_finetune")

# Each night adapters are trained on what the data holds by then. The run is a default: who launches the plan by hand
# may give another one, to try it on one cheap node with the schedule's bucket and labels.
nightly_qlora = LaunchPlan.get_or_create(
    qlora_finetune,
    "nightly_qlora",
    default_inputs={"config": _NIGHTLY},
    schedule=CronSchedule(schedule=PLATFORM.nightly_cron),
    **shared_options(_NIGHTLY, PLATFORM.nightly_config),
)

# Each week every weight is trained, on whole machines. The run is fixed: what this plan is known for and what it costs
# must not depend on who launches it. Another run is another file, registered.
weekly_full = LaunchPlan.get_or_create(
    full_finetune,
    "weekly_full",
    fixed_inputs={"config": _WEEKLY},
    schedule=CronSchedule(schedule=PLATFORM.weekly_cron),
    **shared_options(_WEEKLY, PLATFORM.weekly_config),
)
