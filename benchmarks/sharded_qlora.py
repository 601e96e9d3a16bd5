"""Loading a base in 4 bits for several ranks, and its first step: seconds, and memory of each rank.

    python benchmarks/sharded_qlora.py [--ranks 2 4] [--layers 14] [--strategies layers zero fsdp]

Makes a random Llama (495M parameters by default) in bf16 and trains one step of QLoRA on it with `thriftune.training`,
once per strategy and number of ranks, each in fresh processes: split by layers in one process, which quantizes the
model as transformers does, and divided over ranks, which quantize it weight by weight. On the GPUs of a machine that
has any.

Reported per rank, as the highest of all ranks: the seconds that loading took; what it holds of the frozen base after
loading; above the idle process, peak anonymous memory (private, not in the page cache) and peak proportional memory
(that, plus the rank's share of mapped file pages) while loading and until the end of the step; and on GPUs the peak of
the device's memory until then.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from zero3_loading import MIB, RollupPeak, make_model

LENGTH, VOCABULARY = 32, 32000
_NO_LIMIT_GIB = 1e6
ALONE = "layers"  # in one process, whatever the number of ranks


def make_inputs(folder: Path, layers: int) -> int:
    """A model with a tokenizer of four tokens, and rows of random tokens; returns the number of parameters."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from thriftune import artifacts
    from thriftune.data.prepared import TRAIN, VALIDATION

    parameters, _ = make_model(folder / "model", layers)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    words = models.WordLevel({token: i for i, token in enumerate(special.values())}, unk_token="<unk>")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), **special).save_pretrained(folder / "model")
    rows = np.random.default_rng(0).integers(4, VOCABULARY, (8, LENGTH)).tolist()
    lists = pa.list_(pa.int32())
    columns = [pa.array(rows, lists), pa.array(rows, lists), pa.array([LENGTH] * len(rows), pa.int32())]
    table = pa.table(columns, names=["input_ids", "labels", "length"])
    with artifacts.writing(folder / "dataset", "preparing rows") as place:
        pq.write_table(table, place / TRAIN)
        pq.write_table(table.slice(0, 1), place / VALIDATION)
        artifacts.write_manifest(place, "dataset", {"fingerprint": "random"})
    return parameters


def worker(strategy: str, ranks: int, folder: Path, output: Path) -> None:
    """Train one step in one rank, and write what was measured."""
    import deepspeed  # noqa: F401 - here, so that it counts as part of the idle process
    import torch

    from thriftune import distributed
    from thriftune.config import ModelConfig, RunConfig
    from thriftune.models import architecture
    from thriftune.planning import catalogue, offers, planner
    from thriftune.strategies import STRATEGIES
    from thriftune.training.fit import Inputs, fit

    config = RunConfig.model_validate(run_file(strategy, ranks))
    shape = architecture.of(ModelConfig(source=str(folder / "model")))
    here = replace(offers.this_machine(), host_gib=_NO_LIMIT_GIB)  # memory is measured here, not predicted
    plan = planner.plan(config, catalogue.load(), architecture=shape, here=here)
    own, peaks, found = STRATEGIES[strategy], RollupPeak(), {}
    load = own.load

    def loading(*arguments: Any) -> Any:
        began = time.monotonic()
        model = load(*arguments)
        found.update({"seconds": time.monotonic() - began, "held": held(model), "loaded": peaks.above_idle()})
        return model

    own.load = loading  # type: ignore[method-assign]
    fit(Inputs(config, plan, folder / "model", folder / "dataset"), output.with_name("adapter"))
    found["stepped"] = peaks.above_idle()
    found["device"] = torch.cuda.max_memory_allocated() / MIB if torch.cuda.is_available() else 0.0
    output.with_name(f"rank{distributed.current_rank().index}.json").write_text(json.dumps(found))
    distributed.leave()


def held(model: Any) -> float:
    """MiB of frozen weights that this rank holds, and of the constants of those in 4 bits."""
    size = 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            continue
        shard = getattr(parameter, "ds_tensor", parameter)
        shard = shard.to_local() if hasattr(shard, "to_local") else shard
        size += shard.numel() * shard.element_size()
    states = {id(s): s for s in (getattr(m, "quant_state", None) for m in model.modules()) if s is not None}
    size += sum(s.absmax.numel() * s.absmax.element_size() for s in states.values())
    return size / MIB


def run_file(strategy: str, ranks: int) -> dict[str, Any]:
    """The run."""
    training = {
        "global_batch": 4, "micro_batch": 1, "max_steps": 1, "precision": "auto", "gradient_checkpointing": True,
    }  # fmt: skip
    return {
        "name": "sharded-qlora", "method": "qlora", "strategy": strategy, "model": {"source": "random/llama"},
        "data": {"source": "rows", "format": "text", "max_length": LENGTH},
        "hardware": {"devices_per_node": ranks}, "training": training, "lora": {"rank": 16, "merge": False},
        "evaluation": {"prompts": ["any"], "max_new_tokens": 1},
        **({"zero": {"config": "zero3"}} if strategy == "zero" else {}),
    }  # fmt: skip


def measure(strategy: str, ranks: int, folder: Path) -> dict[str, float]:
    """The highest figures of all ranks of one run."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    shared = {
        "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        "OMP_NUM_THREADS": 1,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as scratch:
        started = []
        for rank in range(ranks):
            command = [
                sys.executable, __file__, "--worker", strategy, "--ranks", str(ranks), "--folder", str(folder),
                "--output", f"{scratch}/out",
            ]  # fmt: skip
            environment = {**os.environ, **{k: str(v) for k, v in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()}}
            with Path(scratch, f"rank{rank}.log").open("w") as log:
                started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
        if any([process.wait() for process in started]):  # noqa: C419 - wait for every one
            raise SystemExit(f"{strategy} on {ranks} ranks failed:\n{Path(scratch, 'rank0.log').read_text()[-4000:]}")
        results = [json.loads(file.read_text()) for file in Path(scratch).glob("rank*.json")]
    assert len(results) == ranks
    highest = {name: max(r[name] for r in results) for name in ("seconds", "held", "device")}
    for phase in ("loaded", "stepped"):
        highest |= {f"{phase} {key}": max(r[phase][key] for r in results) for key in ("Anonymous", "Pss")}
    return highest


def main() -> None:
    """Measure every combination and print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--layers", type=int, default=14, help="14 layers make 495M parameters")
    parser.add_argument("--strategies", nargs="+", default=[ALONE, "zero", "fsdp"])
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.ranks[0], options.folder, options.output)
        return
    with tempfile.TemporaryDirectory() as folder:
        parameters = make_inputs(Path(folder), options.layers)
        print(f"{parameters / 1e6:.0f}M parameters, {2 * parameters / MIB:.0f} MiB in 16 bits; peaks in MiB per rank\n")
        print("| strategy | ranks | load, s | base held | loading: anonymous | proportional | 1 step: anonymous |"
              " proportional | device |")  # fmt: skip
        print("|---" * 9 + "|")
        for strategy in options.strategies:
            for ranks in [1] if strategy == ALONE else options.ranks:
                found = measure(strategy, ranks, Path(folder))
                peaks = [found[f"{at} {kind}"] for at in ("loaded", "stepped") for kind in ("Anonymous", "Pss")]
                device = f"{found['device']:.0f}" if found["device"] else "-"
                numbers = " | ".join(f"{cell:.0f}" for cell in [found["held"], *peaks])
                print(f"| {strategy} | {ranks} | {found['seconds']:.1f} | {numbers} | {device} |", flush=True)


if __name__ == "__main__":
    main()
