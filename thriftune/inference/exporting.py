"""Exporting a model: every format is written, read back and compared with the model before it counts."""

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from thriftune import artifacts, damage
from thriftune.config import ModelConfig
from thriftune.config.export_rules import repeated
from thriftune.config.exporting import ExportConfig, ExportFormat
from thriftune.digests import sha256_of
from thriftune.errors import ExportError, ParityError, Problem
from thriftune.inference.parity import checking, reference
from thriftune.inference.parity.reference import Reference
from thriftune.inference.parity.report import FILE, Parity, page_of
from thriftune.inference.parity.rows import Asked
from thriftune.models import architecture, classifier, config_json
from thriftune.models.completeness import require_no_adapter
from thriftune.models.exporting import exports
from thriftune.models.tokenizer import load_usable

logger = logging.getLogger(__name__)

_PAGE = "parity.html"


@dataclass(frozen=True)
class Exports:
    """What came of exporting a model.

    Attributes:
        places: Where each export is that was kept, by its format.
        parity: What was found of each, kept or not.
        refused: Why some could not be written.
    """

    places: dict[str, str] = field(default_factory=dict)
    parity: list[Parity] = field(default_factory=list)
    refused: list[Problem] = field(default_factory=list)


def require_exportable(model_dir: Path, asked: ExportConfig, name: str) -> None:
    """Refuse a model that one of the formats cannot hold, before any is written.

    Args:
        model_dir: Model directory.
        asked: What was asked for.
        name: The model's name, for messages.

    Raises:
        UserError: The model is damaged, an adapter or a classifier, or lacks a usable config.json or tokenizer.
        ExportError: A format is named twice, or cannot hold the model or its tokenizer; names each.
    """
    damage.require_undamaged(model_dir, "model_dir", content=True)
    require_no_adapter(model_dir, "model_dir")
    classifier.require_language(model_dir, "model_dir")
    content = config_json.read(ModelConfig(source=str(model_dir)), token=None)
    if content.get("quantization_config"):
        message = "is quantized already (its config.json has a quantization_config)."
        raise ExportError.single("model_dir", name, message, "Export the model that it was made of.")
    problems = [*repeated(asked.formats, "formats"), *exports.problems_of(asked.formats, content, name)]
    if problems:
        raise ExportError(problems)
    rows = architecture.from_content(content, name).vocabulary
    exports.require_tokenizer(asked.formats, load_usable(model_dir, "model_dir", name), rows)
    exports.require_weights(asked.formats, model_dir)


def export(model_dir: Path, folder: Path, config: ExportConfig, asked: Asked, name: str) -> Exports:
    """Write a model in each format, compare each with the model, and keep those that are what was trained.

    Args:
        model_dir: Model directory.
        folder: Folder to write to: a directory for each format.
        config: What to export to.
        asked: What to compare with.
        name: Name of the model or run.

    Returns:
        Where each is, with what was measured. With `on_fail: error`, one that differs is not kept. `require_same`
        raises the error for it, and for one that its weights keep from being written: the others count all the same.

    Raises:
        UserError: As `require_exportable`.
    """
    require_exportable(model_dir, config, name)
    trained = reference.of_directory(model_dir, asked)
    places: dict[str, str] = {}
    found: list[Parity] = []
    refused: list[Problem] = []
    for kind in config.formats:
        place = folder / kind
        try:
            parity = _export_one(kind, model_dir, place, config, trained, name)
            places[kind] = str(place)
        except _NotKeptError as error:
            parity = error.parity
        except ExportError as error:
            refused += [replace(problem, value=kind) for problem in error.problems]
            continue
        found.append(parity)
    return Exports(places, found, refused)


def require_same(made: Exports, config: ExportConfig, kept: str) -> None:
    """Fail where an export could not be written, or is not what was trained and the run file asks for an error then.

    Args:
        made: What came of exporting.
        config: What was asked for.
        kept: Where what was trained is, with what was kept.

    Raises:
        ExportError: Names each that could not be written.
        ParityError: Names each export, and all in which it differs.
    """
    kept = f"What was trained is kept ({kept})."
    differing = [
        Problem(f"export.{one.format}", difference.what, f"{difference.detail}.", kept, ParityError.code)
        for one in made.parity
        for difference in one.differences
        if config.on_fail == "error"
    ]
    if made.refused:
        refused = [replace(problem, remedy=f"{problem.remedy} {kept}") for problem in made.refused]
        raise ExportError.of(ExportError.code, [*refused, *differing])
    if differing:
        raise ParityError(differing)


class _NotKeptError(Exception):
    """An export that differs, and is not to be kept."""

    def __init__(self, parity: Parity) -> None:
        """Remember what differs.

        Args:
            parity: What was found.
        """
        super().__init__(parity.sentence)
        self.parity = parity


def _export_one(
    kind: ExportFormat, model_dir: Path, place: Path, config: ExportConfig, trained: Reference, name: str
) -> Parity:
    """Write one format, and compare it.

    Raises:
        _NotKeptError: It differs, and only the same is to be kept.
    """
    size = int(exports.EXPORTS[kind].bytes_per_weight * reference.parameters_in(model_dir))
    with artifacts.writing(place, f"exporting the model to {kind}", size) as directory:
        logger.info("Exporting %s to %s", name, kind)
        remarks = exports.write(kind, model_dir, directory, name, config.shard_gb)
        parity = checking.check(trained, directory, kind)
        parity = Parity(**{**vars(parity), "remarks": [*remarks, *parity.remarks]})
        logger.log(logging.INFO if parity.passes else logging.WARNING, parity.sentence)
        if not parity.passes and config.on_fail == "error":
            raise _NotKeptError(parity)
        _describe(directory, model_dir, kind, parity, name)
    return parity


def _describe(directory: Path, model_dir: Path, kind: str, parity: Parity, name: str) -> None:
    """Write the report and the manifest, with the version of what was exported."""
    artifacts.write_text(directory / FILE, json.dumps(asdict(parity), indent=2) + "\n")
    artifacts.write_text(directory / _PAGE, page_of(name, [parity]))
    record = artifacts.read_content(model_dir) if artifacts.is_whole(model_dir) else {}
    manifest = model_dir / artifacts.MANIFEST
    version = {
        "source_version": artifacts.source_version(model_dir),
        "model_manifest": sha256_of(manifest) if manifest.is_file() else "",
    }
    content = {**record, **version, "format": kind, "parity": asdict(parity)}
    artifacts.write_manifest(directory, "export", content)


def remarks_of(made: Exports) -> Sequence[str]:
    """Sentences about exports that a reader of a run's numbers must know.

    Args:
        made: What came of exporting.
    """
    refused = [f"{problem.value} was not written: {problem.message}" for problem in made.refused]
    return [*refused, *(one.sentence for one in made.parity if not one.passes)]
