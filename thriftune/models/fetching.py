"""Fetching a base model: from a hub id, directory, URL or GGUF file into one directory of safetensors + tokenizer."""

import logging
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path

from thriftune import artifacts, damage, hub
from thriftune.errors import ModelSourceError
from thriftune.models import contents, gguf, stopping
from thriftune.models.completeness import ADAPTER_CONFIG, require_complete
from thriftune.models.files import CODE, TEMPLATES, UNWANTED, WANTED, copy_files, files_of, is_wanted, real_path
from thriftune.models.source import is_gguf, kind_of
from thriftune.models.tokenizer import load_tokenizer
from thriftune.stores import failures, remote, transfer
from thriftune.stores.transfer import Incoming

logger = logging.getLogger(__name__)

_FIELD = "model.source"

ADAPTER_BESIDE = f"holds an adapter next to the model ({ADAPTER_CONFIG}), which is left out."


def version(source: str, revision: str | None = None, token: str | None = None, *, field: str = _FIELD) -> str:
    """The present version of a source: a text that changes when the model does. Reads no weights.

    Args:
        source: As in `ModelConfig`.
        revision: Commit, tag or branch of a hub id.
        token: Hub token.
        field: The key that names it, for messages.

    Returns:
        The commit for a hub id; else a digest of the names, sizes and times of the files.

    Raises:
        ModelSourceError: There is no such model, or links in its directory lead elsewhere.
        TransientError: The hub or the store did not answer.
    """
    kind = kind_of(source)
    if kind == "hub":
        with hub.explained_errors(field, source, ModelSourceError):
            return hub.commit_of(source, revision, token, repo_type="model")
    if kind == "url" and is_gguf(source):
        with failures.explained(field, source, ModelSourceError):
            return artifacts.key_of(remote.stamp(source))
    if kind == "url":
        found = contents.listing(source, field)
        return artifacts.key_of(*(remote.of_entry(name, entry) for name, entry in found.items()))
    path = Path(source).expanduser()
    if kind == "directory":
        files_of(source, field, ModelSourceError)
    else:
        real_path(source, field, ModelSourceError)
    files = [path] if kind == "gguf" else sorted(p for p in path.rglob("*") if p.is_file())
    if not files:
        raise ModelSourceError.single(
            field, source, "does not exist or is empty.", "Check the path.", code=ModelSourceError.missing
        )
    return artifacts.key_of(*(f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files))


def fetch(
    source: str, version: str, destination: Path, token: str | None = None, *, trust_remote_code: bool = False
) -> None:
    """Bring a base model into one directory of safetensors + tokenizer, with a manifest.

    Args:
        source: As in `ModelConfig`.
        version: The result of `version`; a hub id is fetched at exactly that commit.
        destination: Directory to create.
        token: Hub token; never written to disk.
        trust_remote_code: Fetch the model's Python files too.

    Raises:
        ModelSourceError: Gated, missing, bad token, or not a model with a tokenizer and all of its weights as
            safetensors.
        TransientError: The hub or the store did not answer.
    """
    kind = kind_of(source)
    wanted = (*WANTED, CODE) if trust_remote_code else WANTED
    with artifacts.writing(destination, "fetching the base model") as directory:
        logger.info("Fetching %s (%s, version %s)", source, kind, version[:12])
        if not is_gguf(source):
            contents.require_files(contents.names_of(source, version, token), source)
        if kind == "hub":
            fetch_hub(source, version, directory, token, wanted)
        elif kind == "url":
            fetch_url(source, directory, wanted)
        elif kind == "gguf":
            gguf.convert(Path(source).expanduser(), directory, source)
        else:
            here = Path(source).expanduser()
            damage.require_undamaged(here, _FIELD, content=True)
            copy_directory(here, directory, wanted)
        stopping.require_readable(directory, source)
        require_complete(directory, source, trust_remote_code=trust_remote_code)
        artifacts.write_manifest(directory, "base model", {"source": source, "source_version": version})


def copy_tokenizer(model_dir: Path, destination: Path, *, trust_remote_code: bool = False) -> None:
    """Copy everything except the weights into a new directory: data is prepared on machines too small for a model.

    Args:
        model_dir: A model directory.
        destination: Directory to create.
        trust_remote_code: Run tokenizer code that the model ships.

    Raises:
        ModelSourceError: The tokenizer cannot be loaded.
    """
    with artifacts.writing(destination, "copying the tokenizer") as directory:
        for file in sorted(p for p in model_dir.iterdir() if p.is_file() and ".safetensors" not in p.name):
            shutil.copyfile(file, directory / file.name)
        if (model_dir / TEMPLATES).is_dir():
            shutil.copytree(model_dir / TEMPLATES, directory / TEMPLATES)
        try:
            load_tokenizer(directory, trust_remote_code=trust_remote_code)
        except Exception as error:  # tokenizers raises nothing more specific
            raise ModelSourceError.single(
                "model.source",
                model_dir,
                f"its tokenizer cannot be loaded: {error}.",
                "Repair tokenizer.json and tokenizer_config.json; custom code needs model.trust_remote_code.",
                code="tokenizer-broken",
            ) from error
        artifacts.write_manifest(directory, "tokenizer", {})


def fetch_hub(repository: str, commit: str, directory: Path, token: str | None, patterns: tuple[str, ...]) -> None:
    """Download the files of a model on the hub that match some patterns.

    Args:
        repository: Hub id.
        commit: Commit to download.
        directory: Existing directory to write to.
        token: Hub token.
        patterns: Patterns of the files to take.

    Raises:
        ModelSourceError: Gated, missing, or a bad token.
        TransientError: The hub did not answer.
    """
    from huggingface_hub import snapshot_download

    with hub.explained_errors("model.source", repository, ModelSourceError):
        snapshot_download(
            repository,
            revision=commit,
            local_dir=directory,
            token=token,
            allow_patterns=list(patterns),
            ignore_patterns=list(UNWANTED),
        )
    shutil.rmtree(directory / ".cache", ignore_errors=True)  # the hub's download records, not part of the model


def copy_directory(source: Path, directory: Path, patterns: Collection[str]) -> None:
    """Copy the files of a model directory that match some patterns.

    Args:
        source: The directory.
        directory: Existing directory to write to.
        patterns: Patterns of the files to take.

    Raises:
        ModelSourceError: Links in it lead elsewhere, or the disk has no space.
    """
    files = files_of(source, _FIELD, ModelSourceError, patterns)
    if (source / ADAPTER_CONFIG).is_file():
        logger.warning("%s %s", source, ADAPTER_BESIDE)
    files.pop(artifacts.MANIFEST, None)
    copy_files(files, directory)


def _wanted(names: Collection[str], patterns: tuple[str, ...], source: str) -> list[str]:
    """The names of a model's files that are to be taken."""
    if ADAPTER_CONFIG in names:
        logger.warning("%s %s", source, ADAPTER_BESIDE)
    return [name for name in sorted(names) if name != artifacts.MANIFEST and is_wanted(name, patterns)]


def fetch_url(url: str, directory: Path, patterns: tuple[str, ...]) -> None:
    """Fetch the files of a model in a store that match some patterns; a GGUF file is converted.

    Args:
        url: The model.
        directory: Existing directory to write to.
        patterns: Patterns of the files to take.

    Raises:
        ModelSourceError: There are none, or access is denied.
        TransientError: The store did not answer.
    """
    if is_gguf(url):
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "model.gguf"
            with failures.explained(_FIELD, url, ModelSourceError):
                transfer.fetch(url, file)
            gguf.convert(file, directory, url)
        return
    entries = contents.listing(url)
    with failures.explained("model.source", url, ModelSourceError, "no longer holds the file."):
        root = remote.root_of(url)
        sizes = {file.removeprefix(f"{root}/"): int(entry.get("size") or 0) for file, entry in entries.items()}
        here = [name for name in sizes if name.rpartition("/")[0] in ("", TEMPLATES)]
        wanted = _wanted(here, patterns, url)
        transfer.fetch_all([Incoming(f"{url.rstrip('/')}/{n}", directory / n, sizes[n]) for n in wanted])
