"""The base model: from a hub id, a directory, a URL or a GGUF file to one directory of safetensors + tokenizer."""

import fnmatch
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Literal

from thriftune import artifacts, hub
from thriftune.errors import ModelSourceError, TransientError
from thriftune.tokenizer import fingerprint, load_tokenizer

logger = logging.getLogger(__name__)

SourceKind = Literal["hub", "directory", "url", "gguf"]

# Weights as safetensors only, and what a tokenizer and a configuration consist of; no pickles, no other frameworks.
_WANTED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.json",
    "*.model",
    "*.jinja",
    "*.txt",
    "LICENSE*",
    "*.tiktoken",
)
_UNWANTED = ("original/*", "*.bin", "*.pth", "*.pt", "onnx/*", "consolidated*")


def kind_of(source: str) -> SourceKind:
    """What a model source is, by its spelling and by what is on this disk."""
    if "://" in source:
        return "url"
    if source.endswith(".gguf"):
        return "gguf"
    if Path(source).is_dir() or source.startswith((".", "/", "~")):
        return "directory"
    return "hub"


def version(source: str, revision: str | None = None, token: str | None = None) -> str:
    """What a source holds now: a text that changes when the model does, without reading the weights.

    Args:
        source: As in `ModelConfig`.
        revision: Commit, tag or branch of a hub id.
        token: Hub token.

    Returns:
        The commit for a hub id; else a digest over names, sizes and times of the files.

    Raises:
        ModelSourceError: No such model.
        TransientError: The hub or the store did not answer.
    """
    kind = kind_of(source)
    if kind == "hub":
        with hub.explained_errors("model.source", source, ModelSourceError):
            return hub.commit_of(source, revision, token, repo_type="model")
    if kind == "url":
        return artifacts.key_of(*_remote_listing(source))
    path = Path(source).expanduser()
    files = [path] if kind == "gguf" else sorted(p for p in path.rglob("*") if p.is_file())
    if not path.exists() or not files:
        raise ModelSourceError.single("model.source", source, "does not exist or is empty.", "Check the path.")
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
        ModelSourceError: Gated, missing, bad token, or not a model with safetensors and a tokenizer.
        TransientError: The hub or the store did not answer.
    """
    kind = kind_of(source)
    wanted = (*_WANTED, "*.py") if trust_remote_code else _WANTED
    with artifacts.writing(destination) as directory:
        logger.info("Fetching %s (%s, version %s)", source, kind, version[:12])
        if kind == "hub":
            _fetch_hub(source, version, directory, token, wanted)
        elif kind == "url":
            _fetch_url(source, directory, wanted)
        elif kind == "gguf":
            _convert_gguf(Path(source).expanduser(), directory)
        else:
            _link_directory(Path(source).expanduser(), directory, wanted)
        require_model_directory(directory, source)
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
    with artifacts.writing(destination) as directory:
        for file in sorted(p for p in model_dir.iterdir() if p.is_file() and ".safetensors" not in p.name):
            shutil.copyfile(file, directory / file.name)
        try:
            tokenizer = load_tokenizer(directory, trust_remote_code=trust_remote_code)
        except Exception as error:  # tokenizers raises nothing more particular
            raise ModelSourceError.single(
                "model.source",
                model_dir,
                f"its tokenizer cannot be loaded: {error}.",
                "Repair tokenizer.json and tokenizer_config.json; code of its own needs model.trust_remote_code.",
            ) from error
        found = fingerprint(tokenizer)
        artifacts.write_manifest(directory, "tokenizer", {"fingerprint": found})
    return found


def require_model_directory(directory: Path, source: str) -> None:
    """Refuse a directory that is not a model this package can train.

    Raises:
        ModelSourceError: No config.json, no safetensors, or no tokenizer; all that is missing at once.
    """
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
        )


def _fetch_hub(repository: str, commit: str, directory: Path, token: str | None, patterns: tuple[str, ...]) -> None:
    from huggingface_hub import snapshot_download

    with hub.explained_errors("model.source", repository, ModelSourceError):
        snapshot_download(
            repository,
            revision=commit,
            local_dir=directory,
            token=token,
            allow_patterns=list(patterns),
            ignore_patterns=list(_UNWANTED),
        )
    shutil.rmtree(directory / ".cache", ignore_errors=True)  # the hub's download records, not part of the model


def _link_directory(source: Path, directory: Path, patterns: tuple[str, ...]) -> None:
    """Take the model's files over without copying their bytes, where the file system can."""
    wanted = {f for pattern in patterns for f in source.glob(pattern) if f.name != artifacts.MANIFEST}
    for file in sorted(wanted):
        try:
            os.link(file.resolve(), directory / file.name)
        except OSError:  # another file system
            shutil.copy(file, directory / file.name)


def _remote_listing(url: str) -> list[str]:
    import fsspec

    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        entries = filesystem.find(path, detail=True)
    except (ImportError, ValueError) as error:
        raise ModelSourceError.single(
            "model.source", url, f"cannot be read: {error}.", "Use s3:// or gs://."
        ) from error
    except PermissionError as error:
        raise _not_permitted(url, error) from error
    except OSError as error:
        raise TransientError(f"model.source = {url}: the store did not answer ({error}).") from error
    if not entries:
        raise ModelSourceError.single("model.source", url, "holds no files.", "Check the URL and the permissions.")
    return [f"{name} {info.get('size')} {info.get('ETag') or info.get('mtime')}" for name, info in entries.items()]


def _not_permitted(url: str, error: PermissionError) -> ModelSourceError:
    return ModelSourceError.single("model.source", url, f"may not be read: {error}.", "Grant read access to it.")


def _fetch_url(url: str, directory: Path, patterns: tuple[str, ...]) -> None:
    import fsspec

    _remote_listing(url)
    filesystem, path = fsspec.core.url_to_fs(url)
    try:
        if url.endswith(".gguf"):
            with tempfile.TemporaryDirectory() as scratch:
                filesystem.get(path, f"{scratch}/model.gguf")
                _convert_gguf(Path(scratch) / "model.gguf", directory)
            return
        for file in filesystem.ls(path, detail=False):
            name = file.rpartition("/")[2]
            if name != artifacts.MANIFEST and any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
                filesystem.get(file, str(directory / name))
    except PermissionError as error:
        raise _not_permitted(url, error) from error
    except OSError as error:
        raise TransientError(f"model.source = {url}: the download failed ({error}).") from error


def _convert_gguf(file: Path, directory: Path) -> None:
    """Unpack a GGUF file into 16-bit safetensors.

    transformers (5.23) reads the tokenizer and chat template out of the same file. `dequantize` gives plain weights;
    the marks it leaves on model and configuration would make `save_pretrained` refuse.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    if not file.is_file():
        raise ModelSourceError.single("model.source", file, "no such file.", "Check the path.")
    try:
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
    except (ValueError, OSError, KeyError) as error:
        raise ModelSourceError.single(
            "model.source", file, f"cannot be read as GGUF: {error}.", "Use a complete file of a known architecture."
        ) from error
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
