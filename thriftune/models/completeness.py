"""Whether every weight of a model is really there: transformers fills missing weights with random numbers.

It also renames, joins and ties weights while it loads them. So transformers itself is asked what a checkpoint lacks:
it loads tensors without data, made from the headers of the files, before any weight is read.
"""

import logging
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.config import ModelConfig
from thriftune.errors import ModelSourceError, Problem
from thriftune.models import architecture as architectures
from thriftune.models import classifier
from thriftune.models import config_json as model_config
from thriftune.models.architecture import Architecture, layer_of
from thriftune.models.classifier import Classes
from thriftune.models.tokenizer import load_tokenizer
from thriftune.models.weight_files import Folder, Shapes, weights_in

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

ADAPTER_CONFIG = "adapter_config.json"

# Parts of names that a wrapper leaves behind if it is saved instead of the model inside it.
_WRAPPERS = {
    "_orig_mod.": "torch.compile",
    "_fsdp_wrapped_module.": "FSDP",
    "_checkpoint_wrapped_module.": "activation checkpointing",
    "_forward_module.": "Lightning",
    "base_model.model.": "peft",
    "module.": "DistributedDataParallel",
}
_NAMED = 3  # examples in a message
NO_PLACE = "the model has no place for {}, which will not be used."
NOT_READ = "holds {} too, which will not be read."


def require_complete(directory: Path, source: str, *, trust_remote_code: bool = False) -> None:
    """Refuse a model directory whose weights do not fill the architecture in its config.json. Reads no weights.

    Args:
        directory: The directory.
        source: The model's source, for messages.
        trust_remote_code: Run model code that the model ships.

    Raises:
        ModelSourceError: Names the weights that are missing, damaged or of another shape.
    """
    weights = weights_in(Folder(directory), source)
    content = model_config.read(ModelConfig(source=str(directory)), token=None)
    name = str(directory) if trust_remote_code else source  # transformers looks for code in this directory
    theirs = classifier.labels_in(content)  # a base model that is a classifier has no head for the vocabulary
    shape = architectures.from_content(content, name, trust_remote_code=trust_remote_code, labels=theirs)
    require_fit(shape, weights.shapes, source)
    if weights.unread:
        logger.warning("%s %s", source, NOT_READ.format(examples(weights.unread)))


def require_fit(architecture: Architecture, shapes: Shapes, source: str) -> tuple[str, ...]:
    """Refuse weights that do not fill an architecture. Reads no weights.

    Args:
        architecture: The architecture to fill.
        shapes: Shape of each available tensor, by its name in the files.
        source: The model's source, for messages.

    Returns:
        Names of tensors that the architecture does not have.

    Raises:
        ModelSourceError: Names the weights that are missing or have another shape, and the likely cause.
    """
    import torch

    model = architecture.on_meta(torch.bfloat16)
    tensors = {name: torch.empty(shape, dtype=torch.bfloat16, device="meta") for name, shape in shapes.items()}
    with _quiet():
        _, unexpected = load_checked(
            type(model),
            None,
            source,
            new=architecture.new_head,
            config=model.config,
            state_dict=tensors,
            device_map={"": "meta"},
            dtype=torch.bfloat16,
        )
    return tuple(name for name in unexpected if not _is_replaced(name, architecture))


def load_causal_lm(
    model_dir: Path, *, trust_remote_code: bool = False, classes: Classes | None = None, **options: Any
) -> "PreTrainedModel":
    """`from_pretrained` of transformers without its silent repairs: the only way that a model is loaded.

    Args:
        model_dir: Model directory.
        trust_remote_code: Run model code that the model ships.
        classes: Classes of the classifier to make of it, with a head of its own; None for a causal language model.
        **options: Further arguments, such as `dtype` and `device_map`.

    Returns:
        The model, with all weights read from the directory; of a classifier, all but those of a new head.

    Raises:
        ModelSourceError: Weights are missing, of another shape or truncated, or an adapter lies next to them.
    """
    require_no_adapter(model_dir)
    weights_in(Folder(model_dir), str(model_dir))
    options |= {"trust_remote_code": trust_remote_code, "local_files_only": True}
    if classes is None:
        return load_checked(classifier.auto_class(()), model_dir, str(model_dir), **options)[0]
    source = ModelConfig(source=str(model_dir), trust_remote_code=trust_remote_code)
    shape = architectures.of(source, labels=classes.labels)
    options |= classifier.configuration(classes.labels)
    model_class, new = classifier.auto_class(classes.labels), shape.new_head
    with _quiet():  # of what is new, transformers warns at length
        model, unexpected = load_checked(model_class, model_dir, str(model_dir), new=new, **options)
    if unused := [name for name in unexpected if not _is_replaced(name, shape)]:
        logger.warning("%s: %s", model_dir, NO_PLACE.format(examples(unused)))
    classifier.set_pad(model, load_tokenizer(model_dir, trust_remote_code=trust_remote_code).pad_token_id)
    if new:
        classifier.draw_head(model, classes.seed)
    return model


def _is_replaced(name: str, architecture: Architecture) -> bool:
    """Whether a tensor is of the head for the vocabulary, which the head of a classifier stands in place of."""
    if not architecture.labels:
        return False
    language = replace(architecture, labels=()).skeleton
    head = classifier.head_of(language)
    return any(module is head and name.startswith(f"{of}.") for of, module in language.named_modules())


def load_checked(
    model_class: Any, place: Path | None, source: str, *, new: Collection[str] = (), **options: Any
) -> tuple["PreTrainedModel", tuple[str, ...]]:
    """`from_pretrained`, with a check of what it reports about the loaded weights.

    A missing buffer is not an error: it is computed from the configuration, not drawn at random.

    Args:
        model_class: The class, or an auto class.
        place: What to load; None if `options` has the tensors.
        source: The model's source, for messages.
        new: Names of the weights that may be missing, of a new head.
        **options: Further arguments of `from_pretrained`.

    Returns:
        The model, and the names of tensors that it does not have.

    Raises:
        ModelSourceError: Names the weights that are missing or have another shape, and the likely cause.
    """
    try:
        model, info = model_class.from_pretrained(
            place,
            ignore_mismatched_sizes=True,  # they are refused here, by name
            output_loading_info=True,
            **options,
        )
    except RuntimeError as error:
        if "conversion of the weights" not in str(error):
            raise
        raise ModelSourceError.single(
            "model.source",
            source,
            "some of its weights are parts of one (such as the matrices of all experts), and some parts are missing.",
            "Download or save the model again.",
            code="model-weights-missing",
        ) from error
    unexpected = tuple(sorted(info["unexpected_keys"]))
    missing = set(info["missing_keys"]).difference(new)
    if problems := _problems(model, missing, info["mismatched_keys"], unexpected, source):
        raise ModelSourceError.of("model-weights-missing", problems)
    if unexpected and not new:
        logger.warning("%s: %s", source, NO_PLACE.format(examples(unexpected)))
    return model, unexpected


def require_no_adapter(model_dir: Path, field: str = "model") -> None:
    """Refuse a directory with an adapter: transformers would put it on the model, or load another model for it.

    Args:
        model_dir: Model directory.
        field: The key that names it, for messages.

    Raises:
        ModelSourceError: There is one.
    """
    if not (model_dir / ADAPTER_CONFIG).is_file():
        return
    if not (model_dir / "config.json").is_file():
        raise ModelSourceError.single(
            field,
            model_dir,
            "is an adapter, not a model.",
            "Name the base model, and name this as its adapter.",
            code="model-incomplete",
        )
    raise ModelSourceError.single(
        field,
        model_dir,
        f"holds an adapter next to the model ({ADAPTER_CONFIG}), which transformers would put on it unasked.",
        "Move the adapter into its own directory, and name that where an adapter is wanted.",
    )


def wrapper_in(names: Collection[str]) -> str:
    """How tensors were saved, judging by their names: a sentence to put before a remedy, or nothing."""
    for part, wrapper in _WRAPPERS.items():
        if any(f".{part}" in f".{name}" for name in names):
            return f"Their names hold `{part}`, left by {wrapper}."
    return ""


def examples(names: Collection[str]) -> str:
    """The first few of several names, and how many more there are."""
    first = ", ".join(list(names)[:_NAMED])
    more = len(names) - _NAMED
    return f"{first} and {more} more" if more > 0 else first


def _problems(
    model: "PreTrainedModel",
    missing: Collection[str],
    mismatched: Collection[tuple[str, Sequence[int], Sequence[int]]],
    unexpected: Collection[str],
    source: str,
) -> list[Problem]:
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    absent = sorted(parameters.intersection(missing))
    problems = []
    if absent:
        message = f"{len(absent)} of {len(parameters)} weights are missing, such as {examples(absent)}."
        problems.append(Problem("model.source", source, message, _remedy(model, absent, unexpected)))
    shapes = [f"{name} is {_shape(stored)} and should be {_shape(needed)}" for name, stored, needed in mismatched]
    if shapes:
        message = f"weights have other shapes than config.json says: {examples(sorted(shapes))}."
        remedy = "Use the config.json that the weights were saved with."
        problems.append(Problem("model.source", source, message, remedy))
    return problems


def _remedy(model: "PreTrainedModel", missing: Collection[str], unexpected: Collection[str]) -> str:
    """What to do about missing weights, judging by what else is known about them."""
    if wrapped := wrapper_in(unexpected):
        is_adapted = any(".base_layer." in name or "lora_" in name for name in unexpected)
        what = "Merge the adapter into the model" if is_adapted else "Unwrap the model"
        return f"{wrapped} {what} before saving it, or remove that part from every name."
    head = classifier.head_of(model)
    if head is not None and all(model.get_parameter(name) is head.weight for name in missing):
        return (
            "Save the model with its head; if its head is its embedding, set tie_word_embeddings: true in config.json."
        )
    if all(layer_of(name) for name in missing):
        return "Bring all of its files, or the config.json that they were saved with if this one has more layers."
    return "Download or save the model again."


def _shape(shape: Sequence[int]) -> str:
    return "x".join(str(n) for n in shape)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the table and the progress bar of a load that reads no weights."""
    from transformers.utils import logging as transformers_logging

    level, shows_progress = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.CRITICAL)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if shows_progress:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
