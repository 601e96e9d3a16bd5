"""Pushing a model or an adapter to the hub, with a model card made from its manifest and the numbers of its run."""

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from thriftune import artifacts, damage, hub
from thriftune.config import DataSource, MixedSource, PublishConfig, RunConfig
from thriftune.data.sources import TABLE, is_hub_source
from thriftune.errors import PublishError
from thriftune.inference.report import RunMetrics
from thriftune.models.completeness import ADAPTER_CONFIG
from thriftune.models.saving import SavedWeights
from thriftune.models.source import kind_of
from thriftune.training import run_record
from thriftune.training.run_record import RunRecord

if TYPE_CHECKING:
    from huggingface_hub import ModelCard, ModelCardData

logger = logging.getLogger(__name__)

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
"""
_USAGE_MODEL = "Load it with `transformers.AutoModelForCausalLM.from_pretrained`."
_USAGE_ADAPTER = "Load it onto the base model with `peft.PeftModel.from_pretrained`."


def publish(result_dir: Path, config: PublishConfig, metrics: RunMetrics, staging: Path, token: str | None) -> str:
    """Push a finished result, or with `dry_run` only write what would be pushed.

    Args:
        result_dir: A model or adapter directory with a manifest.
        config: Where to.
        metrics: What its run came to.
        staging: Directory to make: exactly the files of the repository.
        token: Hub token with write access; never written anywhere.

    Returns:
        The URL of the repository, or with `dry_run` the path of `staging`.

    Raises:
        PublishError: No token, or no right to write there.
        UserError: The manifest does not say which run made the result, or the files are not what was saved.
        TransientError: The hub did not answer.
    """
    stage(result_dir, config, metrics, staging)
    if config.dry_run:
        logger.info("Dry run: what would be pushed to %s is in %s", config.repository, staging)
        return str(staging)
    require_token(config, token)
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with hub.explained_errors("publish.repository", config.repository, PublishError, access="write"):
        url = api.create_repo(config.repository, private=config.private, exist_ok=True)
        api.upload_folder(repo_id=config.repository, folder_path=staging, commit_message="Push from thriftune")
    return str(url)


def require_token(config: PublishConfig, token: str | None) -> None:
    """Refuse to publish without a token; asked before training, not after it.

    Raises:
        PublishError: There is none, and this is no dry run.
    """
    if token is None and not config.dry_run:
        raise PublishError.single(
            "publish.repository",
            config.repository,
            "needs a hub token.",
            "Give one as a secret or in HF_TOKEN, or set dry_run: true.",
            code="publish-no-token",
        )


def stage(result_dir: Path, config: PublishConfig, metrics: RunMetrics, staging: Path) -> None:
    """Write the files of the repository: the result, its manifest and a model card."""
    kind, record = artifacts.read_manifest(result_dir)["kind"], run_record.read(result_dir)
    damage.require_undamaged(result_dir, content=True)
    with artifacts.writing(staging, "putting together what is published") as directory:
        shutil.copytree(result_dir, directory, dirs_exist_ok=True, copy_function=_copy)
        card = model_card(record, metrics, config.repository, is_adapter=kind == "adapter")
        artifacts.write_text(directory / "README.md", str(card))
        for file in (directory / artifacts.MANIFEST, directory / ADAPTER_CONFIG):
            if file.is_file():  # of an older version, it may name places with what was in their URLs
                artifacts.write_text(file, file.read_text(encoding="utf-8"))


def _copy(source: str, destination: str) -> None:
    """Copy a file, but have weights on the disk only once: a node that publishes has room for one model."""
    is_linked = False
    if source.endswith(".safetensors"):
        with suppress(OSError):  # another disk, or one that knows no links
            os.link(source, destination)
            is_linked = True
    if not is_linked:
        shutil.copy2(source, destination)


def model_card(record: RunRecord, metrics: RunMetrics, repository: str, *, is_adapter: bool) -> "ModelCard":
    """A hub model card that says how a result came to be and what it is worth.

    Args:
        record: The run that made it.
        metrics: What that run came to.
        repository: Where it will be, as owner/name.
        is_adapter: Whether it is an adapter, and not a model.
    """
    from huggingface_hub import ModelCard

    is_merged = record.config.method == "qlora" and not is_adapter
    card: ModelCard = ModelCard.from_template(
        _card_data(record.config, is_adapter=is_adapter),
        template_str=_CARD,
        title=repository.partition("/")[2],
        base_model=_code(record.config.model.source),
        technique=record.plan.technique + (", the adapter merged into the model" if is_merged else ""),
        rows=_rows(record, metrics, is_merged=is_merged),
        usage=_USAGE_ADAPTER if is_adapter else _USAGE_MODEL,
    )
    return card


def _card_data(run: RunConfig, *, is_adapter: bool) -> "ModelCardData":
    """What the hub reads: it resolves only its own ids, and a path on somebody's disk would be a broken link."""
    from huggingface_hub import ModelCardData

    datasets = {source.source for source in run.data.all_sources if is_hub_source(source.source)}
    return ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["thriftune", run.method],
        base_model=run.model.source if kind_of(run.model.source) == "hub" else None,
        datasets=sorted(datasets) or None,
    )


def _rows(record: RunRecord, metrics: RunMetrics, *, is_merged: bool) -> list[tuple[str, str]]:
    """What the card's table says, by name; nothing that the run does not know."""
    run, plan, training = record.config, record.plan, record.training
    version = f" (version {record.model_version})" if record.model_version else ""
    before, after = metrics.before, metrics.after
    rows = [("Base model", f"{_code(run.model.source)}{version}")]
    if run.lora_or_default.resume_from:
        rows.append(("Went on from the adapter", _code(run.lora_or_default.resume_from)))
    loss = f"{training.losses[-1]:.4f}" if training.losses else "not logged"
    # What is measured is the adapter on the base model as it trained: in 4 bits, for QLoRA.
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
            f"{before.loss:.4f} before, {after.loss:.4f} after training{measured}, over {after.tokens:,} tokens",
        ),
        *([("Saved weights", _saved(saved))] if saved else []),
    ]


def _saved(saved: SavedWeights) -> str:
    """What saving or merging did to the loss."""
    losses = f"held-out loss {saved.saved_loss:.4f}, and {saved.trained_loss:.4f} before"
    return f"{saved.how}: {losses}, over {saved.rows} rows"


def _data(source: DataSource) -> str:
    """Where rows came from, as a reader of the card can find them."""
    facts = []
    if source.source == TABLE:
        facts.append("the table that the workflow was given")
    if is_hub_source(source.source):
        given = {"subset": source.subset, "split": source.split, "revision": source.revision}
        facts += [f"{name} {value}" for name, value in given.items() if value]
    if isinstance(source, MixedSource) and source.weight is not None:
        facts.append(f"weight {source.weight:g}")
    return _code(source.source) + (f" ({', '.join(facts)})" if facts else "")


def _code(text: str) -> str:
    """A name in a cell of a table, with none of its characters read as Markdown: globs have asterisks."""
    return f"`{text}`".replace("|", "\\|")
