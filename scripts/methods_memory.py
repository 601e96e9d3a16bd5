"""Write what each method needs under each strategy, by the planner, into docs/methods.md.

Usage: python scripts/methods_memory.py
"""

import sys
from pathlib import Path
from typing import Any

from thriftune.config import RunConfig
from thriftune.config.choices import METHODS, STRATEGIES
from thriftune.errors import UserError
from thriftune.models import architecture
from thriftune.planning import catalogue, planner
from thriftune.strategies import STRATEGIES as STRATEGY

PAGE = Path(__file__).parent.parent / "docs" / "methods.md"
START, END = "<!-- memory: written by scripts/methods_memory.py -->\n", "<!-- end of memory -->"
MODELS = {"7B": "meta-llama/Llama-2-7b-hf", "13B": "meta-llama/Llama-2-13b-hf", "70B": "meta-llama/Llama-2-70b-hf"}
_NODE, _ALONE = "g4dn.metal", "g4dn.2xlarge"
_SECTIONS: dict[str, dict[str, Any]] = {
    "partial": {"partial": {"train": [{"last_layers": 2}, "norms", "head"]}},
    "lora": {"lora": {"rank": 16, "merge": False}},
    "qlora": {"lora": {"rank": 16, "merge": False}},
}


def cell(method: str, strategy: str, model: str) -> str:
    """GiB of the fullest GPU, with the settings that the planner chose and a remark where it is uncertain; or a dash.

    Args:
        method: The method.
        strategy: The strategy.
        model: Key of `MODELS`.
    """
    instance = _ALONE if STRATEGIES[strategy].most_devices == 1 else _NODE
    run = RunConfig.model_validate(
        {
            "name": "table", "method": method, "strategy": strategy, "model": {"source": MODELS[model]},
            "data": {"source": "rows.jsonl", "format": "chat", "max_length": 512},
            "hardware": {"instance": instance, "nodes": 1},
            "training": {"global_batch": 16, "micro_batch": 1},
            **_SECTIONS.get(method, {}),
        }
    )  # fmt: skip
    try:
        plan = planner.plan(run, catalogue.load(), architecture=architecture.of(run.model))
    except UserError:
        return "-"
    how = STRATEGY[plan.strategy].short(plan)
    assert plan.memory.verdict is not None
    remarks = [remark for remark in (how, "" if plan.memory.verdict.answer == "fits" else "uncertain") if remark]
    return f"{plan.memory.device_gib:.1f}" + (f" ({', '.join(remarks)})" if remarks else "")


def table() -> str:
    """The table: a row for each pair that can be, a column for each model."""
    rows = [["Method", "Strategy", *MODELS], ["---"] * (2 + len(MODELS))]
    for method in METHODS:
        for strategy, facts in STRATEGIES.items():
            if method not in facts.refuses:
                rows.append([f"`{method}`", f"`{strategy}`", *(cell(method, strategy, model) for model in MODELS)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, "", f"`single` is one T4 of a {_ALONE}; a dash: it does not fit there.", ""])


def main() -> None:
    """Write the table."""
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    PAGE.write_text(f"{before}{START}{table()}{END}{rest.split(END)[1]}", encoding="utf-8")
    sys.stdout.write(f"The table is in {PAGE}\n")


if __name__ == "__main__":
    main()
