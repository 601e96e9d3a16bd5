"""Non-pad tokens per second of training: random batches, batches of similar length, and packed rows, compared.

    python benchmarks/packing.py MODEL_DIRECTORY ROWS.jsonl [--steps 12] [--format chat] [--max_length 256]

Trains the model in bf16 on the CPU through thriftune's own trainer (AdamW, no accumulation), three ways, after two
steps each that are not timed. Padded batches hold 8 examples, packed ones as many rows as 8 examples fill.

    random    padded to the longest of a random batch
    grouped   training.group_by_length: padded to the longest of a batch of similar length
    packed    data.packing: examples share rows, and cannot see each other
"""

import argparse
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

EXAMPLES = 8
WARMUP_STEPS = 2


def prepared(options: argparse.Namespace, folder: Path, *, packing: bool) -> Any:
    """The training rows, and the share of padding that the report expects."""
    from thriftune.config import DataConfig
    from thriftune.data.prepare import prepare
    from thriftune.data.prepared import TRAIN, load_split

    config = DataConfig(source=str(options.rows), format=options.format, max_length=options.max_length, packing=packing)
    place = folder / ("packed" if packing else "plain")
    prepare(config, seed=0, tokenizer_dir=options.model, destination=place)
    return load_split(place, TRAIN)


def run_config(options: argparse.Namespace, *, micro_batch: int, grouped: bool, packing: bool) -> Any:
    """A run with one batch per step."""
    from thriftune.config import RunConfig

    return RunConfig.model_validate(
        {
            "name": "packing",
            "method": "full",
            "model": {"source": str(options.model)},
            "data": {"source": str(options.rows), "format": options.format, "packing": packing},
            "hardware": {"device": "CPU"},
            "zero": {"config": {"zero_optimization": {"stage": 0}}},
            "training": {
                "global_batch": micro_batch, "micro_batch": micro_batch, "max_steps": options.steps + WARMUP_STEPS,
                "precision": "bf16", "gradient_checkpointing": False, "group_by_length": grouped, "log_every": 1000,
            },
        }
    )  # fmt: skip


def tokens_per_second(options: argparse.Namespace, rows: Any, config: Any, scratch: Path) -> tuple[float, float]:
    """Non-pad tokens per second after the warmup, and the share of padding in the computed tokens."""
    import torch
    from transformers import AutoModelForCausalLM, TrainerCallback

    from thriftune.models.tokenizer import load_tokenizer
    from thriftune.planning import catalogue, offers, planner
    from thriftune.training.trainer import make_trainer, training_arguments

    plan = planner.plan(config, catalogue.load(), here=offers.this_machine())
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16)
    trainer = make_trainer(model, training_arguments(config, plan, scratch, {}), load_tokenizer(options.model), rows)
    computed = []
    collate = trainer.data_collator
    trainer.data_collator = lambda batch: computed.append(collate(batch)) or computed[-1]

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.marks: list[tuple[float, int]] = []

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.marks.append((time.perf_counter(), state.num_input_tokens_seen))

    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    (start, before), (end, after) = clock.marks[WARMUP_STEPS - 1], clock.marks[-1]
    seen = computed[: len(clock.marks)]
    return (after - before) / (end - start), 1 - clock.marks[-1][1] / sum(b["input_ids"].numel() for b in seen)


def main() -> None:
    """Measure the three ways and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--format", default="chat")
    parser.add_argument("--max_length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        plain = prepared(options, Path(folder), packing=False)
        packed = prepared(options, Path(folder), packing=True)
        mean = sum(plain["length"]) / len(plain)
        # As many tokens as a batch of examples has, so that the packed batch computes no more than the padded ones.
        packed_rows = max(1, round(EXAMPLES * mean / options.max_length))
        ways = {
            "random": (plain, run_config(options, micro_batch=EXAMPLES, grouped=False, packing=False)),
            "grouped": (plain, run_config(options, micro_batch=EXAMPLES, grouped=True, packing=False)),
            "packed": (packed, run_config(options, micro_batch=packed_rows, grouped=False, packing=True)),
        }
        print(
            f"\n{len(plain)} examples, {mean:.0f} tokens on average; {len(packed)} packed rows of {options.max_length}"
        )
        print("\n| batches | rows | non-pad tokens/s | padding | x random |\n|---|---|---|---|---|")
        first = None
        for name, (rows, config) in ways.items():
            rate, padding = tokens_per_second(options, rows, config, Path(folder) / "scratch")
            first = first or rate
            size = config.training.micro_batch
            print(f"| {name} | {size} | {rate:.0f} | {padding:.0%} | {rate / first:.2f} |", flush=True)


if __name__ == "__main__":
    main()
