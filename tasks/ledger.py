"""Where this platform keeps its ledger, and what a training leaves there for later plans."""

from pathlib import Path

from tasks import settings
from thriftune.config import ModelConfig, RunConfig
from thriftune.models import architecture
from thriftune.planning import ledger
from thriftune.planning.ledger import Record
from thriftune.training.recording import record_of
from thriftune.training.result import TrainingResult
from thriftune.training_plan import TrainingPlan


def remember(
    config: RunConfig, plan: TrainingPlan, model_dir: Path, result: TrainingResult, fetching_seconds: float
) -> None:
    """Write down what a training was planned to take and what it took. If that fails, the log says so.

    Args:
        config: The run.
        plan: Its plan.
        model_dir: The base model, on this disk.
        result: What was measured.
        fetching_seconds: How long model and rows took to be there.
    """
    record = record_of(config, plan, family_of(config, model_dir), result, fetching_seconds)
    if record is not None:
        ledger.write(place(), record)


def family_of(config: RunConfig, model_dir: Path) -> str:
    """Kind of a run's model.

    Args:
        config: The run.
        model_dir: The base model, on this disk.
    """
    source = ModelConfig(source=str(model_dir), trust_remote_code=config.model.trust_remote_code)
    return architecture.of(source, labels=config.labels).family


def records() -> list[Record]:
    """What earlier runs left there. If it cannot be read, the log says so."""
    return ledger.read(place())


def place() -> str:
    """Path or URL of the ledger.

    Without a setting it lies beside the index of results, and in a local run beside the results themselves.
    """
    if settings.PLATFORM.ledger:
        return settings.PLATFORM.ledger.rstrip("/")
    return str(settings.local_root() / "ledger") if settings.is_local() else f"{settings.project_root()}/ledger"
