"""The model card of a result: how it was made and how good it is, from its manifest and the metrics of its run."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from thriftune import artifacts
from thriftune.config import DataSource, MixedSource, ReplaySource, RunConfig
from thriftune.config.formats import TABLE, is_hub_source
from thriftune.inference.gate import evidence
from thriftune.inference.gate.comparison import Comparison
from thriftune.inference.report import RunMetrics, contamination_of
from thriftune.methods import METHODS
from thriftune.models.merging.comparing import MergedWeights
from thriftune.models.saving import SavedWeights
from thriftune.models.source import kind_of
from thriftune.training.held_out import EvalReport
from thriftune.training.run_record import RunRecord

if TYPE_CHECKING:
    from huggingface_hub import ModelCard, ModelCardData

_CARD = """---
{{ card_data }}
---

# {{ title }}

{{ base_model }}, trained with thriftune: {{ technique }}.

| | |
|---|---|
{% for name, value in rows -%}
| {{ name }} | {{ value }} |
{% endfor %}
{{ usage }}
{% if benchmarks %}

## Benchmarks

Base model and result on the same items; in brackets, intervals at {{ confidence }}. {{ verdict }}

| Metric | Items | Base | Result | Change |
|---|---|---|---|---|
{% for row in benchmarks -%}
| {{ row | join(" | ") }} |
{% endfor %}
{{ contamination | join(" ") }}
{% endif %}
"""
_USAGE_MODEL = "Load it with `transformers.AutoModelForCausalLM.from_pretrained`."
_USAGE_CLASSIFIER = (
    "Load it with `transformers.AutoModelForSequenceClassification.from_pretrained`, or ask "
    '`transformers.pipeline("text-classification", ...)` for the class of a text.'
)
_USAGE_CLASSIFIER_ADAPTER = (
    "Load it onto the base model, as `transformers.AutoModelForSequenceClassification` loads that with "
    "`num_labels={count}` and the tokenizer's `pad_token_id`, with `peft.PeftModel.from_pretrained`."
)
_USAGE_ADAPTER = "Load it onto the base model with `peft.PeftModel.from_pretrained`."


def card_of(result_dir: Path, record: RunRecord, metrics: RunMetrics, repository: str) -> str:
    """The card of a finished result.

    Args:
        result_dir: A model or adapter directory with a manifest.
        record: The run that publishes it.
        metrics: The metrics of that run.
        repository: The repository it will be pushed to, as owner/name.

    Raises:
        UserError: There is no manifest, or it is damaged.
    """
    is_adapter = artifacts.read_manifest(result_dir)["kind"] == "adapter"
    return str(model_card(record, metrics, repository, is_adapter=is_adapter))


def model_card(record: RunRecord, metrics: RunMetrics, repository: str, *, is_adapter: bool) -> "ModelCard":
    """Write a hub model card that says how a result was made and how good it is.

    Args:
        record: The run that made it.
        metrics: The metrics of that run.
        repository: The repository it will be pushed to, as owner/name.
        is_adapter: Whether the result is an adapter, and not a model.
    """
    from huggingface_hub import ModelCard

    is_merged = not METHODS[record.config.method].facts.trains_weights and not is_adapter
    compared = metrics.comparison
    card: ModelCard = ModelCard.from_template(
        _card_data(record.config, compared, repository, is_adapter=is_adapter),
        template_str=_CARD,
        title=repository.partition("/")[2],
        base_model=_code(record.config.model.source),
        technique=METHODS[record.plan.method].facts.title
        + (", the adapter merged into the model" if is_merged else ""),
        rows=_rows(record, metrics, is_merged=is_merged),
        usage=_usage(record.config, is_adapter=is_adapter),
        benchmarks=list(evidence.card_rows(compared)) if compared else [],
        confidence=f"{compared.confidence * 100:.4g}%" if compared else "",
        verdict=metrics.verdict.sentence if metrics.verdict else "",
        contamination=list(contamination_of(metrics)),
    )
    return card


def _card_data(run: RunConfig, compared: Comparison | None, repository: str, *, is_adapter: bool) -> "ModelCardData":
    """The metadata for the hub, which resolves only its own ids: a path on a disk would be a broken link."""
    from huggingface_hub import ModelCardData

    kind = "text-classification" if run.labels else "text-generation"
    datasets = {source.source for source in run.data.all_sources if is_hub_source(source.source)}
    return ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag=kind,
        tags=["thriftune", run.method],
        base_model=run.model.source if kind_of(run.model.source) == "hub" else None,
        datasets=sorted(datasets) or None,
        model_name=repository.partition("/")[2] if compared else None,
        eval_results=evidence.eval_results(compared, kind) if compared else None,
    )


def _rows(record: RunRecord, metrics: RunMetrics, *, is_merged: bool) -> list[tuple[str, str]]:
    """The rows of the card's table, as name and value; without what the run does not know."""
    run, plan, training = record.config, record.plan, record.training
    version = f" (version {record.model_version})" if record.model_version else ""
    before, after = metrics.training.before, metrics.training.after
    rows = [("Base model", f"{_code(run.model.source)}{version}")]
    if run.lora_or_default.resume_from:
        rows.append(("Continued from the adapter", _code(run.lora_or_default.resume_from)))
    loss = f"{training.losses[-1]:.4f}" if training.losses else "not logged"
    # The loss is that of the adapter on the base model as it trained: in 4 bits for QLoRA.
    measured = " and before merging" if is_merged else ""
    saved = metrics.merged or training.saved
    return [
        *rows,
        ("Data", ", ".join(_data(source) for source in run.data.all_sources)),
        ("Data fingerprint", record.dataset_fingerprint),
        ("Steps, global batch", f"{training.steps}, {plan.global_batch}"),
        ("Learning rate", f"{run.training.learning_rate:g}"),
        ("Precision of training", plan.precision),
        ("Final training loss", loss),
        (
            "Held-out loss",
            (f"{before.loss:.4f} before, " if before else "")
            + f"{after.loss:.4f} after training{measured}, over {after.counted}",
        ),
        *_of_classifier(run, before, after),
        *([("Saved weights", _saved(saved))] if saved else []),
    ]


def _usage(run: RunConfig, *, is_adapter: bool) -> str:
    """How to load the result."""
    if not run.labels:
        return _USAGE_ADAPTER if is_adapter else _USAGE_MODEL
    return _USAGE_CLASSIFIER_ADAPTER.format(count=len(run.labels)) if is_adapter else _USAGE_CLASSIFIER


def _of_classifier(run: RunConfig, before: EvalReport | None, after: EvalReport) -> Iterator[tuple[str, str]]:
    """The classes of a classifier, and how many of the held-out rows it names rightly."""
    if run.labels:
        yield "Classes, in order", ", ".join(map(_code, run.labels))
        yield "Held-out rows", (f"{before.quality} before, " if before else "") + f"{after.quality} after training"


def _saved(saved: SavedWeights) -> str:
    """The change of the loss by saving or merging, and of next tokens by merging, as text."""
    losses = f"held-out loss {saved.saved_loss:.4f}, and {saved.trained_loss:.4f} before"
    found = saved.next_tokens if isinstance(saved, MergedWeights) else None
    tokens = f"; on {found.tokens} of their tokens: {found.text}" if found else ""
    return f"{saved.how}: {losses}, over {saved.rows} rows{tokens}"


def _data(source: DataSource) -> str:
    """The source of rows, so that a reader of the card can find it."""
    facts = []
    if source.source == TABLE:
        facts.append("the table that the workflow was given")
    if is_hub_source(source.source):
        given = {"subset": source.subset, "split": source.split, "revision": source.revision}
        facts += [f"{name} {value}" for name, value in given.items() if value]
    if isinstance(source, MixedSource) and source.weight is not None:
        facts.append(f"weight {source.weight:g}")
    if isinstance(source, ReplaySource):
        facts.append(f"replayed, {source.share:.0%} of the training rows")
    return _code(source.source) + (f" ({', '.join(facts)})" if facts else "")


def _code(text: str) -> str:
    """A name as a cell of a table, so that no character is read as Markdown: globs contain asterisks."""
    return f"`{text}`".replace("|", "\\|")
