"""The base model: from a hub id, a directory, a URL or a GGUF file to one directory of safetensors + tokenizer."""

import logging
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from thriftune import artifacts, damage, hub, remote
from thriftune.errors import ModelSourceError
from thriftune.models import gguf, stopping
from thriftune.models.completeness import ADAPTER_CONFIG, require_complete
from thriftune.models.files import CODE, TEMPLATES, UNWANTED, WANTED, copy_files, files_of, is_wanted, real_path
from thriftune.models.source import is_gguf, kind_of
from thriftune.models.tokenizer import fingerprint, load_tokenizer

logger = logging.getLogger(__name__)

_FIELD = "model.source"

ADAPTER_BESIDE = f"holds an adapter beside the model ({ADAPTER_CONFIG}), which is left out."


def version(source: str, revision: str | None = None, token: str | None = None, *, field: str = _FIELD) -> str:
    """What a source holds now: a text that changes when the model does, without reading the weights.

    Args:
        source: As in `ModelConfig`.
        revision: Commit, tag or branch of a hub id.
        token: Hub token.
        field: What names it, for messages.

    Returns:
        The commit for a hub id; else a digest over names, sizes and times of the files.

    Raises:
        ModelSourceError: No such model, or links in its directory lead elsewhere.
        TransientError: The hub or the store did not answer.
    """
    kind = kind_of(source)
    if kind == "hub":
        with hub.explained_errors(field, source, ModelSourceError):
            return hub.commit_of(source, revision, token, repo_type="model")
    if kind == "url":
        return artifacts.key_of(*(remote.of_entry(name, entry) for name, entry in listing(source).items()))
    path = Path(source).expanduser()
    if kind == "directory":
        files_of(path, field, ModelSourceError)
    else:
        real_path(path, field, ModelSourceError)
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
        version: What `version` said, so that a hub id is fetched at exactly that commit.
        destination: Directory to make.
        token: Hub token; it is not written anywhere.
        trust_remote_code: Bring the model's Python files too.

    Raises:
        ModelSourceError: Gated, missing, bad token, or not a model with a tokenizer and all of its weights as
            safetensors.
        TransientError: The hub or the store did not answer.
    """
    kind = kind_of(source)
    wanted = (*WANTED, CODE) if trust_remote_code else WANTED
    with artifacts.writing(destination, "fetching the base model") as directory:
        logger.info("Fetching %s (%s, version %s)", source, kind, version[:12])
        if kind == "hub":
            fetch_hub(source, version, directory, token, wanted)
        elif kind == "url":
            fetch_url(source, directory, wanted)
        elif kind == "gguf":
            gguf.convert(Path(source).expanduser(), directory)
        else:
            here = Path(source).expanduser()
            damage.require_undamaged(here, _FIELD, content=True)
            copy_directory(here, directory, wanted)
        require_model_directory(directory, source)
        stopping.require_readable(directory, source)
        require_complete(directory, source, trust_remote_code=trust_remote_code)
        artifacts.write_manifest(directory, "base model", {"source": source, "source_version": version})


def copy_tokenizer(model_dir: Path, destination: Path, *, trust_remote_code: bool = False) -> str:
    """Put everything but the weights into a directory of its own: data is prepared on machines too small for a model.

    Args:
        model_dir: A model directory.
        destination: Directory to make.
        trust_remote_code: Run tokenizer code that the model ships.

    Returns:
        The tokenizer's fingerprint, which is also in the manifest.

    Raises:
        ModelSourceError: The tokenizer cannot be loaded.
    """
    with artifacts.writing(destination, "copying the tokenizer") as directory:
        for file in sorted(p for p in model_dir.iterdir() if p.is_file() and ".safetensors" not in p.name):
            shutil.copyfile(file, directory / file.name)
        if (model_dir / TEMPLATES).is_dir():
            shutil.copytree(model_dir / TEMPLATES, directory / TEMPLATES)
        try:
            tokenizer = load_tokenizer(directory, trust_remote_code=trust_remote_code)
        except Exception as error:  # tokenizers raises nothing more particular
            raise ModelSourceError.single(
                "model.source",
                model_dir,
                f"its tokenizer cannot be loaded: {error}.",
                "Repair tokenizer.json and tokenizer_config.json; code of its own needs model.trust_remote_code.",
                code="tokenizer-broken",
            ) from error
        found = fingerprint(tokenizer)
        artifacts.write_manifest(directory, "tokenizer", {"fingerprint": found})
    return found


def require_model_directory(directory: Path, source: str) -> None:
    """Refuse a directory that is not a model this package can train.

    Raises:
        ModelSourceError: No config.json, no safetensors, or no tokenizer; all that is missing at once. Or an adapter.
    """
    if (directory / ADAPTER_CONFIG).is_file() and not (directory / "config.json").is_file():
        raise ModelSourceError.single(
            "model.source",
            source,
            f"is an adapter ({ADAPTER_CONFIG}), not a model.",
            "Name its base model; to go on training the adapter, name it as lora.resume_from.",
            code="model-incomplete",
        )
    wanted = {
        "config.json": ["config.json"],
        "weights as *.safetensors": ["*.safetensors"],
        "a tokenizer (tokenizer.json or tokenizer.model)": ["tokenizer.json", "tokenizer.model", "vocab.json"],
    }
    missing = [name for name, patterns in wanted.items() if not any(any(directory.glob(p)) for p in patterns)]
    if missing:
        found = ", ".join(sorted(p.name for p in directory.iterdir() if not p.name.startswith("."))[:10]) or "nothing"
        raise ModelSourceError.single(
            "model.source",
            source,
            f"lacks {' and '.join(missing)}; it holds {found}.",
            "Give a transformers model directory; convert pickled weights with save_pretrained first.",
            code="model-incomplete",
        )


def fetch_hub(repository: str, commit: str, directory: Path, token: str | None, patterns: tuple[str, ...]) -> None:
    """Download those files of a model on the hub that are taken.

    Args:
        repository: Hub id.
        commit: Which of its versions.
        directory: Where to; it is there.
        token: Hub token.
        patterns: Of what is taken.

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
    """Copy those files of a model directory that are taken.

    Args:
        source: The directory.
        directory: Where to; it is there.
        patterns: Of what is taken.

    Raises:
        ModelSourceError: Links in it lead elsewhere, or the disk has no room.
    """
    files = files_of(source, _FIELD, ModelSourceError, patterns)
    if (source / ADAPTER_CONFIG).is_file():
        logger.warning("%s %s", source, ADAPTER_BESIDE)
    files.pop(artifacts.MANIFEST, None)
    copy_files(files, directory)


def _wanted(names: Collection[str], patterns: tuple[str, ...], source: str) -> list[str]:
    """Those of a model's files to take over, by their names within it."""
    if ADAPTER_CONFIG in names:
        logger.warning("%s %s", source, ADAPTER_BESIDE)
    return [name for name in sorted(names) if name != artifacts.MANIFEST and is_wanted(name, patterns)]


def listing(url: str) -> dict[str, dict[str, Any]]:
    """The files of a model in a store: what the store knows of each, by the name that it has there.

    Raises:
        ModelSourceError: There are none, or they may not be read.
        TransientError: The store did not answer.
    """
    with remote.explained("model.source", url, ModelSourceError, "holds no files."):
        entries = remote.listing(url)
        if not entries:
            raise FileNotFoundError(url)
    return entries


def fetch_url(url: str, directory: Path, patterns: tuple[str, ...]) -> None:
    """Bring those files of a model in a store that are taken; of a GGUF file, what it is converted to.

    Args:
        url: The model.
        directory: Where to; it is there.
        patterns: Of what is taken.

    Raises:
        ModelSourceError: There are none, or they may not be read.
        TransientError: The store did not answer.
    """
    if is_gguf(url):
        with tempfile.TemporaryDirectory() as scratch:
            gguf.convert(fetch_gguf(url, Path(scratch)), directory)
        return
    entries = listing(url)
    with remote.explained("model.source", url, ModelSourceError, "holds no such file any more."):
        root = remote.root_of(url)
        names = [file.removeprefix(f"{root}/") for file in entries]
        here = [name for name in names if name.rpartition("/")[0] in ("", TEMPLATES)]
        for name in _wanted(here, patterns, url):
            remote.fetch(f"{url.rstrip('/')}/{name}", directory / name)


def fetch_gguf(url: str, folder: Path) -> Path:
    """A GGUF file of a store on this disk.

    Raises:
        ModelSourceError: There is none, or it may not be read.
        TransientError: The store did not answer.
    """
    file = folder / "model.gguf"
    with remote.explained("model.source", url, ModelSourceError):
        remote.fetch(url, file)
    return file
