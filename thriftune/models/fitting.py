"""Whether adapters fit a base model, by their configurations, shapes and records: before one of them is loaded."""

from collections.abc import Mapping
from pathlib import Path

from thriftune.config import ModelConfig
from thriftune.models import architecture as architectures
from thriftune.models import config_json, lineage
from thriftune.models.adapter_weights import require_fit, shapes_in
from thriftune.models.weight_files import Folder


def require_all_fit(model_dir: Path, adapters: Mapping[str, Path]) -> None:
    """Refuse adapters whose shapes do not match a model, or that were trained on another one or another template.

    Args:
        model_dir: Directory of the base model. Of one that is quantized already, shapes say nothing, and are not
            compared.
        adapters: Directories of adapters, by what names each in messages.

    Raises:
        UserError: Names the first adapter that does not fit; or the model's configuration cannot be read.
    """
    if not adapters:
        return
    content = config_json.read(ModelConfig(source=str(model_dir)), token=None)
    if not content.get("quantization_config"):
        architecture = architectures.from_content(content, str(model_dir))
        for field, place in adapters.items():
            require_fit(architecture, place, shapes_in(Folder(place), field, place), field, place)
    for field, place in adapters.items():
        lineage.refuse_others(place, model_dir, field)  # where nothing tells, it is said when one is put on the other
