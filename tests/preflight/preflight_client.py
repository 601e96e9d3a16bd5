"""Checks runs against the hub at HF_ENDPOINT, in a process of its own: huggingface_hub reads it when it is imported."""

import json
import logging
import sys
from pathlib import Path

from preflighting import fetched_tokenizer, plan_for

from thriftune import preflight
from thriftune.config import RunConfig
from thriftune.preflight import report


def main() -> None:
    """Print what each run's preflight came to."""
    logging.basicConfig(level=logging.DEBUG)
    model, runs = json.loads(sys.argv[1])
    results = {}
    for name, (run, token) in runs.items():
        config = RunConfig.model_validate(run)
        result = preflight.run(config, plan=plan_for(config.method, Path(model)), token=token)
        results[name] = {**result.as_json(), "text": report.text(result)}
        if name == "good too":
            results[name]["fetched"] = fetched_tokenizer(config, result.facts.model_version, token)
    sys.stdout.write("RESULTS" + json.dumps(results) + "\n")


if __name__ == "__main__":
    main()
