"""What is said of an adapter whose weights are not those that a model needs: each by its name, and what to do."""

import logging
import re
from typing import TYPE_CHECKING

from thriftune.errors import AdapterError, Problem
from thriftune.models.completeness import examples, wrapper_in

if TYPE_CHECKING:
    from peft import PeftConfig

logger = logging.getLogger(__name__)

CODE = "adapter-weights-misfit"  # of a problem: weights are missing or do not fit
PREFIX = "base_model.model."  # starts every name in an adapter's file
LORA = "lora_"  # in the names of a LoRA adapter's weights
_SIZE_MISMATCH = re.compile(r"size mismatch for (\S+): .*?Size\((\[.*?\])\).*?Size\((\[.*?\])\)")


def remedy_of(config: "PeftConfig") -> str:
    """What to do about an adapter that does not fit.

    Args:
        config: Its configuration.
    """
    origin = config.base_model_name_or_path
    return f"Use the base model that it was trained on{f' ({origin})' if origin else ''}, or save it again."


def of_other_shape(error: RuntimeError, name: str, remedy: str, field: str, value: object) -> Exception:
    """The error for weights of another shape than the model needs; torch's own where it says something else.

    Args:
        error: What torch said.
        name: Name of the adapter on the model.
        remedy: What to do about it.
        field: The key that names the adapter, for messages.
        value: The value of that key.
    """
    found = _SIZE_MISMATCH.findall(str(error))
    if not found:
        return error
    shapes = [f"{in_file(key, name)} is {stored} and should be {needed}" for key, stored, needed in found]
    message = f"has weights with other shapes than the model needs: {examples(shapes)}."
    return AdapterError.single(field, value, message, remedy, code=CODE)


def require_all(missing: list[str], without_place: list[str], remedy: str, field: str, value: object) -> None:
    """Refuse an adapter with missing weights, or with weights that the model does not have.

    Args:
        missing: Names of missing weights.
        without_place: Names of weights that the model does not have.
        remedy: What to do about it.
        field: The key that names it, for messages.
        value: The value of that key.

    Raises:
        AdapterError: Names them.
    """
    if wrapped := wrapper_in([key.replace(PREFIX, "", 1) for key in without_place]):
        remedy = f"{wrapped} Unwrap the model before saving its adapter, or remove that part from every name."
    misplaced = [key for key in without_place if LORA in key]
    messages = []
    if missing:
        messages.append(f"{len(missing)} of its weights are missing, such as {examples(missing)}.")
    if misplaced:
        messages.append(f"the model has no place for {len(misplaced)} of its weights, such as {examples(misplaced)}.")
    if messages:
        raise AdapterError.of(CODE, [Problem(field, str(value), message, remedy) for message in messages])
    if without_place:
        logger.warning("%s = %s: the model has no place for %s", field, value, examples(without_place))


def in_file(key: str, name: str) -> str:
    """The name of a weight in an adapter's file, which leaves out the adapter's name.

    Args:
        key: Its name in the model.
        name: Name of the adapter on the model.
    """
    return key.replace(f".{name}", "", 1)


def refused(error: Exception, field: str, value: object) -> AdapterError:
    """The error for an adapter that peft itself refuses.

    Args:
        error: What peft said.
        field: The key that names the adapter, for messages.
        value: The value of that key.
    """
    text = " ".join(str(error).split())[:300]
    return AdapterError.single(
        field,
        value,
        f"peft cannot put it on the model: {text}.",
        "Use the base model that it was trained on.",
        code=CODE,
    )
