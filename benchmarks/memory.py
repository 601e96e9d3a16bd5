"""The accuracy of the planner's memory estimate, compared with measured peaks and with other tools' predictions.

    python benchmarks/memory_runs.py RESULTS.jsonl        (measures; about an hour)
    python benchmarks/memory.py RESULTS.jsonl [--by-item]

For each run of RESULTS.jsonl: the peak of the fullest rank as it was measured, and as
`thriftune.planning.memory.estimate` predicts it from the model's config.json and the run file. Beside it, per rank:

    DeepSpeed   its estimators of model states (`estimate_zero2/3_model_states_mem_needs`), for the stages they cover.
                They leave out activations by design; on a CPU, device memory and host memory are the same.
    accelerate  the prediction of `accelerate estimate-memory` for training with Adam, same model and precision. It does
                not know sharding, sequence length or adapters. (The command asks the hub; its functions do not.)

Both count tensors only; the memory of the process (Python and libraries, as thriftune counts them) is added to each.
The goal: within 10 % for half of the runs, and never more than 5 % too low.
"""

import argparse
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

from memory_runs import ZERO_RANKS, Measurement, RankMemory, load_measurements

MIB = 2**20
CLOSE, TOO_LOW = 0.10, -0.05


def architecture_of(measured: Measurement) -> Any:
    """The architecture of the model that was measured."""
    from thriftune.models import architecture

    return architecture.from_content(measured.model, measured.run.model)


def predicted(measured: Measurement) -> Any:
    """The planner's estimate for one rank of a run."""
    from thriftune.config import RunConfig
    from thriftune.hardware import DEVICES
    from thriftune.planning.memory import estimate
    from thriftune.planning.memory.validating import batch_of, bytes_of
    from thriftune.planning.search import step_shape_of
    from thriftune.strategies import Machines, candidates

    run, model, config = measured.run, architecture_of(measured), RunConfig.model_validate(measured.config)
    strategy = candidates(config)[0]
    (settings,) = strategy.options(config).values()
    # Rows are exactly as long as the run allows, so there is no padding, and transformers makes no mask.
    step_shape = replace(step_shape_of(config, run.micro_batch, run.precision), masked=False)
    machines = Machines(DEVICES["CPU"], 0.0, 1, run.ranks)
    needs = strategy.memory(model, step_shape, machines, settings, run.optimizer)
    assert needs is not None
    return estimate(
        strategy,
        model,
        step_shape,
        machines,
        settings=settings,
        optimizer=run.optimizer,
        validation_bytes=bytes_of(config, model, step_shape, batch_of(config, model, step_shape, needs.devices)),
    )


def highest(rank: RankMemory) -> float:
    """MiB that a rank held at its peak.

    While a model is loaded, pages of its mapped files are resident too, which the kernel drops where memory is short:
    of that phase private memory counts, and the pages that were resident before.
    """
    before = rank.start_rss - rank.start_anonymous
    peaks = [before + p.peak_anonymous if p.name == "load" else p.peak_rss for p in rank.phases if p.name != "save"]
    return max(peaks) / MIB


def deepspeed_says(measured: Measurement) -> float | None:
    """MiB of tensors per rank by DeepSpeed's own estimators, device and host together; None where it has none."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as stage3
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as stage2

    method, whole = measured.run.method, measured.parameters
    model, nodes = architecture_of(measured), {"num_gpus_per_node": ZERO_RANKS, "num_nodes": 1}
    if method.startswith("zero3"):
        options = {"cpu_offload": "offload" in method, "cpu_offload_params": method.endswith("all")}
        host, device, _ = stage3(whole, model.largest_parameter, **nodes, **options)
    elif method.startswith("zero2"):
        host, device = stage2(whole, **nodes, cpu_offload="offload" in method)
    else:
        return None
    return (device + (host / ZERO_RANKS if "offload" in method else 0)) / MIB


def accelerate_says(measured: Measurement) -> float:
    """MiB for training, by the functions behind `accelerate estimate-memory`: its largest moment."""
    from accelerate.commands.estimate import estimate_training_usage

    precision = "float32" if measured.run.precision == "fp32" else "bfloat16"
    return max(estimate_training_usage(4 * measured.parameters, precision).values()) / MIB


def off(value: float | None, truth: float) -> str:
    """Error of a prediction in percent."""
    return "" if value is None else f"{value / truth - 1:+.0%}"


def main() -> None:
    """Print the table and a summary of it."""
    from thriftune.planning.memory.estimate import CHECKPOINT

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="what memory_runs.py wrote")
    parser.add_argument("--by-item", action="store_true", help="also show each prediction item by item")
    options = parser.parse_args()
    print("| run | measured MiB | predicted | off | DeepSpeed | accelerate |")
    print("|---|---|---|---|---|---|")
    errors = []
    for measured in load_measurements(options.results):
        truth = max(highest(rank) for rank in measured.ranks)
        estimate = predicted(measured)
        at_checkpoints = estimate.device.get(CHECKPOINT, 0.0)  # the measured runs save none
        ours, process = (estimate.device_gib - at_checkpoints) * 1024, estimate.device["Python and libraries"] * 1024
        theirs = deepspeed_says(measured)
        others = [None if theirs is None else theirs + process, accelerate_says(measured) + process]
        errors.append(ours / truth - 1)
        columns = [f"{truth:.0f}", f"{ours:.0f}", off(ours, truth), *(off(value, truth) for value in others)]
        print(f"| {measured.run.name} | {' | '.join(columns)} |", flush=True)
        if options.by_item:
            print("   ", ", ".join(f"{item} {1024 * gib:.0f}" for item, gib in estimate.device.items()))
    if not errors:
        print("No runs in the file.")
        return
    close = sum(abs(error) <= CLOSE for error in errors)
    low = sum(error < TOO_LOW for error in errors)
    print(f"\n{len(errors)} runs: {close} within 10 %, {low} more than 5 % too low; ", end="")
    print(f"median {statistics.median(map(abs, errors)):.1%} off, from {min(errors):+.1%} to {max(errors):+.1%}")


if __name__ == "__main__":
    main()
