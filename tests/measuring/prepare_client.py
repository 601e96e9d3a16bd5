"""Prepares benchmarks with the hub at HF_ENDPOINT, in a process of its own: huggingface_hub reads it on import."""

import json
import sys
from pathlib import Path

from thriftune.config.benchmarks import BenchmarksConfig
from thriftune.errors import ThriftuneError
from thriftune.inference.benchmarks import preparing


def main() -> None:
    """Print the versions of each section of benchmarks, or why there are none."""
    sections, folder = json.loads(sys.argv[1]), Path(sys.argv[2])
    found = {}
    for name, tasks in sections.items():
        section = BenchmarksConfig.model_validate({"tasks": tasks})
        try:
            found[name] = preparing.versions(section)
            preparing.prepare(section, folder / name)
        except ThriftuneError as error:
            found[name] = f"{type(error).__name__}: {error}"
    sys.stdout.write("RESULTS" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
