"""What the manifest of a trained model or adapter says of the run that made it: written and read here, nowhere else."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from thriftune import artifacts
from thriftune.config import RunConfig
from thriftune.errors import ConfigError, UserError
from thriftune.training.result import TrainingResult
from thriftune.training_plan import TrainingPlan


@dataclass(frozen=True)
class RunRecord:
    """The run that made a model or an adapter.

    Attributes:
        config: The run.
        plan: Its plan.
        model_version: Which version of its source the base model is.
        dataset_fingerprint: Of the prepared dataset.
        training: What was measured while training.
    """

    config: RunConfig
    plan: TrainingPlan
    model_version: str
    dataset_fingerprint: str
    training: TrainingResult

    def as_json(self) -> dict[str, Any]:
        """The same for a manifest."""
        return asdict(self) | {"config": self.config.model_dump(mode="json")}


def read(directory: Path) -> RunRecord:
    """The run that made a model or an adapter, as its manifest says.

    Args:
        directory: A finished directory: full model, adapter, or model that an adapter was merged into.

    Raises:
        UserError: It has no manifest, or one that does not say.
    """
    try:
        return TypeAdapter(RunRecord).validate_python(artifacts.read_manifest(directory))
    except (ValidationError, ConfigError) as error:
        raise UserError.single(
            "directory",
            directory,
            f"has a {artifacts.MANIFEST} that does not say which run made it: {_first_of(error)}.",
            "Take what a run of this version made.",
        ) from error


def _first_of(error: ValidationError | ConfigError) -> str:
    if isinstance(error, ConfigError):
        return str(error.problems[0]).rstrip(".")
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
