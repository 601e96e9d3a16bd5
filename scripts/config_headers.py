"""Write into the headers of configs/ what the planner says of their memory now.

    python scripts/config_headers.py

A header has a paragraph of memory, by item, for the fullest GPU and for a host; tests/test_configs.py holds it to the
plan. What the rest of a header says (machines, price, hints) is a person's, and that test says where it is wrong.
"""

import re
import sys
import textwrap

from planning_table import files

from tasks.run_files import load
from thriftune.config import RunConfig
from thriftune.models import architecture
from thriftune.planning import catalogue, planner
from thriftune.training_plan import TrainingPlan

_WIDTH = 113
_LEAST_SHOWN_GIB = 0.05
# The lines about a device or a host: indented by three, and by five where they go on.
_DEVICE = re.compile(r"^#   (?P<who>the GPU|each GPU|the fullest GPU): .*\n(?:#     .*\n)*", re.M)
_HOST = re.compile(r"^#   (?P<who>the host|each host): .*\n(?:#     .*\n)*", re.M)


def renewed(text: str, plan: TrainingPlan) -> str:
    """The text of a run file with its memory as a plan has it.

    Args:
        text: The file.
        plan: Its plan.
    """
    memory = plan.memory
    device = f"{memory.device_gib:.1f} of {plan.device_limit_gib:.1f} GiB ({_items(memory.device)})"
    host = f"{memory.host_gib:.0f} of {plan.host_limit_gib:.0f} GiB, at most while {memory.host_phase}"
    text = _DEVICE.sub(lambda found: _lines(f"{found['who']}: {device}"), text)
    return _HOST.sub(lambda found: _lines(f"{found['who']}: {host} ({_items(memory.host)})"), text)


def _items(gib: dict[str, float]) -> str:
    return ", ".join(f"{item} {size:.1f}" for item, size in gib.items() if size >= _LEAST_SHOWN_GIB)


def _lines(text: str) -> str:
    first, *others = textwrap.wrap(text, _WIDTH)
    return "".join([f"#   {first}\n", *(f"#     {line}\n" for line in others)])


def main() -> None:
    """Renew the headers of all files that are not for this machine."""
    for file in files():
        text = file.read_text(encoding="utf-8")
        config = RunConfig.model_validate(load(text))
        if config.hardware.device == "CPU":
            continue
        plan = planner.plan(config, catalogue.load(), architecture=architecture.of(config.model, labels=config.labels))
        if (new := renewed(text, plan)) != text:
            file.write_text(new, encoding="utf-8")
            sys.stdout.write(f"{file}\n")


if __name__ == "__main__":
    main()
