"""The base model before it is fetched: it exists, may be read, is complete, and transformers can build it."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from thriftune import damage, hub
from thriftune.config import ModelConfig
from thriftune.errors import ModelSourceError, Problem, in_a_line
from thriftune.models import architecture, config_json, contents, gguf_file, gguf_head, stopping
from thriftune.models import fetching as models
from thriftune.models.architecture import Architecture
from thriftune.models.files import CODE, WANTED, exists, files_of
from thriftune.models.positions import require_positions
from thriftune.models.source import is_gguf, kind_of
from thriftune.preflight import licenses, weights
from thriftune.preflight.findings import skipped
from thriftune.preflight.outcome import attempt

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, ModelInfo

logger = logging.getLogger(__name__)

FIELD = "model.source"
_WEIGHTS = "*.safetensors"


@dataclass(frozen=True)
class BaseModel:
    """A base model without its weights.

    Attributes:
        version: Its version (`thriftune.models.fetching.version`).
        license: The license it names; empty if it names none.
        directory: config.json and the tokenizer's files, on this disk.
        architecture: Its shape.
        findings: Its problems. Attributes that could not be determined are None or empty.
    """

    version: str = ""
    license: str = ""
    directory: Path | None = None
    architecture: Architecture | None = None
    findings: tuple[Problem, ...] = ()


def check(model: ModelConfig, token: str | None, scratch: Path, labels: Sequence[str] = ()) -> BaseModel:
    """Find a base model, and bring all of it except the weights to this disk.

    Args:
        model: The model section of a run.
        token: Hub token.
        scratch: Folder to write to.
        labels: Names of the classes of a classifier; none for a causal language model.

    Returns:
        As much of it as could be had, and what is wrong.
    """
    source = model.source
    logger.info("Preflight: the base model %s", source)
    readable = attempt(lambda: _require_readable(source), FIELD, source)
    if readable.failed:
        return BaseModel(findings=readable.findings)
    version = attempt(lambda: models.version(source, model.revision, token), FIELD, source)
    if version.value is None:
        return BaseModel(findings=version.findings)
    brought = attempt(lambda: _bring(model, str(version.value), token, scratch), FIELD, source)
    if brought.value is None:
        return BaseModel(version.value, findings=brought.findings)
    directory, names, info = brought.value
    found = licenses.of(directory, info)
    base = BaseModel(version.value, found, directory, findings=tuple(_license_note(found, source)))
    lacking = attempt(lambda: contents.require_files(names, source), FIELD, source)
    if lacking.failed:
        return dataclasses.replace(base, findings=base.findings + lacking.findings)
    shape = attempt(lambda: _architecture(model, directory, labels), FIELD, source)
    named = tuple(_in_words_of(found, directory, source) for found in shape.findings)
    base = dataclasses.replace(base, architecture=shape.value, findings=base.findings + named)
    store = None if is_gguf(source) else weights.store_of(source, version.value, token, directory, names)
    return dataclasses.replace(base, findings=base.findings + tuple(weights.check(source, store, names, shape.value)))


def _require_readable(source: str) -> None:
    """Refuse a directory whose links lead elsewhere, or whose files are not those that its manifest names.

    Raises:
        UserError: Names each of them.
    """
    directory = Path(source).expanduser()
    if kind_of(source) == "directory" and exists(directory):
        files_of(source, FIELD, ModelSourceError)
        damage.require_undamaged(directory, FIELD, ModelSourceError, content=False)


def check_length(base: BaseModel, max_length: int) -> Iterator[Problem]:
    """Compare the longest row with the positions that a model has, or was made for.

    Args:
        base: The base model.
        max_length: data.max_length, in tokens.
    """
    if base.architecture is None:
        yield skipped("data.max_length", "the base model's architecture is not known")
        return
    shape = base.architecture
    beyond = attempt(lambda: require_positions(shape, max_length), "data.max_length", max_length)
    yield from beyond.findings
    positions = shape.longest_input
    if beyond.failed:
        return
    if positions is not None and max_length > positions:
        yield Problem.coded(
            "max-length-beyond-positions",
            "data.max_length",
            max_length,
            f"the model was made for {positions} positions; it saw no longer row before.",
            f"Use at most {positions}.",
        )


def _license_note(found: str, source: str) -> Iterator[Problem]:
    if not found:
        yield Problem.coded(
            "license-not-found", FIELD, source, "says nowhere under which license it stands.", "Ask who made it."
        )


def _bring(
    model: ModelConfig, version: str, token: str | None, scratch: Path
) -> tuple[Path, set[str], "ModelInfo | DatasetInfo | None"]:
    """Bring a model's files except its weights; also get the names of all of them, and the hub's information."""
    directory = scratch / "model"
    directory.mkdir(parents=True)
    source, kind = model.source, kind_of(model.source)
    code = (CODE,) if model.trust_remote_code else ()
    patterns = (*(pattern for pattern in WANTED if pattern != _WEIGHTS), "README.md", *code)
    if kind == "hub":
        info = hub.permitted(source, version, token, field=FIELD, error_class=ModelSourceError, repo_type="model")
        models.fetch_hub(source, version, directory, token, patterns)
        return directory, contents.at_the_top(file.rfilename for file in info.siblings or ()), info
    if is_gguf(source):
        file = Path(source).expanduser() if kind == "gguf" else gguf_head.fetch(source, scratch)
        _unpack_gguf(file, source, directory)
        return directory, {"model.safetensors", *(p.name for p in directory.iterdir())}, None  # the weights are inside
    names = contents.names_of(source, model.revision, token)
    if kind == "url":
        models.fetch_url(source, directory, patterns)
    else:
        models.copy_directory(Path(source).expanduser(), directory, patterns)
    return directory, names, None


def _unpack_gguf(file: Path, source: str, directory: Path) -> None:
    """Write the tokenizer and the configuration in a GGUF file as those of a model directory."""
    shape = architecture.from_content(config_json.of_gguf(file, source), source)
    (directory / "config.json").write_text(shape.content, encoding="utf-8")
    gguf_file.save_tokenizer(file, directory)
    licenses.keep(directory, gguf_file.license_of(file))


def _architecture(model: ModelConfig, directory: Path, labels: Sequence[str]) -> Architecture:
    """The architecture of the model whose files are here; its class is built to prove that it can be.

    Raises:
        ModelSourceError: It cannot.
    """
    stopping.require_readable(directory, model.source)
    try:
        shape = architecture.of(model.model_copy(update={"source": str(directory)}), labels=labels)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:  # of configuration classes
        raise ModelSourceError.single(
            FIELD,
            model.source,
            f"its config.json cannot be used ({in_a_line(error)}).",
            "Repair config.json.",
            code="model-config-invalid",
        ) from error
    if not model.trust_remote_code:  # whose code is looked for where the name says
        shape = dataclasses.replace(shape, name=model.source)
    logger.info("Preflight: %s parameters", f"{shape.parameters:,}")
    return shape


def _in_words_of(found: Problem, directory: Path, source: str) -> Problem:
    """Replace the scratch folder in a finding by the source of its files."""
    message = found.message.replace(str(directory), source)
    return dataclasses.replace(found, value=source, message=message)
