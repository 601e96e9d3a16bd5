"""Full fine-tuning under DeepSpeed ZeRO: one worker process per device, every weight trained."""

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import artifacts, distributed, zero, zero_loading
from thriftune.adjustments import Adjustments
from thriftune.attempts import Attempt, run_record
from thriftune.checkpoints import universal
from thriftune.config import RunConfig
from thriftune.data.prepared import TRAIN, load_split
from thriftune.hardware import torch_dtype
from thriftune.resumption import CheckpointPlace, Resumed
from thriftune.tokenizer import load_tokenizer
from thriftune.training import TrainingResult, make_trainer, training_arguments
from thriftune.training_plan import TrainingPlan

if TYPE_CHECKING:
    import torch
    from transformers import Trainer

    from thriftune.resumable import ResumableTrainer

logger = logging.getLogger(__name__)


def train(
    config: RunConfig,
    plan: TrainingPlan,
    model_dir: Path,
    dataset_dir: Path,
    destination: Path,
    place: CheckpointPlace | None = None,
) -> TrainingResult:
    """Fine-tune every weight. Runs in each worker process of the job.

    Args:
        config: The run.
        plan: Its plan.
        model_dir: Base model, on this node.
        dataset_dir: Prepared dataset, on this node.
        destination: Model directory to make; only global rank 0 writes it.
        place: Where checkpoints lie; None: none are saved.

    Returns:
        What was measured.
    """
    rank = distributed.join(plan.hardware.backend)
    tokenizer = load_tokenizer(model_dir, trust_remote_code=config.model.trust_remote_code)
    with tempfile.TemporaryDirectory() as scratch:
        rows = load_split(dataset_dir, TRAIN)
        attempt = Attempt(config, plan, model_dir, dataset_dir, place, Path(scratch))

        def load(now: TrainingPlan, resumed: Resumed | None, adjustments: Adjustments) -> "ResumableTrainer":
            is_converted = resumed is not None and resumed.is_converted
            model, arguments = _load_sharded(config, now, model_dir, attempt.folder, rank, is_converted=is_converted)
            return make_trainer(model, arguments, tokenizer, rows, adjustments.skipped_steps)

        trainer, result = attempt.train(load)
        record = run_record(config, plan, model_dir, dataset_dir, result)
        _save(trainer, config, plan, model_dir, destination, record)
        attempt.finish()
    return result


def _load_sharded(
    config: RunConfig, plan: TrainingPlan, model_dir: Path, scratch: Path, rank: distributed.Rank, *, is_converted: bool
) -> tuple[Any, Any]:
    if not plan.hardware.is_gpu:
        distributed.use_cpu_accelerator()
    import torch

    device = torch.device("cuda", rank.local_index) if plan.hardware.is_gpu else torch.device("cpu")
    model = zero_loading.map_model(model_dir, trust_remote_code=config.model.trust_remote_code)
    training = config.training
    optimization = zero.Optimization(training.learning_rate, training.weight_decay, training.max_grad_norm)
    deepspeed = zero.complete(
        plan.deepspeed_config, plan.batch, plan.precision, optimization, model.config.get_text_config().hidden_size
    )
    if is_converted:
        deepspeed = universal.universal_config(deepspeed)
    arguments = training_arguments(config, plan, scratch, deepspeed)
    dtype = torch_dtype(plan.precision)
    if plan.zero_stage == 3:
        zero_loading.partition(model, deepspeed, dtype, device)
    else:
        zero_loading.place(model, dtype, device)
    return model, arguments


def save_dtype(config: RunConfig, plan: TrainingPlan, base_dtype: "torch.dtype | None") -> "torch.dtype":
    """The precision of the saved weights, decided here and nowhere else.

    Args:
        config: The run, with `training.save_dtype`.
        plan: Its plan.
        base_dtype: Precision the base model is stored in.

    Returns:
        What the run asks for; for `auto` the 16-bit type it trained in, and after fp32 training the base model's own
        16-bit type, or bf16.
    """
    import torch

    if config.training.save_dtype != "auto":
        return torch_dtype(config.training.save_dtype)
    if plan.precision != "fp32":
        return torch_dtype(plan.precision)
    return base_dtype if base_dtype in (torch.float16, torch.bfloat16) else torch.bfloat16


def _save(
    trainer: "Trainer",
    config: RunConfig,
    plan: TrainingPlan,
    model_dir: Path,
    destination: Path,
    record: dict[str, Any],
) -> None:
    """Gather the shards on rank 0 and write an ordinary model directory. Collective: every rank calls it."""
    from transformers import AutoConfig

    state = trainer.accelerator.get_state_dict(trainer.deepspeed)
    if not distributed.current_rank().is_main:
        return
    trust = config.model.trust_remote_code
    dtype = save_dtype(config, plan, AutoConfig.from_pretrained(model_dir, trust_remote_code=trust).dtype)
    logger.info("Saving the model in %s to %s", dtype, destination)
    model: Any = trainer.model
    # Tied weights (an output head that is the embedding) are stored once; below ZeRO-3 DeepSpeed hands out copies.
    tied = set(getattr(model, "all_tied_weights_keys", {}) or {})
    for name in list(state):  # one by one: the gathered model is there once, not twice
        tensor = state.pop(name)
        if name not in tied:
            state[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    model.config.dtype = dtype
    model.config.use_cache = True
    with artifacts.writing(destination) as directory:
        model.save_pretrained(directory, state_dict=state)
        load_tokenizer(model_dir, trust_remote_code=trust).save_pretrained(directory)
        artifacts.write_manifest(directory, "model", {**record, "deepspeed": trainer.args.deepspeed})
