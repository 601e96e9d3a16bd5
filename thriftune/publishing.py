"""Pushing a model or an adapter to the hub, with a model card made from its manifest."""

import logging
import shutil
from pathlib import Path
from typing import Any

from thriftune import artifacts, hub
from thriftune.config import PublishConfig
from thriftune.errors import PublishError
from thriftune.model_source import kind_of

logger = logging.getLogger(__name__)

_CARD = """---
{{ card_data }}
---

# {{ title }}

{{ base_model }} fine-tuned with thriftune, method **{{ method }}**.

| | |
|---|---|
| Base model | {{ base_model }} (version {{ base_version }}) |
| Data | {{ dataset }} (fingerprint {{ fingerprint }}) |
| Steps, global batch | {{ steps }}, {{ global_batch }} |
| Learning rate | {{ learning_rate }} |
| Precision | {{ precision }} |
| Final training loss | {{ final_loss }} |

{{ usage }}
"""
_USAGE_MODEL = "Load it with `transformers.AutoModelForCausalLM.from_pretrained`."
_USAGE_ADAPTER = "Load it onto the base model with `peft.PeftModel.from_pretrained`."


def publish(result_dir: Path, config: PublishConfig, staging: Path, token: str | None) -> str:
    """Push a finished result, or with `dry_run` only write what would be pushed.

    Args:
        result_dir: A model or adapter directory with a manifest.
        config: Where to.
        staging: Directory to make: exactly the files of the repository.
        token: Hub token with write access; never written anywhere.

    Returns:
        The URL of the repository, or with `dry_run` the path of `staging`.

    Raises:
        PublishError: No token, or no right to write there.
        TransientError: The hub did not answer.
    """
    stage(result_dir, config, staging)
    if config.dry_run:
        logger.info("Dry run: what would be pushed to %s is in %s", config.repository, staging)
        return str(staging)
    require_token(config, token)
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with hub.explained_errors("publish.repository", config.repository, PublishError):
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
        )


def stage(result_dir: Path, config: PublishConfig, staging: Path) -> None:
    """Write the files of the repository: the result, its manifest and a model card."""
    manifest = artifacts.read_manifest(result_dir)
    with artifacts.writing(staging) as directory:
        shutil.copytree(result_dir, directory, dirs_exist_ok=True)
        model_card(manifest, config.repository).save(directory / "README.md")


def model_card(manifest: dict[str, Any], repository: str) -> Any:
    """A hub model card that says what a manifest says.

    Args:
        manifest: Of a model or adapter directory.
        repository: Where it will be, as owner/name.

    Returns:
        A `huggingface_hub.ModelCard`.
    """
    from huggingface_hub import ModelCard, ModelCardData

    run, plan, training = manifest["config"], manifest["plan"], manifest["training"]
    is_adapter = manifest["kind"] == "adapter"
    source = run["model"]["source"]
    data = ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["thriftune", run["method"]],
        # The hub resolves only its own ids; a path on somebody's disk would be a broken link.
        base_model=source if kind_of(source) == "hub" else None,
    )
    return ModelCard.from_template(
        data,
        template_str=_CARD,
        title=repository.partition("/")[2],
        base_model=source,
        base_version=manifest["model_version"],
        method=run["method"],
        dataset=run["data"]["source"],
        fingerprint=manifest["dataset_fingerprint"],
        steps=training["steps"],
        global_batch=plan["global_batch"],
        learning_rate=run["training"]["learning_rate"],
        precision=plan["precision"],
        final_loss=f"{training['losses'][-1]:.4f}" if training["losses"] else "not logged",
        usage=_USAGE_ADAPTER if is_adapter else _USAGE_MODEL,
    )
