"""Adapters: their targets are in the architecture, peft accepts them, and an adapter to continue exists and matches."""

import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from thriftune import damage
from thriftune.artifacts import MANIFEST
from thriftune.config import LoraConfig, RunConfig
from thriftune.errors import AdapterError, Problem
from thriftune.methods import METHODS
from thriftune.methods.adapter_checks import require_adapters, require_targets, require_trainable_modules
from thriftune.methods.adapters import adapter_parameters, fused_adapters
from thriftune.models.adapter_resumption import require_same_shape, require_same_targets
from thriftune.models.adapter_weights import RESUME_FROM, WEIGHTS, adapted_modules, require_fit, shapes_in
from thriftune.models.architecture import Architecture
from thriftune.models.completeness import ADAPTER_CONFIG
from thriftune.models.files import ADAPTER_FILES, exists, files_of
from thriftune.models.quantization import FourBit, require_savings, saves_little
from thriftune.models.weight_files import Folder
from thriftune.preflight.base_model import BaseModel
from thriftune.preflight.findings import skipped
from thriftune.preflight.outcome import attempt
from thriftune.redaction import redacted
from thriftune.stores import failures

logger = logging.getLogger(__name__)

_TARGETS, _RESUME, _FOUR_BIT = "lora.target_modules", RESUME_FROM, "method"
_CONFIG, _WEIGHTS = ADAPTER_CONFIG, WEIGHTS


def check(config: RunConfig, base: BaseModel) -> Iterator[Problem]:
    """The problems of a run's low-rank adapters; `thriftune.preflight.trained_parts` has those of other methods.

    Args:
        config: The run.
        base: Its base model, with its files on this disk.
    """
    method = METHODS[config.method]
    lora = method.section(config)
    if not isinstance(lora, LoraConfig):
        return
    logger.info("Preflight: adapters")
    if base.architecture is None:
        yield skipped(_TARGETS, "the base model's architecture is not known")
    else:
        yield from _targets(lora, method.four_bit(config), base.architecture)
    if lora.resume_from is not None:
        yield from _adapter_to_go_on_from(config, lora, lora.resume_from, base.architecture)


def _targets(lora: LoraConfig, four_bit: FourBit | None, architecture: Architecture) -> Iterator[Problem]:
    named = ", ".join(lora.target_modules or ())
    missing = attempt(lambda: require_targets(lora, architecture), _TARGETS, named)
    yield from missing.findings
    if missing.failed:
        return
    if four_bit is not None:
        whole = attempt(lambda: require_trainable_modules(lora, architecture), "lora.modules_to_save", named)
        yield from whole.findings
        if whole.failed:
            return
    refused = attempt(lambda: require_adapters(lora, architecture), _TARGETS, named)
    yield from refused.findings
    if not refused.failed and fused_adapters(lora, architecture):
        yield _on_experts(lora, architecture)
    if four_bit is not None:
        yield from _four_bits(four_bit, architecture)


def _on_experts(lora: LoraConfig, architecture: Architecture) -> Problem:
    """Notes on adapters where an architecture holds its experts in fused tensors, which peft adapts by name."""
    adapted = adapter_parameters(architecture, lora)
    passed = sorted({name.rpartition(".")[2] for name in architecture.linear_shapes.keys() - adapted.keys()})
    without = f" The layers {', '.join(passed)} beside them get none." if passed and not lora.target_modules else ""
    return Problem.coded(
        "lora-on-fused-experts",
        "lora.dropout",
        "left out" if lora.dropout is None else lora.dropout,
        f"the adapters are on fused experts too, so dropout is 0.{without}",
        "Name q_proj, k_proj, v_proj and o_proj in lora.target_modules to leave the experts as they are.",
    )


def _four_bits(four_bit: FourBit, architecture: Architecture) -> Iterator[Problem]:
    """Whether 4 bits save enough on this architecture."""
    refused = attempt(lambda: require_savings(four_bit, architecture), _FOUR_BIT, "qlora")
    yield from refused.findings
    if not refused.failed and (why := saves_little(four_bit, architecture)):
        remedy = "method: lora trains faster and more exactly, where its memory is there."
        yield Problem.coded("quantization-saves-little", _FOUR_BIT, "qlora", why, remedy)


def _adapter_to_go_on_from(
    config: RunConfig, lora: LoraConfig, place: str, architecture: Architecture | None
) -> Iterator[Problem]:
    readable = attempt(lambda: _require_readable(place, _RESUME), _RESUME, place)
    yield from readable.findings
    if readable.failed:
        return
    with tempfile.TemporaryDirectory() as scratch:
        brought = attempt(lambda: _bring(place, Path(scratch), _RESUME, _require_lora), _RESUME, place)
        if brought.value is None:
            yield from brought.findings
            return
        directory = brought.value
        yield from attempt(lambda: require_same_shape(lora, directory), _RESUME, place).findings
        if architecture is not None:
            yield from _weights(lora, architecture, directory, place)
        saved = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
        other = saved.get("base_model_name_or_path")
        if other and other != redacted(config.model.source):
            yield Problem.coded(
                "adapter-other-base",
                _RESUME,
                place,
                f"says that it was trained on {other}, and the run's base model is {config.model.source}.",
                "Use its own base model, unless both are the same.",
            )


def _weights(lora: LoraConfig, architecture: Architecture, directory: Path, place: str) -> Iterator[Problem]:
    """Whether an adapter's weights fit the model, and belong to the modules that the run names."""
    held = attempt(lambda: shapes_in(Folder(place), _RESUME, place), _RESUME, place)
    yield from held.findings
    if held.value is None:
        return
    shapes = held.value
    fits = attempt(lambda: require_fit(architecture, directory, shapes, _RESUME, place), _RESUME, place)
    yield from fits.findings
    if not fits.failed:
        same = attempt(lambda: require_same_targets(lora, adapted_modules(shapes), architecture), _RESUME, place)
        yield from same.findings


def check_on(architecture: Architecture | None, place: str, field: str, scratch: Path) -> Iterator[Problem]:
    """The problems of a finished adapter of any kind that is to be put on a model; reads no weights.

    Args:
        architecture: Architecture of the model; None where it is not known.
        place: The adapter's directory, on this disk or at a URL.
        field: The key that names it.
        scratch: An empty folder, which gets its configuration and its manifest.
    """
    readable = attempt(lambda: _require_readable(place, field), field, place)
    brought = readable if readable.failed else attempt(lambda: _bring(place, scratch, field), field, place)
    yield from brought.findings
    if brought.failed or architecture is None:
        return
    held = attempt(lambda: shapes_in(Folder(place), field, place), field, place)
    yield from held.findings
    if (shapes := held.value) is not None:
        yield from attempt(lambda: require_fit(architecture, scratch, shapes, field, place), field, place).findings


def _require_readable(place: str, field: str) -> None:
    """Refuse an adapter on this disk whose links lead elsewhere, or whose files differ from what was saved.

    Raises:
        UserError: Names each file.
    """
    here = Path(place).expanduser()
    if "://" not in place and exists(here):
        files_of(here, field, AdapterError, ADAPTER_FILES, ())
        damage.require_undamaged(here, field, AdapterError, content=True)


def _bring(place: str, scratch: Path, field: str, require: Callable[[object], None] = lambda _: None) -> Path:
    """Bring the configuration of an adapter to this disk, and its manifest if it has one.

    Raises:
        AdapterError: There is none.
        TransientError: The store did not answer.
    """
    nothing = f"has no {_CONFIG} and no {_WEIGHTS}."
    with failures.explained(field, place, AdapterError, nothing, code=AdapterError.missing):
        names = Folder(place).names
        missing = [name for name in (_CONFIG, _WEIGHTS) if name not in names]
        if not missing:
            for name in (_CONFIG, *({MANIFEST} & names)):
                (scratch / name).write_bytes(Folder(place).content(name))
            require(json.loads((scratch / _CONFIG).read_text(encoding="utf-8")))
    if missing:
        message = f"has no {' and no '.join(missing)}."
        remedy = "Name the directory of an adapter."
        raise AdapterError.single(field, place, message, remedy, code=AdapterError.missing)
    return scratch


def _require_lora(content: object) -> None:
    """Refuse a configuration that is not that of a LoRA adapter.

    Raises:
        ValueError: It is something else.
    """
    if not isinstance(content, dict) or not all(isinstance(content.get(key), int) for key in ("r", "lora_alpha")):
        raise ValueError(f"{_CONFIG} has no r and lora_alpha")
