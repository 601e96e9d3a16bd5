"""The preflight: all checks, in an order in which each finds the results it needs."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from thriftune.codes import UNREACHABLE
from thriftune.config import RunConfig
from thriftune.config.choices import METHODS
from thriftune.config.formats import TABLE
from thriftune.data import sources
from thriftune.data.prepare import fingerprint
from thriftune.errors import Problem, ThriftuneError
from thriftune.models.tokenizer import fingerprint as tokenizer_fingerprint
from thriftune.preflight import (
    adapters,
    base_model,
    benchmarks,
    data_checks,
    exports,
    outputs,
    platform,
    resuming,
    rows,
    sampling,
    steps,
    target,
    tokenizer,
    trained_parts,
)
from thriftune.preflight.base_model import BaseModel
from thriftune.preflight.findings import Facts, Preflight, in_order, skipped
from thriftune.preflight.outcome import attempt
from thriftune.preflight.platform import GRACE_SECONDS, SecretState
from thriftune.preflight.sampling import Sample
from thriftune.preflight.tokenizer import CheckedTokenizer
from thriftune.training_plan import TrainingPlan

_DATA = "data.source"


@dataclass
class _Notes:
    """Findings and facts so far."""

    findings: list[Problem] = field(default_factory=list)
    facts: Facts = field(default_factory=Facts)

    def learn(self, **facts: Any) -> None:
        """Add facts."""
        self.facts = replace(self.facts, **facts)


def run(
    config: RunConfig,
    *,
    plan: TrainingPlan | ThriftuneError,
    token: str | None = None,
    table: Sequence[Path] | None = None,
    table_version: str = "",
    secrets: Sequence[SecretState] = (),
    written: Mapping[str, tuple[str, str]] = MappingProxyType({}),
    folder: Path | None = None,
    network_gbps: float | None = None,
    grace_seconds: float = GRACE_SECONDS,
) -> Preflight:
    """Check everything about a run that can be known without a GPU. A user's mistakes become findings, not exceptions.

    Args:
        config: The run.
        plan: Its plan, or the error that planning raised.
        token: Hub token.
        table: Parquet files of the table that the workflow was given; None if it takes none.
        table_version: Version of the content of that table.
        secrets: The secrets that the tasks of the run ask for.
        written: By the setting that says where: a place in the store, and what the store refused when writing there was
            tried; empty if it worked.
        folder: Where results of a local run go; None for a run on a cluster.
        network_gbps: Network of a planned node, in Gbit/s; None if not known.
        grace_seconds: Seconds between a spot node's notice and its end.

    Returns:
        All findings, and facts about the run.
    """
    notes = _Notes([*platform.check_secrets(secrets), *outputs.check(written)])
    notes.findings += outputs.check_local(folder, plan, config.checkpoints.keep_checkpoints)
    if any(found.field == outputs.TEMPORARY for found in notes.findings):  # which the other checks write to
        return Preflight(config.name, in_order(notes.findings), notes.facts)
    notes.findings += target.check(config.publish, token)
    notes.findings += platform.check_settings(config, plan)
    notes.findings += platform.check_certain(config, plan)
    _check_upload(plan, network_gbps, grace_seconds, notes)
    with tempfile.TemporaryDirectory() as scratch:
        base = _check_model(config, token, Path(scratch), notes)
        checked = tokenizer.check(config, base)
        notes.findings += checked.findings
        if checked.tokenizer is not None:
            code = base.directory if config.model.trust_remote_code else None
            notes.learn(tokenizer_version=tokenizer_fingerprint(checked.tokenizer, code))
        sample = _read_data(config, token, Path(scratch), table, table_version, notes)
        held_out = _check_rows(config, base, checked, sample, notes)
        measured = benchmarks.check(config, base, checked.tokenizer, sample, token, held_out)
        notes.findings += measured.findings
        notes.learn(benchmarks_version=measured.version)
        notes.findings += adapters.check(config, base)
        notes.findings += trained_parts.check(config, base)
        notes.findings += exports.check(config, base, checked)
    _check_checkpoints(config, plan, notes)
    notes.findings += _check_plan(plan, notes.findings)
    return Preflight(config.name, in_order(notes.findings), notes.facts)


def _check_model(config: RunConfig, token: str | None, scratch: Path, notes: _Notes) -> BaseModel:
    base = base_model.check(config.model, token, scratch, config.labels)
    notes.findings += base.findings
    notes.findings += base_model.check_length(base, config.data.max_length)
    notes.learn(model_version=base.version, license=base.license)
    if base.architecture is not None:
        notes.learn(parameters=base.architecture.parameters)
    return base


def _check_plan(plan: TrainingPlan | ThriftuneError, found: Sequence[Problem]) -> list[Problem]:
    """Why there is no plan, without what the planner repeats about a model or adapters that failed a check here.

    Args:
        plan: The plan.
        found: Findings of the other checks.
    """
    said = {(other.field, other.message) for other in found}
    bad = {other.field.partition(".")[0] for other in found if other.severity == "error"}
    known_to_planner = {"model", *(facts.section for facts in METHODS.values())}
    return [
        why
        for why in platform.check_plan(plan)
        if why.field.partition(".")[0] not in bad & known_to_planner
        and (why.field, why.message) not in said
        and not (why.code == UNREACHABLE and "model" in bad)
    ]


def _read_data(
    config: RunConfig,
    token: str | None,
    scratch: Path,
    table: Sequence[Path] | None,
    table_version: str,
    notes: _Notes,
) -> Sample | None:
    """Read the first rows of the sources, at their present versions."""
    data = config.data
    named = ", ".join(source.source for source in data.all_sources)
    if table is not None and TABLE not in [source.source for source in data.all_sources]:
        remedy = f"Write source: {TABLE}."
        notes.findings.append(
            Problem.coded("table-unused", _DATA, named, "leaves out the table that was given.", remedy)
        )
    notes.learn(max_length=data.max_length)
    version = attempt(lambda: sources.versions(data, token, table=table_version), _DATA, named)
    pinned = data if version.value is None else sources.pinned(data, version.value)
    sample = sampling.read(config.model_copy(update={"data": pinned}), scratch, token, table or ())
    # If both fail, reading gives the clearer error.
    notes.findings += sample.findings or version.findings
    notes.learn(data_version=version.value or "")
    if sample.value is not None:
        used, is_whole = sample.value.used_rows(data), sample.value.is_whole
        notes.learn(rows_sampled=sample.value.count, rows_total=sum(used) if used else None, is_whole=is_whole)
    return sample.value


def _check_rows(
    config: RunConfig, base: BaseModel, checked: CheckedTokenizer, sample: Sample | None, notes: _Notes
) -> int | None:
    """The checks that need rows, a tokenizer, or both.

    Returns:
        Number of held-out rows; None if the sample does not show it.
    """
    ready = checked.tokenizer
    if ready is not None and base.architecture is not None:
        notes.findings += tokenizer.check_prompts(config, ready, base.architecture)
    if ready is None or sample is None or base.architecture is None:
        why = "there is no tokenizer to tokenize with" if ready is None else "the data could not be read"
        notes.findings += [skipped("data", why), skipped("training", why)]
        if ready is not None:
            notes.findings += tokenizer.check_template(config, ready)
        return None
    tried = rows.convert(sample, config, ready)
    notes.findings += tried.findings
    if tried.value is None:
        notes.findings.append(skipped("training", "there are no rows to train on"))
        return None
    made, data = tried.value, config.data
    notes.findings += data_checks.check(made, sample, data, ready, base.architecture)
    notes.learn(
        examples=len(made.lengths),
        lengths=data_checks.histogram(made, data.max_length),
        longest=max(made.lengths, default=0),
        too_long=data_checks.too_long_share(made, data.max_length),
        trained_share=data_checks.trained_share(made),
    )
    held_out = made.validation.token_rows if sample.is_whole else None
    counted = steps.of_sample(made, sample, config)
    if counted is None:
        why = "the number of rows is not known" if made.train.token_rows else "there are no rows to train on"
        notes.findings.append(skipped("training", why))
        return held_out
    notes.findings += steps.check(counted, config.training)
    notes.learn(training_rows=counted.rows, total_steps=counted.total, warmup_steps=counted.warmup)
    return held_out


def _check_checkpoints(config: RunConfig, plan: TrainingPlan | ThriftuneError, notes: _Notes) -> None:
    """Check another run's checkpoints against this run's model and rows."""
    facts, dataset = notes.facts, ""
    if facts.tokenizer_version and facts.data_version:
        dataset = fingerprint(config.data, config.seed, facts.data_version, facts.tokenizer_version, config.labels)
    rows = facts.training_rows if facts.is_whole else None
    notes.findings += resuming.check(config, plan, model=facts.model_version, dataset=dataset, rows=rows)


def _check_upload(
    plan: TrainingPlan | ThriftuneError, network_gbps: float | None, grace_seconds: float, notes: _Notes
) -> None:
    """Whether a node has time to save the training between its notice and its end."""
    if not isinstance(plan, TrainingPlan):
        return
    notes.learn(plan=platform.plan_line(plan))
    if network_gbps is None:
        if plan.hardware.is_gpu:
            notes.findings.append(skipped("checkpoint upload", "the network of the nodes is not known"))
        return
    save = platform.last_save(plan, network_gbps)
    notes.findings += platform.check_last_save(save, grace_seconds)
    notes.learn(upload_seconds=save.upload_seconds)
