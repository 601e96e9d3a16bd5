"""Full fine-tuning under DeepSpeed ZeRO: one worker process per device, every weight trained."""

import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import artifacts, distributed
from thriftune.checkpoints.resumption import CheckpointPlace, Resumed
from thriftune.config import RunConfig
from thriftune.data.prepared import TRAIN, load_split
from thriftune.hardware import torch_dtype
from thriftune.models import saving
from thriftune.models.rounding import RoundingMode, rounded
from thriftune.models.saving import SavedWeights
from thriftune.models.stopping import save_tokenizer
from thriftune.models.tokenizer import load_tokenizer
from thriftune.strategies.zero import configuration as zero
from thriftune.strategies.zero import loading as zero_loading
from thriftune.strategies.zero import operators, universal
from thriftune.strategies.zero.masters import masters_of
from thriftune.training.adjustments import Adjustments
from thriftune.training.attempt import Attempt, run_record
from thriftune.training.held_out import held_out_rows
from thriftune.training.measuring import Measuring
from thriftune.training.trainer import TrainingResult, make_trainer, training_arguments
from thriftune.training_plan import TrainingPlan

if TYPE_CHECKING:
    import torch
    from transformers import Trainer, TrainingArguments

    from thriftune.training.resumable import ResumableTrainer

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
    from thriftune.training.callbacks import BeforeFirstStep

    rank = distributed.join(plan.hardware.backend)
    tokenizer = load_tokenizer(model_dir, trust_remote_code=config.model.trust_remote_code)
    with tempfile.TemporaryDirectory() as scratch:
        rows = load_split(dataset_dir, TRAIN)
        attempt = Attempt(config, plan, model_dir, dataset_dir, place, Path(scratch))
        held_out = held_out_rows(dataset_dir, min(saving.ROWS, config.evaluation.max_rows))

        def load(now: TrainingPlan, resumed: Resumed | None, adjustments: Adjustments) -> "ResumableTrainer":
            is_converted = resumed is not None and resumed.is_converted
            model = zero_loading.map_model(model_dir, trust_remote_code=config.model.trust_remote_code)
            arguments = _shard(model, config, now, attempt.folder, rank, is_converted=is_converted)
            trainer = make_trainer(model, arguments, tokenizer, rows, adjustments.skipped_steps)
            if config.training.save_dtype != "fp32":
                # First of them: the others start their clocks when training begins.
                trainer.callback_handler.callbacks.insert(
                    0, BeforeFirstStep(Measuring(trainer, held_out).note_base_loss)
                )
            return trainer

        trainer, result = attempt.train(load)
        result = replace(result, saved=_decide(Measuring(trainer, held_out), config, plan, model_dir))
        record = run_record(config, plan, model_dir, dataset_dir, result)
        _save(trainer, config, model_dir, destination, record, result.saved)
        attempt.finish()
    return result


def _shard(
    model: Any, config: RunConfig, plan: TrainingPlan, scratch: Path, rank: distributed.Rank, *, is_converted: bool
) -> "TrainingArguments":
    """Cut a mapped model up for the ranks; give the arguments that its Trainer takes."""
    if not plan.hardware.is_gpu:
        distributed.use_cpu_accelerator()
    import torch

    device = torch.device("cuda", rank.local_index) if plan.hardware.is_gpu else torch.device("cpu")
    training = config.training
    optimization = zero.Optimization(training.learning_rate, training.weight_decay, training.max_grad_norm)
    deepspeed = zero.complete(
        plan.deepspeed_config,
        plan.batch,
        plan.precision,
        optimization,
        model.config.get_text_config().hidden_size,
        is_gpu=plan.hardware.is_gpu,
    )
    if zero.compiles_adam(deepspeed, is_gpu=plan.hardware.is_gpu):
        operators.make_ready("cpu_adam")
    if is_converted:
        deepspeed = universal.universal_config(deepspeed)
    arguments = training_arguments(config, plan, scratch, deepspeed)
    dtype = torch_dtype(plan.precision)
    if plan.zero_stage == 3:
        zero_loading.partition(model, deepspeed, dtype, device)
    else:
        zero_loading.place(model, dtype, device)
    return arguments


def _decide(measuring: Measuring, config: RunConfig, plan: TrainingPlan, model_dir: Path) -> SavedWeights | None:
    """Measure what rounding would do to the trained model, and decide how to save it. Collective.

    Returns:
        None where nothing is measured: the run asks for fp32, which is what the master weights are in, or it cannot be.
    """
    from transformers import AutoConfig

    asked = config.training.save_dtype
    if asked == "fp32":
        return None
    if asked != "auto":
        return measuring.decide(asked, config.seed, or_fp32=False)
    stored = AutoConfig.from_pretrained(model_dir, trust_remote_code=config.model.trust_remote_code).dtype
    return measuring.decide(saving.sixteen_bits(plan.precision, str(stored)), config.seed, or_fp32=True)


def _save(
    trainer: "Trainer",
    config: RunConfig,
    model_dir: Path,
    destination: Path,
    record: dict[str, Any],
    saved: SavedWeights | None,
) -> None:
    """Gather the master weights on rank 0 and write an ordinary model directory. Collective: every rank calls it."""
    kept, rounding = (saved.dtype, saved.rounding) if saved else saving.unmeasured(config.training.save_dtype)
    dtype = torch_dtype(kept)
    state = _gathered(trainer, dtype, rounding, config.seed)
    if not distributed.current_rank().is_main:
        return
    logger.info("Saving the model in %s to %s", dtype, destination)
    model: Any = trainer.model
    model.config.dtype = dtype
    model.config.use_cache = True
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    with artifacts.writing(destination, "saving the trained model", size) as directory:
        model.save_pretrained(directory, state_dict=state)
        tokenizer = load_tokenizer(model_dir, trust_remote_code=config.model.trust_remote_code)
        save_tokenizer(tokenizer, directory)
        artifacts.write_manifest(directory, "model", {**record, "deepspeed": trainer.args.deepspeed})


def _gathered(trainer: "Trainer", dtype: "torch.dtype", rounding: RoundingMode, seed: int) -> "dict[str, torch.Tensor]":
    """The trained weights as they are saved, on rank 0; one fp32 weight at a time beside them. Collective."""
    import torch

    model: Any = trainer.model
    master = masters_of(trainer.deepspeed)
    names = {parameter: name for name, parameter in model.named_parameters()}
    # Tied weights (an output head that is the embedding) are stored once.
    tied = set(getattr(model, "all_tied_weights_keys", {}) or {})
    state: dict[str, torch.Tensor] = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        if key in tied:
            continue
        if isinstance(tensor, torch.nn.Parameter):
            name = names[tensor]
            whole = rounded(master(name, tensor), dtype, rounding, name, seed)
        else:  # a buffer, which is computed with as it is
            whole = tensor
        if distributed.current_rank().is_main:
            state[key] = whole.cpu()
    return state
