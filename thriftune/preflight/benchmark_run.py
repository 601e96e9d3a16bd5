"""The checks before a run that only measures: its model, its adapters, and its benchmarks."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from thriftune.config import DataFormat, RunConfig
from thriftune.config.benchmark_run import OF_A_RUN, BenchmarkRun
from thriftune.data.questions import trained_style, usual_style
from thriftune.errors import Problem
from thriftune.models import fetching
from thriftune.models.architecture import Architecture
from thriftune.preflight import adapters, base_model, benchmarks, outputs, platform, tokenizer
from thriftune.preflight.base_model import BaseModel
from thriftune.preflight.findings import Facts, Preflight, in_order
from thriftune.preflight.outcome import attempt
from thriftune.preflight.platform import SecretState


@dataclass(frozen=True)
class CheckedModels:
    """What was found about the models of a run that only measures.

    Attributes:
        preflight: All findings, and versions of model and benchmarks.
        architecture: Shape of the model; None if it could not be read.
        adapter_versions: Versions of the adapters, by name.
        style: How questions are put; None if the tokenizer could not be read.
    """

    preflight: Preflight
    architecture: Architecture | None = None
    adapter_versions: dict[str, str] = field(default_factory=dict)
    style: DataFormat | None = None


def check(
    config: BenchmarkRun,
    token: str | None,
    secrets: Sequence[SecretState] = (),
    written: Mapping[str, tuple[str, str]] | None = None,
) -> CheckedModels:
    """Check everything about a run that only measures which can be known without a GPU.

    Args:
        config: The run.
        token: Hub token.
        secrets: The secrets that its tasks ask for.
        written: By the setting that says where: a place in the store, and what it refused.

    Returns:
        What was found; a user's mistakes are findings, not exceptions.
    """
    findings = [*platform.check_secrets(secrets), *outputs.check(written or {})]
    present: dict[str, str] = {}
    styles: dict[str, DataFormat | None] = {}
    with tempfile.TemporaryDirectory() as scratch:
        base = base_model.check(config.model, token, Path(scratch))
        findings += base.findings
        for number, (name, place) in enumerate(config.adapters.items()):
            own = Path(scratch) / str(number)
            own.mkdir()
            found, version = _adapter(name, place, base, own)
            findings += found
            present[name], styles[name] = version, trained_style(own)
        findings += _several_styles(config, styles)
        style = config.format or next(filter(None, styles.values()), None)
        if style is None and base.directory is not None:
            style = trained_style(base.directory)
        ready = tokenizer.check(_asking(config, style), base)
        findings += ready.findings
        if style is None and ready.tokenizer is not None:
            style = usual_style(ready.tokenizer)
        asked = benchmarks.check(_asking(config, style), base, ready.tokenizer, None, token)
        # Where a run that trains has its gate below publish, this one has it at the top.
        findings += (replace(each, field=each.field.removeprefix(OF_A_RUN)) for each in asked.findings)
    facts = Facts(model_version=base.version, license=base.license, benchmarks_version=asked.version)
    return CheckedModels(Preflight(config.name, in_order(findings), facts), base.architecture, present, style)


def _asking(config: BenchmarkRun, style: DataFormat | None) -> RunConfig:
    """The run as checks of runs that train see it, with the way in which questions are put."""
    return config.model_copy(update={"format": style or "text"}).as_run


def _adapter(name: str, place: str, base: BaseModel, own: Path) -> tuple[list[Problem], str]:
    """The problems of an adapter, and its version."""
    key = f"adapters.{name}"
    found = list(adapters.check_on(base.architecture, place, key, own))
    version = attempt(lambda: fetching.version(place, field=key), key, place)
    return found or list(version.findings), version.value or ""


def _several_styles(config: BenchmarkRun, styles: Mapping[str, DataFormat | None]) -> Iterator[Problem]:
    """Adapters that were trained on questions of several forms, where the run does not name one."""
    known = {name: style for name, style in styles.items() if style}
    if config.format is not None or len(set(known.values())) < 2:
        return
    (first, form), *others = known.items()
    other = next(name for name, style in others if style != form)
    message = f"was trained on {known[other]}, and {first} on {form}: all are asked the same questions."
    remedy = f"Set format: {form}, or measure them in two runs."
    yield Problem.coded("config-invalid", f"adapters.{other}", config.adapters[other], message, remedy)
