"""What an adapter comes from, and whether it is put on that: another base or chat template gives wrong answers.

An adapter of the right shape fits every model of its architecture, a fine-tuned one as well as the base that it was
trained on. A base is known by numbers out of each weight of its layers: reading them takes less than a second, they are
the same in a copy, in other shards and in another precision, and any training of layers changes them; embeddings, last
norm and head are not looked at. They are compared in bf16, and once more after a rounding to fp16: a copy in fp16 is
otherwise not that of a base in bf16 or fp32. Versions of sources are not compared: a commit may change a README alone,
and a copy of a directory has other times.
"""

import hashlib
import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from thriftune import artifacts
from thriftune.digests import sha256_of
from thriftune.errors import AdapterError, UserError
from thriftune.models.architecture import layer_of
from thriftune.models.classifier import content_of
from thriftune.models.completeness import ADAPTER_CONFIG
from thriftune.models.source import kind_of
from thriftune.models.weight_files import Folder, files_to_read, weights_in

logger = logging.getLogger(__name__)

_RECORD = "lineage"  # in a manifest
_NUMBERS = 256  # of the middle row of each weight
_ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Lineage:
    """What an adapter was made from. Each is empty where it is not known, or there is none.

    Attributes:
        base: Digest of the weights of its base model.
        base_in_fp16: The same of a copy of it in fp16.
        template: Digest of the chat template that its rows were rendered with.
        parent: Digest of the weights of the adapter that it continues.
    """

    base: str = ""
    base_in_fp16: str = ""
    template: str = ""
    parent: str = ""


def lineage_of(model_dir: Path, parent_dir: Path | None, *, uses_template: bool) -> Lineage:
    """The lineage of an adapter that is being saved.

    Args:
        model_dir: The base model.
        parent_dir: The adapter that it continues; None if it was new.
        uses_template: Whether its rows were rendered with the chat template.
    """
    parent = parent_dir / _ADAPTER_WEIGHTS if parent_dir else None
    base, base_in_fp16 = base_digests(model_dir)
    return Lineage(
        base=base,
        base_in_fp16=base_in_fp16,
        template=template_digest(model_dir) if uses_template else "",
        parent=sha256_of(parent) if parent and parent.is_file() else "",
    )


def require_lineage(adapter_dir: Path, model_dir: Path, field: str) -> None:
    """Refuse an adapter on another base model or template than it was trained with, and say if nothing tells.

    Args:
        adapter_dir: The adapter.
        model_dir: The model to put it on.
        field: The key that names the adapter, for messages.

    Raises:
        AdapterError: Both are known, and differ.
    """
    if not _recorded(_manifest_of(adapter_dir)).base:
        logger.info("%s = %s: nothing says which base model it was trained on", field, adapter_dir)
        _warn_of_other_source(adapter_dir, model_dir, field)
    elif not any(base_digests(model_dir)):
        message = "%s = %s: whether %s is the base that it was trained on cannot be seen: its weights are quantized"
        logger.warning(message, field, adapter_dir, model_dir)
    refuse_others(adapter_dir, model_dir, field)


def refuse_others(adapter_dir: Path, model_dir: Path, field: str) -> None:
    """Refuse an adapter on another base model, or with another chat template, than it was trained with.

    Args:
        adapter_dir: The adapter.
        model_dir: The model to put it on.
        field: The key that names the adapter, for messages.

    Raises:
        AdapterError: Both are known, and differ.
    """
    manifest = _manifest_of(adapter_dir)
    known, there = _recorded(manifest), base_digests(model_dir)
    if known.base and any(there) and not {known.base, known.base_in_fp16} & {*there}:
        raise AdapterError.single(
            field,
            adapter_dir,
            f"was trained on another base model{_named(adapter_dir, manifest)} than {model_dir}, whose weights differ.",
            "Use the base model that it was trained on, or train an adapter for this one.",
        )
    if known.template and known.template != template_digest(model_dir):
        raise AdapterError.single(
            field,
            adapter_dir,
            f"was trained with another chat template than {model_dir} has: it would be asked in a form it never saw.",
            "Give the model the chat_template.jinja and tokenizer_config.json of the base that it was trained on.",
        )


def base_digests(model_dir: Path) -> tuple[str, str]:
    """Digests of numbers out of each weight of a model's layers, whatever its precision and its files.

    Embeddings and the output head are left out, because copies differ in whether tied ones are written twice.

    Args:
        model_dir: The model.

    Returns:
        The digest, and that of a copy in fp16; empty for a directory without weights, or with quantized ones.

    Raises:
        ModelSourceError: A file is damaged.
    """
    from safetensors import SafetensorError

    folder = Folder(model_dir)
    if not any(name.endswith(".safetensors") for name in folder.names):
        return "", ""
    if content_of(model_dir, "config.json").get("quantization_config"):
        return "", ""
    files = [model_dir / name for name in files_to_read(folder, str(model_dir))]
    stamps = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    try:
        return _digests(tuple(stamps))
    except SafetensorError:
        weights_in(folder, str(model_dir))  # says which file is damaged, and how
        raise


def template_digest(model_dir: Path) -> str:
    """A digest of a model's chat template, in whichever file it is; empty if it has none.

    Args:
        model_dir: The model.
    """
    file = model_dir / "chat_template.jinja"
    if file.is_file():
        found: Any = file.read_text(encoding="utf-8")
    else:
        found = content_of(model_dir, "tokenizer_config.json").get("chat_template")
        if isinstance(found, list):  # templates by name
            found = next((each.get("template") for each in found if each.get("name") == "default"), None)
    return hashlib.sha256(found.encode()).hexdigest() if isinstance(found, str) else ""


@lru_cache(maxsize=8)
def _digests(stamps: tuple[tuple[str, int, int], ...]) -> tuple[str, str]:
    from safetensors import safe_open

    found: dict[str, tuple[bytes, bytes]] = {}
    for path, _, _ in stamps:
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - no mapping
                if layer := layer_of(name):
                    stem = layer.rpartition(".")[0].rpartition(".")[0]  # a model without its head lacks the prefix
                    found[name.removeprefix(f"{stem}.")] = _numbers_in(opened.get_slice(name))
    digests = hashlib.sha256(), hashlib.sha256()
    for name, both in sorted(found.items()):
        for digest, numbers in zip(digests, both, strict=True):
            digest.update(name.encode() + b"\0" + numbers)
    return digests[0].hexdigest(), digests[1].hexdigest()


def _numbers_in(weight: Any) -> tuple[bytes, bytes]:
    """Numbers of a weight's middle row in bf16, and those of its copy in fp16."""
    import torch

    shape = weight.get_shape()
    if not all(shape):
        return b"", b""
    row = tuple(slice(size // 2, size // 2 + 1) for size in shape[:-1])
    part = weight[(*row, slice(0, _NUMBERS))] if shape else weight[...]
    both = (part, part)
    if part.is_floating_point():
        both = (part.to(torch.bfloat16).view(torch.int16), part.half().to(torch.bfloat16).view(torch.int16))
    numbers, halved = (repr(shape).encode() + one.contiguous().numpy().tobytes() for one in both)
    return numbers, halved


def _manifest_of(directory: Path) -> dict[str, Any]:
    """A directory's manifest; empty without one. A damaged one is refused elsewhere, by name."""
    try:
        return artifacts.read_manifest(directory)
    except UserError:
        return {}


def _recorded(manifest: dict[str, Any]) -> Lineage:
    try:
        return TypeAdapter(Lineage).validate_python(manifest.get(_RECORD) or {})
    except ValidationError:
        return Lineage()


def _named(adapter_dir: Path, manifest: dict[str, Any]) -> str:
    """The base of an adapter as its own files name it, in brackets."""
    source = content_of(adapter_dir, ADAPTER_CONFIG).get("base_model_name_or_path")
    version = str(manifest.get("model_version") or "")[:12]
    named = ", version ".join(part for part in (str(source or ""), version) if part)
    return f" ({named})" if named else ""


def _warn_of_other_source(adapter_dir: Path, model_dir: Path, field: str) -> None:
    """Warn where an adapter names another model of the hub than the one that it is put on was fetched from."""
    theirs = str(content_of(adapter_dir, ADAPTER_CONFIG).get("base_model_name_or_path") or "")
    source = str(_manifest_of(model_dir).get("source") or "")
    if theirs and source and kind_of(theirs) == kind_of(source) == "hub" and theirs.lower() != source.lower():
        logger.warning(
            "%s = %s: it says that it was trained on %s, and is put on %s. Its answers are only right if these are the "
            "same weights.",
            field,
            adapter_dir,
            theirs,
            source,
        )
