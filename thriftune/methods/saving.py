"""Writing an adapter directory: peft's own files and a manifest, after a look at whether everything is there."""

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import artifacts
from thriftune.config import RunConfig
from thriftune.config.choices import METHODS
from thriftune.errors import ThriftuneError
from thriftune.methods.base import Trained
from thriftune.models.adapter_weights import WEIGHTS
from thriftune.models.files import ADAPTER_FILES
from thriftune.models.source import kind_of
from thriftune.models.weight_files import Folder
from thriftune.redaction import redacted

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

PEFT_FOLDER = "adapter"  # the folder of the scratch directory that peft writes to


@contextmanager
def saving_adapter(
    trained: Trained, config: RunConfig, destination: Path, tensors: int | None = None
) -> Iterator[Path]:
    """Write an adapter directory from what peft saves inside the block. Only for rank 0.

    Args:
        trained: The trained model.
        config: The run.
        destination: Directory to create.
        tensors: Number of tensors that peft saves; None for as many as train.

    Yields:
        A folder for anything. The adapter is to be saved in its subfolder `PEFT_FOLDER`.

    Raises:
        ThriftuneError: Not as many tensors were saved.
    """
    logger.info("Saving the adapter to %s", destination)
    facts = METHODS[config.method]
    if not facts.merges:
        logger.info("%s cannot be merged into the base model: the adapter is the result", facts.title)
    model: Any = trained.model
    expected = tensors or sum(parameter.requires_grad for parameter in model.parameters())
    # Where the base model came from, not its directory on this node.
    peft_config = model.peft_config["default"]
    peft_config.base_model_name_or_path = redacted(config.model.source)
    is_on_hub = kind_of(config.model.source) == "hub"
    peft_config.revision = trained.record["model_version"] if is_on_hub else None
    with artifacts.writing(destination, "saving the adapter") as directory, tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)
        require_all_saved(Path(scratch) / PEFT_FOLDER, expected)
        for name in ADAPTER_FILES:
            shutil.copy(Path(scratch) / PEFT_FOLDER / name, directory / name)
        artifacts.write_manifest(directory, "adapter", trained.record)


def require_all_saved(adapter_dir: Path, expected: int) -> None:
    """Refuse an adapter without some of the trained tensors: empty ones were seen, saved without an error.

    Args:
        adapter_dir: The adapter.
        expected: Number of its tensors.

    Raises:
        ThriftuneError: There are more or fewer.
    """
    found = len(Folder(adapter_dir).shapes(WEIGHTS))
    if found != expected:
        raise ThriftuneError(f"{found} tensors were saved of an adapter of {expected}. Please report this.")


def save_trained(model: "torch.nn.Module", folder: Path) -> None:
    """Write the weights of a model that train, under the name by which the Trainer finds them again.

    Args:
        model: The model.
        folder: Folder of the checkpoint.
    """
    from safetensors.torch import save_file

    trained = {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    save_file(trained, folder / "model.safetensors", metadata={"format": "pt"})
