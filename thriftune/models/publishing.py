"""Pushing a model or an adapter to the hub, with a model card."""

import logging
import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from thriftune import artifacts, damage, hub
from thriftune.config import PublishConfig
from thriftune.errors import PublishError
from thriftune.models.completeness import ADAPTER_CONFIG

logger = logging.getLogger(__name__)


def publish(
    result_dir: Path,
    config: PublishConfig,
    card: str,
    record: Mapping[str, Any],
    staging: Path,
    token: str | None,
    beside: Mapping[str, str] | None = None,
) -> str:
    """Push a finished result; with `dry_run`, only write what would be pushed.

    Args:
        result_dir: A model or adapter directory with a manifest.
        config: The repository to push to.
        card: The model card, as Markdown with its header.
        record: The run that publishes, for the manifest: the result may be one that another run trained.
        staging: Directory to create with exactly the files of the repository.
        token: Hub token with write access; never written anywhere.
        beside: Texts of more files to put beside the result, by name.

    Returns:
        The URL of the repository, or with `dry_run` the path of `staging`.

    Raises:
        PublishError: There is no token, or it may not write there.
        UserError: The result is not finished, or damaged.
        TransientError: The hub did not answer.
    """
    stage(result_dir, card, record, staging, beside)
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
    """Refuse to publish without a token; checked before training, not after it.

    Args:
        config: The publish section.
        token: Hub token.

    Raises:
        PublishError: There is none, and this is not a dry run.
    """
    if token is None and not config.dry_run:
        raise PublishError.single(
            "publish.repository",
            config.repository,
            "needs a hub token.",
            "Give one as a secret or in HF_TOKEN, or set dry_run: true.",
            code="publish-no-token",
        )


def stage(
    result_dir: Path,
    card: str,
    record: Mapping[str, Any],
    staging: Path,
    beside: Mapping[str, str] | None = None,
) -> None:
    """Write the files of the repository: the result, a manifest with the run that publishes, and a model card."""
    artifacts.read_manifest(result_dir)  # refuses an unfinished directory
    damage.require_undamaged(result_dir, content=True)
    with artifacts.writing(staging, "putting together what is published") as directory:
        shutil.copytree(result_dir, directory, dirs_exist_ok=True, copy_function=_copy)
        for name, text in {"README.md": card, **(beside or {})}.items():
            artifacts.write_text(directory / name, text)
        artifacts.change_manifest(directory, record)
        adapter = directory / ADAPTER_CONFIG
        if adapter.is_file():  # one of an older version may hold URLs with secrets
            artifacts.write_text(adapter, adapter.read_text(encoding="utf-8"))


def write_evidence(card: str, beside: Mapping[str, str], record: Mapping[str, Any], place: Path) -> None:
    """Write what would be pushed beside a result, without the result.

    Args:
        card: The model card.
        beside: Texts of the other files, by name.
        record: The run, for the manifest.
        place: Directory to create.
    """
    with artifacts.writing(place, "writing what the gate decided by") as directory:
        for name, text in {"README.md": card, **beside}.items():
            artifacts.write_text(directory / name, text)
        artifacts.write_manifest(directory, "evidence", record)


def _copy(source: str, destination: str) -> None:
    """Copy a file, with weights only once on the disk: a node that publishes has space for one model."""
    is_linked = False
    if source.endswith(".safetensors"):
        with suppress(OSError):  # another disk, or one without hard links
            os.link(source, destination)
            is_linked = True
    if not is_linked:
        shutil.copy2(source, destination)
