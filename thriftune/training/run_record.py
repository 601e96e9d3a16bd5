"""The record of a run in the manifest of the model or adapter it made: written and read only here."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from pydantic import TypeAdapter, ValidationError

from thriftune import artifacts
from thriftune.config import RunConfig
from thriftune.errors import ConfigError, UserError
from thriftune.models.lineage import Lineage
from thriftune.training.result import TrainingResult
from thriftune.training_plan import TrainingPlan


@dataclass(frozen=True)
class RunRecord:
    """The run that made a model or an adapter.

    Attributes:
        config: The run.
        plan: Its plan.
        model_version: Version of the base model's source.
        dataset_fingerprint: Fingerprint of the prepared dataset.
        training: What was measured during training.
        lineage: The base model, chat template and adapter that it was made from.
    """

    config: RunConfig
    plan: TrainingPlan
    model_version: str
    dataset_fingerprint: str
    training: TrainingResult
    lineage: Lineage = field(default_factory=Lineage)

    def of_run(self, config: RunConfig, training: TrainingResult) -> Self:
        """The record of a run that was given this training: with its own file, and answers to its own prompts.

        Args:
            config: The run.
            training: What its metrics say of the training.
        """
        return replace(self, config=config, training=training)

    def as_json(self) -> dict[str, Any]:
        """The record as values for JSON."""
        return asdict(self) | {"config": self.config.model_dump(mode="json")}


def read(directory: Path) -> RunRecord:
    """Read from the manifest of a model or an adapter which run made it.

    Args:
        directory: A finished directory with a trained model, an adapter, or a merged model.

    Raises:
        UserError: It has no manifest, or the manifest has no valid record.
    """
    try:
        return TypeAdapter(RunRecord).validate_python(artifacts.read_manifest(directory))
    except (ValidationError, ConfigError) as error:
        raise UserError.single(
            "directory",
            directory,
            f"has a {artifacts.MANIFEST} that does not say which run made it: {_first_of(error)}.",
            "Use the result of a run of this version.",
        ) from error


def _first_of(error: ValidationError | ConfigError) -> str:
    if isinstance(error, ConfigError):
        return str(error.problems[0]).rstrip(".")
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
