"""Classifiers: a decoder with an output head that has one output for each class, in place of that for the vocabulary.

transformers makes one of any decoder (`AutoModelForSequenceClassification`); the class is read at the last token of a
text. The head of a base model that is none yet is new: it is drawn here from the seed of the run, with numbers that
every 16-bit type holds exactly, so that each rank of each strategy begins with the same.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from thriftune.config import RunConfig
from thriftune.errors import ModelSourceError, UserError

if TYPE_CHECKING:
    import torch

# Names of the head in transformers' classifiers; peft trains modules of these names as a whole.
HEADS = ("score", "classifier")
_CLASS = "ForSequenceClassification"
_USUAL_SPREAD = 0.02


@dataclass(frozen=True)
class Classes:
    """The classes of a classifier.

    Attributes:
        labels: Their names, in the order of the head's outputs.
        seed: Seed of a new head.
    """

    labels: tuple[str, ...]
    seed: int = 0

    @classmethod
    def of(cls, config: RunConfig) -> Self | None:
        """The classes of a run; None if it trains no classifier.

        Args:
            config: The run.
        """
        return cls(config.labels, config.seed) if config.labels else None


def auto_class(labels: Sequence[str]) -> Any:
    """The class of transformers that builds and loads a model.

    Args:
        labels: Names of the classes; none for a causal language model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForSequenceClassification if labels else AutoModelForCausalLM


def configuration(labels: Sequence[str]) -> dict[str, Any]:
    """What transformers' configuration of a classifier says about its classes.

    Args:
        labels: Names of the classes.
    """
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: number for number, label in enumerate(labels)},
        "problem_type": "single_label_classification",
    }


def set_pad(model: Any, pad: int | None) -> None:
    """Tell a classifier its pad token: it reads the class at the last token that is another.

    Args:
        model: The classifier, or its configuration.
        pad: Id of the token; None for any, where only shapes matter.
    """
    config: Any = getattr(model, "config", model)
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        part.pad_token_id = (part.pad_token_id or 0) if pad is None else pad


def head_of(model: Any) -> Any:
    """The output head of a model: for the vocabulary, or for classes. None if it has none.

    Args:
        model: A model of transformers.
    """
    head = model.get_output_embeddings()
    return head if head is not None else next((getattr(model, n) for n in HEADS if hasattr(model, n)), None)


def draw_head(model: Any, seed: int) -> None:
    """Fill a new head, the same for a seed whatever the type and the device of its weights.

    Args:
        model: The classifier.
        seed: Seed of the draws.
    """
    import torch

    spread = getattr(model.config.get_text_config(), "initializer_range", None) or _USUAL_SPREAD
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in head_of(model).named_parameters():
        drawn = torch.zeros(parameter.shape)
        if name == "weight":
            drawn.normal_(0.0, spread, generator=generator)
        with torch.no_grad():
            parameter.copy_(drawn.to(torch.float16).to(torch.bfloat16))


def is_classifier(content: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of a classifier.

    Args:
        content: The parsed file.
    """
    named = content.get("architectures") or ()
    return isinstance(named, list) and any(str(name).endswith(_CLASS) for name in named)


def labels_in(content: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the classes of a model, in order; none if it is no classifier.

    Args:
        content: Its parsed config.json.
    """
    named = content.get("id2label")
    if not is_classifier(content) or not isinstance(named, dict):
        return ()
    return tuple(str(named[key]) for key in sorted(named, key=lambda key: int(key) if str(key).isdigit() else 0))


def require_same_classes(content: Mapping[str, Any], labels: Sequence[str], name: str) -> None:
    """Refuse a base model that is a classifier of other classes than a run has.

    Args:
        content: Its parsed config.json.
        labels: Names of the run's classes.
        name: The model's source, for messages.

    Raises:
        ModelSourceError: Names both.
    """
    theirs = labels_in(content)
    if theirs and theirs != tuple(labels):
        raise ModelSourceError.single(
            "classification.labels",
            ", ".join(labels),
            f"{name} is a classifier already, of the classes {', '.join(theirs)}.",
            "Name these, in this order, or use its base model.",
            code="model-config-invalid",
        )


def require_language(directory: Path, field: str) -> None:
    """Refuse to ask a classifier, or an adapter of one, for a text.

    Args:
        directory: The model or adapter, on this disk.
        field: The argument that names it, for messages.

    Raises:
        UserError: It is one.
    """
    model, adapter = content_of(directory), content_of(directory, "adapter_config.json")
    if is_classifier(model) or adapter.get("task_type") == peft_task(["any"]):
        named = f" of the classes {', '.join(labels)}" if (labels := labels_in(model)) else ""
        remedy = (
            "Load it with transformers.AutoModelForSequenceClassification, an adapter then with peft.PeftModel; "
            "docs/classification.md shows how."
        )
        raise UserError.single(field, directory, f"is a classifier{named}, which writes no text.", remedy)


def content_of(directory: Path, name: str = "config.json") -> dict[str, Any]:
    """What a model's directory says in a file; nothing where there is no such file: loading the model says that better.

    Args:
        directory: The directory of a model or of an adapter.
        name: Name of the file.
    """
    try:
        content = json.loads((directory / name).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def peft_task(labels: Sequence[str]) -> str:
    """The task that an adapter is made for, as peft names it; for a classifier, the head trains as a whole.

    Args:
        labels: Names of the classes; none for a causal language model.
    """
    return "SEQ_CLS" if labels else "CAUSAL_LM"


def logits_of(model: Any, inputs: "Mapping[str, torch.Tensor]") -> "torch.Tensor":
    """The outputs of a classifier in fp32: shape [rows, classes].

    Args:
        model: The classifier.
        inputs: Its input_ids and attention_mask, each of shape [rows, tokens].
    """
    logits: torch.Tensor = model(**inputs).logits.float()
    return logits
