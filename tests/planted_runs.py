"""Runs workflows one after the other as `pyflyte run` does, each with a run that fails; what it prints is looked at."""

import json
import sys

from flytekit.clis.sdk_in_container.utils import pretty_print_exception

from thriftune.config import RunConfig
from workflows.plan import preflight
from workflows.qlora_finetune import qlora_finetune

WORKFLOWS = {"qlora": qlora_finetune, "preflight": preflight}

if __name__ == "__main__":
    for line in sys.stdin:
        name, content = json.loads(line)
        sys.stdout.write(f"--- {name}\n")
        try:
            sys.stdout.write(str(WORKFLOWS[name](config=RunConfig.model_validate(content))))
        except Exception as error:  # noqa: BLE001 - whatever pyflyte would print
            pretty_print_exception(error)
            sys.stdout.write(f"\n=== {error}\n")
        sys.stdout.flush()
