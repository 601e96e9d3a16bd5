"""QLoRA: a frozen 4-bit base model, split by layers over the devices of one node, and adapters that train."""

import logging
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import artifacts, damage
from thriftune.checkpoints.resumption import CheckpointPlace, Resumed
from thriftune.config import ModelConfig, RunConfig
from thriftune.data.prepared import TRAIN, load_split
from thriftune.errors import StartAgainError
from thriftune.methods.adapters import (
    fused_adapters,
    peft_config,
    prepare_base,
    require_trainable,
    resolved,
    trainable_share,
)
from thriftune.models import architecture
from thriftune.models.adapter_weights import RESUME_FROM, attach, require_alike, require_same_shape
from thriftune.models.files import ADAPTER_FILES
from thriftune.models.loading import load_model, planned_placement
from thriftune.models.source import kind_of
from thriftune.models.tokenizer import load_tokenizer
from thriftune.redaction import redacted
from thriftune.training.adjustments import Adjustments
from thriftune.training.attempt import Attempt, run_record
from thriftune.training.trainer import TrainingResult, make_trainer, training_arguments
from thriftune.training_plan import TrainingPlan

if TYPE_CHECKING:
    from transformers import Trainer

    from thriftune.training.resumable import ResumableTrainer

logger = logging.getLogger(__name__)


def train(
    config: RunConfig,
    plan: TrainingPlan,
    model_dir: Path,
    dataset_dir: Path,
    destination: Path,
    resume_from: Path | None = None,
    place: CheckpointPlace | None = None,
) -> TrainingResult:
    """Train adapters. One process, whatever the number of devices.

    Args:
        config: The run.
        plan: Its plan.
        model_dir: Base model, on this node.
        dataset_dir: Prepared dataset, on this node.
        destination: Adapter directory to make.
        resume_from: An adapter to go on training, in place of a new one.
        place: Where checkpoints lie; None: none are saved.

    Returns:
        What was measured.

    Raises:
        ConfigError: Adapters that cannot be trained on this model, or others than those of the adapter to go on from.
        AdapterError: The weights of that adapter are not those of an adapter on this model.
    """
    lora, trust = config.lora_or_default, config.model.trust_remote_code
    shape = architecture.of(ModelConfig(source=str(model_dir), trust_remote_code=trust))
    require_trainable(lora, shape)
    if resume_from is not None:
        damage.require_undamaged(resume_from, RESUME_FROM, content=True)
        require_same_shape(lora, resume_from)
        require_alike(lora, shape, resume_from)
    tokenizer = load_tokenizer(model_dir, trust_remote_code=trust)
    with tempfile.TemporaryDirectory() as scratch:
        rows = load_split(dataset_dir, TRAIN)

        def load(now: TrainingPlan, _: Resumed | None, adjustments: Adjustments) -> "ResumableTrainer":
            model = _load_trainable(config, now, model_dir, resume_from)
            arguments = training_arguments(config, now, attempt.folder)
            return make_trainer(model, arguments, tokenizer, rows, adjustments.skipped_steps)

        while True:
            attempt = Attempt(config, plan, model_dir, dataset_dir, place, Path(scratch))
            try:
                trainer, result = attempt.train(load)
                break
            except StartAgainError as again:  # there is no other process that would start this one again
                logger.warning("%s", again)
                attempt.stop()
            _free_memory()
    _save(trainer, config, destination, run_record(config, plan, model_dir, dataset_dir, result))
    attempt.finish()
    return result


def _free_memory() -> None:
    """Give back what the model of a training that begins again held."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _load_trainable(config: RunConfig, plan: TrainingPlan, model_dir: Path, resume_from: Path | None) -> Any:
    from peft import get_peft_model
    from transformers import set_seed

    trust = config.model.trust_remote_code
    shape = architecture.of(ModelConfig(source=str(model_dir), trust_remote_code=trust))
    lora = resolved(config.lora_or_default, shape)
    base = load_model(model_dir, planned_placement(config, plan), trust_remote_code=trust)
    prepared = prepare_base(base, lora, gradient_checkpointing=config.training.gradient_checkpointing)
    set_seed(config.seed)
    if resume_from is not None:
        logger.info("Going on from the adapter in %s", resume_from)
        model: Any = attach(prepared, resume_from, field=RESUME_FROM, is_trainable=True, dropout=lora.dropout)
    else:
        on_experts = " (they are on fused experts, where peft can do none)" if fused_adapters(lora, shape) else ""
        logger.info("Adapters of rank %d with dropout %g%s", lora.rank, lora.dropout, on_experts)
        model = get_peft_model(prepared, peft_config(lora))
    logger.info("%.2f %% of the weights train", 100 * trainable_share(model))
    return model


def _save(trainer: "Trainer", config: RunConfig, destination: Path, record: dict[str, Any]) -> None:
    """Write the adapter, and only the adapter."""
    logger.info("Saving the adapter to %s", destination)
    model: Any = trainer.model
    # Where the base model came from, not where it lay on this node.
    model.peft_config["default"].base_model_name_or_path = redacted(config.model.source)
    is_on_hub = kind_of(config.model.source) == "hub"
    model.peft_config["default"].revision = record["model_version"] if is_on_hub else None
    with artifacts.writing(destination, "saving the adapter") as directory, tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch, save_embedding_layers=False)
        for name in ADAPTER_FILES:
            shutil.copy(Path(scratch) / name, directory / name)
        artifacts.write_manifest(directory, "adapter", record)
