"""Predicted and measured time of a step on this machine's CPU, before and after half of the runs are in the ledger.

    python benchmarks/step_time.py RESULTS.jsonl [--only lora] [--report]

Trains twelve models of different shape by different methods and strategies through `thriftune.training.fit.fit`, four
optimizer steps each, of which the first is not timed. Every other run joins a ledger, as a real run does; the rest are
then predicted once more with that ledger, all by the speed that the CPU has when the table is made. Each result is
appended to RESULTS.jsonl as soon as it is there, and runs that the file already holds are skipped. Nothing else should
run on the machine. It takes about 20 minutes on two cores.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from memory_runs import Run, make_model, measure, plan_of, run_file
from pydantic import TypeAdapter

from thriftune.config import RunConfig
from thriftune.planning.ledger import Record
from thriftune.planning.ledger.record import from_json
from thriftune.training.recording import record_of
from thriftune.training.result import TrainingResult
from thriftune.training_plan import TrainingPlan

STEPS = 4


def _runs() -> Iterator[Run]:
    """Pairs of runs with something in common, of which the first one joins the ledger."""

    def run(method: str, model: Any, length: int, rows: int, strategy: str = "", *, checkpointing: bool) -> Run:
        rank = 16 if method in ("lora", "qlora") else 0
        return Run(
            method, model, length, rows, checkpointing=checkpointing, precision="fp32", lora_rank=rank,
            strategy=strategy, steps=STEPS,
        )  # fmt: skip

    yield run("zero3", "42M", 256, 2, checkpointing=False)
    yield run("zero2", "135M", 128, 1, checkpointing=True)
    yield run("full", "42M", 256, 2, "single", checkpointing=True)
    yield run("full", "gpt2", 128, 2, "ddp", checkpointing=False)
    yield run("full", "135M", 128, 1, "fsdp", checkpointing=False)
    yield run("partial", "42M", 512, 1, "fsdp", checkpointing=False)
    yield run("lora", "42M", 256, 4, "ddp", checkpointing=False)
    yield run("lora", "falcon", 256, 1, checkpointing=True)
    yield run("qlora", "42M", 512, 1, checkpointing=False)
    yield run("qlora", "135M", 128, 1, "ddp", checkpointing=True)
    yield run("prefix", "135M", 128, 2, "single", checkpointing=False)
    yield run("llama_adapter", "42M", 256, 2, "ddp", checkpointing=True)


RUNS = tuple(_runs())


@dataclass(frozen=True)
class Timed:
    """A run that was measured.

    Attributes:
        name: Of the run.
        predicted: Seconds per step, as its plan had them when it ran.
        measured: Mean seconds of the steps but the first.
        record: The record of the ledger, as JSON.
    """

    name: str
    predicted: float
    measured: float
    record: str


def timed(run: Run, work: Path) -> Timed:
    """Plan a run and train it.

    Args:
        run: The run.
        work: Folder for models.
    """
    plan = planned(run, work, ())
    measured = measure(run, work)
    result = TypeAdapter(TrainingResult).validate_python(measured.training)
    config = RunConfig.model_validate(run_file(run))
    record = record_of(config, plan, measured.model["model_type"], result, 0.0)
    assert plan.time is not None
    assert result.pace is not None
    assert record is not None
    return Timed(run.name, plan.time.step.seconds, result.pace.seconds_per_step, record.as_json().decode())


def planned(run: Run, work: Path, records: Sequence[Record]) -> TrainingPlan:
    """The plan of a run, by the speed of this CPU and by other runs.

    Args:
        run: The run.
        work: Folder for models.
        records: The other runs.
    """
    make_model(run.model, work / run.model)
    return plan_of(RunConfig.model_validate(run_file(run)), work / run.model, records)


def report(results: Sequence[Timed]) -> str:
    """The table of all runs, predicted by the present code and by the speed that the CPU has now, as Markdown.

    Args:
        results: The runs that were measured.
    """
    measured = {one.name: one for one in results}
    runs = [run for run in RUNS if run.name in measured]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        first = {run.name: _seconds(planned(run, work, ())) for run in runs}
        known = [run.name for run in RUNS[::2] if run in runs]
        records = [_planned_again(measured[name], first[name]) for name in known]
        later = {run.name: _seconds(planned(run, work, records)) for run in runs if run.name not in known}
    lines = ["| run | measured, s | predicted | off | with the ledger | off |", "|---|---|---|---|---|---|"]
    for run in runs:
        name, truth = run.name, measured[run.name].measured
        cells = [name, f"{truth:.2f}", f"{first[name]:.2f}", f"{first[name] / truth - 1:+.0%}"]
        again = [f"{later[name]:.2f}", f"{later[name] / truth - 1:+.0%}"] if name in later else ["in the ledger", ""]
        lines.append(f"| {' | '.join([*cells, *again])} |")
    alone, unknown, corrected = (
        statistics.median(abs(found[name] / measured[name].measured - 1) for name in names)
        for found, names in ((first, first), (first, later), (later, later))
    )
    lines += [
        "",
        f"Median error of all {len(runs)} without a ledger: {alone:.0%}. Of the {len(later)} that are not in the "
        f"ledger: {unknown:.0%} without it, {corrected:.0%} with it.",
    ]
    return "\n".join(lines)


def _seconds(plan: TrainingPlan) -> float:
    assert plan.time is not None
    return plan.time.step.seconds


def _planned_again(one: Timed, seconds: float) -> Record:
    """The record of a run, with what the present code plans for it."""
    record = from_json(one.record.encode())
    return replace(record, planned=replace(record.planned, seconds_per_step=seconds))


def load(file: Path) -> list[Timed]:
    """The results in a file that `main` wrote; none if there is no file yet."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [Timed(**json.loads(line)) for line in lines]


def main() -> None:
    """Measure the runs that are not in the file yet, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="file of results, a JSON object per line")
    parser.add_argument("--only", default="", help="measure only runs with this text in their name")
    parser.add_argument("--report", action="store_true", help="measure nothing, print the table of what is there")
    options = parser.parse_args()
    results = load(options.results)
    done = {one.name for one in results}
    with tempfile.TemporaryDirectory() as work:
        for run in RUNS:
            if options.report or run.name in done or options.only not in run.name:
                continue
            one = timed(run, Path(work))
            results.append(one)
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(one)) + "\n")
            print(f"{one.name}: predicted {one.predicted:.2f} s, measured {one.measured:.2f} s", file=sys.stderr)
    print(report(results))


if __name__ == "__main__":
    main()
