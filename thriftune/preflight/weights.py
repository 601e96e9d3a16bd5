"""The weights of the base model before it is fetched: complete, by the headers of their files."""

from collections.abc import Collection, Iterator
from pathlib import Path

from thriftune import hub
from thriftune.errors import ModelSourceError, Problem
from thriftune.models import fetching as models
from thriftune.models.architecture import Architecture
from thriftune.models.completeness import ADAPTER_CONFIG, NO_PLACE, NOT_READ, examples, require_fit
from thriftune.models.source import kind_of
from thriftune.models.weight_files import Folder, Shapes, Store, shapes_in_entries, weights_in
from thriftune.preflight.outcome import attempt

_FIELD = "model.source"


class _Repository:
    """A model on the hub. Lengths of files are not compared here, but after the download."""

    def __init__(self, repository: str, commit: str, token: str | None, directory: Path, names: set[str]) -> None:
        self._repository, self._commit, self._token = repository, commit, token
        self._directory = directory
        self.names = names

    def content(self, name: str) -> bytes:
        return (self._directory / name).read_bytes()

    def shapes(self, name: str) -> Shapes:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import SafetensorsParsingError

        with hub.explained_errors(_FIELD, self._repository, ModelSourceError):
            try:
                read = HfApi(token=self._token).parse_safetensors_file_metadata
                found = read(self._repository, name, revision=self._commit)
            except (SafetensorsParsingError, AttributeError, IndexError, TypeError, RecursionError) as error:
                raise ValueError("has a header that is none of safetensors") from error
        tensors = {name: vars(tensor) for name, tensor in found.tensors.items()}
        kept = ("dtype", "shape", "data_offsets")
        return shapes_in_entries({name: {key: tensor[key] for key in kept} for name, tensor in tensors.items()})


def store_of(source: str, version: str, token: str | None, directory: Path, names: set[str]) -> Store:
    """Where the weights of a model are.

    Args:
        source: As in `ModelConfig`; no GGUF file.
        version: Its commit, on the hub.
        token: Hub token.
        directory: Its other files, on this disk.
        names: Names of all of its files.
    """
    if kind_of(source) == "hub":
        return _Repository(source, version, token, directory, names)
    return Folder(source)


def check(
    source: str, store: Store | None, names: Collection[str], architecture: Architecture | None
) -> Iterator[Problem]:
    """Whether every weight is there, and which others are.

    Args:
        source: The base model, as the run names it.
        store: Where its weights are; None for a GGUF file, which is checked when it is read.
        names: Names of all of its files.
        architecture: The architecture that the weights must fill; None if not known.
    """
    if ADAPTER_CONFIG in names:
        remedy = "Nothing is to be done, unless the run is to begin from the adapter: then name it as lora.resume_from."
        yield Problem.coded("model-holds-adapter", _FIELD, source, models.ADAPTER_BESIDE, remedy)
    if store is None:
        return
    held = attempt(lambda: weights_in(store, source), _FIELD, source)
    yield from held.findings
    if held.value is None:
        return
    weights = held.value
    if weights.unread:
        yield _unused(source, NOT_READ.format(examples(weights.unread)))
    if architecture is None:
        return
    fits = attempt(lambda: require_fit(architecture, weights.shapes, source), _FIELD, source)
    yield from fits.findings
    if fits.value:
        yield _unused(source, NO_PLACE.format(examples(fits.value)))


def _unused(source: str, message: str) -> Problem:
    return Problem.coded("model-weights-unused", _FIELD, source, message, "See that these are the files you mean.")
