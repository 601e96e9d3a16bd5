"""Calibrate a plan: train a few steps of it with rows of full length, and measure what they take."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import artifacts, distributed
from thriftune.config import RunConfig
from thriftune.config.data import DataConfig
from thriftune.data.prepared import POSITIONS, TRAIN, VALIDATION, write_samples
from thriftune.data.tokenization import IGNORED
from thriftune.models.tokenizer import load_tokenizer
from thriftune.overhead import GIB
from thriftune.strategies import STRATEGIES
from thriftune.training.fit import Inputs, TriedOut, try_out
from thriftune.training.guards.faults import kind_of
from thriftune.training.memory_watch import MemoryUse, held_on_gpus
from thriftune.training_plan import TrainingPlan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

STEPS = 3
# In fp16 the loss scale is halved in the first steps, which change nothing: at most so many more.
_STEPS_OF_SCALING = 12
_PROMPT_TOKENS = 8


def calibrate(config: RunConfig, plan: TrainingPlan, model_dir: Path, start: Path | None) -> TriedOut | MemoryUse:
    """Train a few steps of a plan. Runs in each process of the job; nothing of the model is saved.

    Args:
        config: The run.
        plan: Its plan.
        model_dir: The base model, on this node.
        start: Adapter that the training would continue, on this node; None if there is none.

    Returns:
        What was measured; or in a process whose memory ran out, which ends the others, what it held then.

    Raises:
        ConfigError: The model cannot be trained in this way.
        TransientError: Another attempt may succeed.
    """
    shortened = of_few_steps(config, plan)
    STRATEGIES[plan.strategy].join(plan)
    with _folder_of_node() as folder:
        rows = folder / "rows"
        distributed.once_per_node(lambda: write_rows(shortened, plan, model_dir, rows))
        try:
            return try_out(Inputs(shortened, plan, model_dir, rows, start), STEPS)
        except (RuntimeError, MemoryError) as error:
            if kind_of(error) != "memory":
                raise
            logger.warning("Memory ran out: %s", error)
            return _held(plan)


@contextmanager
def _folder_of_node() -> Iterator[Path]:
    """A folder that is the same in all processes of a node, and gone when its first one is done."""
    rank = distributed.current_rank()
    with tempfile.TemporaryDirectory() as own:
        yield Path(distributed.gather_objects(own)[rank.index - rank.local_index])


def of_few_steps(config: RunConfig, plan: TrainingPlan) -> RunConfig:
    """A run of a few steps, each followed by a validation of one batch, with nothing that reports or resumes.

    Args:
        config: The run.
        plan: Its plan.
    """
    steps = STEPS + (_STEPS_OF_SCALING if plan.precision == "fp16" else 0)
    rows = plan.validation_batch * plan.batch.world_size
    training = {"max_steps": steps, "log_every": 1, "report_to": "none", "keep": "last", "patience": None}
    changes: dict[str, dict[str, Any]] = {
        "training": {**training, "on_divergence": "stop"},
        "evaluation": {"every_steps": 1, "max_rows": rows, "prompts": (), "max_new_tokens": 1, "watch_general": False},
        "checkpoints": {"resume_from": None},
        "plan": {"budget": None},
    }
    sections = {name: getattr(config, name).model_copy(update=values) for name, values in changes.items()}
    return config.model_copy(update=sections)


def write_rows(config: RunConfig, plan: TrainingPlan, model_dir: Path, directory: Path) -> None:
    """Write a prepared dataset of random tokens, whose batches are as large as any of the run.

    Args:
        config: The run.
        plan: Its plan.
        model_dir: The base model, for its tokenizer.
        directory: Directory to create.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    tokens = np.array(_ordinary_tokens(load_tokenizer(model_dir, trust_remote_code=config.model.trust_remote_code)))
    draw, count = np.random.default_rng(config.seed), max(STEPS * plan.global_batch, config.evaluation.max_rows)
    lengths = _lengths(config.data, count)
    ids = [draw.choice(tokens, length) for length in lengths]
    ends = [index % len(config.labels) for index in range(count)] if config.labels else None
    columns = {
        "input_ids": ids,
        "labels": [_labels(row, None if ends is None else ends[index]) for index, row in enumerate(ids)],
        **({POSITIONS: [np.arange(length) for length in lengths]} if config.data.packing else {}),
    }
    lists = pa.list_(pa.int32())
    arrays = [pa.array([row.astype(np.int32) for row in column], lists) for column in columns.values()]
    table = pa.table([*arrays, pa.array(lengths, pa.int32())], names=[*columns, "length"])
    with artifacts.writing(directory, "writing rows to calibrate with") as place:
        pq.write_table(table, place / TRAIN)
        # Held-out rows are never packed.
        pq.write_table(table.select(["input_ids", "labels", "length"]), place / VALIDATION)
        asked = [int(token) for token in ids[0][:_PROMPT_TOKENS]]
        write_samples([{"question": "", "reference": "", "input_ids": asked}], place)
        artifacts.write_manifest(place, "dataset", {"fingerprint": "calibration"})


def _lengths(data: DataConfig, count: int) -> list[int]:
    """Tokens of each row: the longest, and one less in every second row.

    So a batch has some padding, and a mask, as nearly all batches of a run have. Packed rows have none.
    """
    return [data.max_length - (0 if data.packing else index % 2) for index in range(count)]


def _labels(row: Any, class_of: int | None) -> Any:
    """The labels of a row: each token but the first; of a classifier, its class at the last token."""
    labels = row.copy() if class_of is None else row * 0 + IGNORED
    labels[0] = IGNORED
    if class_of is not None:
        labels[-1] = class_of
    return labels


def _ordinary_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    special = set(tokenizer.all_special_ids)
    return [token for token in range(tokenizer.vocab_size) if token not in special]


def _held(plan: TrainingPlan) -> MemoryUse:
    """What this process held when its memory ran out, beside what was planned."""
    import psutil

    process = psutil.Process().memory_info().rss / GIB
    allocated, reserved, context = held_on_gpus()
    planned = plan.memory
    return MemoryUse(allocated or process, planned.allocated_gib, process, planned.training_host_gib, reserved, context)
