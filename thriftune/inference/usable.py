"""Whether a model and adapters on it can answer at all: looked at before anything is loaded."""

from collections.abc import Mapping
from pathlib import Path

from thriftune import damage
from thriftune.errors import AdapterError, ModelSourceError
from thriftune.models import classifier, fitting
from thriftune.models.completeness import require_no_adapter
from thriftune.models.files import ADAPTER_FILES, files_of


def require_usable(
    model_dir: Path,
    adapters: Mapping[str, Path],
    *,
    fields: tuple[str, str] = ("model_dir", "adapters"),
    content: bool = True,
) -> None:
    """Refuse a damaged model or adapter, one with links out of its directory, a classifier, or an adapter of another.

    Reads no weights, except to compare checksums.

    Args:
        model_dir: The model.
        adapters: Adapter directories by name.
        fields: The keys that name the model and the adapters, for messages.
        content: Whether the model's checksums are compared; else its sizes alone.

    Raises:
        UserError: With the name of each wrong file.
    """
    of_model, of_adapters = fields
    files_of(model_dir, of_model, ModelSourceError)
    damage.require_undamaged(model_dir, of_model, ModelSourceError, content=content)
    require_no_adapter(model_dir, of_model)
    classifier.require_language(model_dir, of_model)
    named = {f"{of_adapters} {name}": adapter for name, adapter in adapters.items()}
    for field, adapter in named.items():
        files_of(adapter, field, AdapterError, ADAPTER_FILES, ())
        damage.require_undamaged(adapter, field, AdapterError, content=True)
        classifier.require_language(adapter, field)
    fitting.require_all_fit(model_dir, named)
