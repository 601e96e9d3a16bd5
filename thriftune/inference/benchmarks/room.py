"""Whether items fit in a model's positions: lm-evaluation-harness would cut off their start without an error."""

from collections.abc import Iterable, Mapping
from typing import Any

from thriftune.errors import DataError
from thriftune.inference.benchmarks.own_items import Question
from thriftune.models.decoder_config import positions_of


def positions_left(model: Any) -> int | None:
    """Most tokens of a row: a model's positions, without those that a trained prefix takes.

    Args:
        model: The model, with or without adapters.

    Returns:
        Their number; None if the model does not say.
    """
    positions = positions_of(model.config.get_text_config())
    configs: Mapping[str, Any] = getattr(model, "peft_config", {})
    taken = max((getattr(each, "num_virtual_tokens", None) or 0 for each in configs.values()), default=0)
    return None if positions is None else positions - taken


def require_room(task: str, questions: Iterable[Question], positions: int | None, max_new_tokens: int) -> None:
    """Refuse an item that is longer than a model's positions.

    Args:
        task: Name of the benchmark.
        questions: Its items.
        positions: Of the model; None if it does not say.
        max_new_tokens: Longest written answer.

    Raises:
        DataError: Names the first item that is longer.
    """
    for question in questions:
        if positions is not None and question.length(max_new_tokens) > positions:
            needed, name = question.length(max_new_tokens), f"{task}/{question.item.id}"
            raise too_long(name, needed, positions, writes=not question.choices)


def too_long(name: str, needed: int, positions: int, *, writes: bool) -> DataError:
    """The error for an item that a model has too few positions for.

    Args:
        name: The item, as task/id.
        needed: Tokens of its prompt and of the longest answer.
        positions: Of the model.
        writes: Whether the model writes the answer.
    """
    message = f"needs {needed} tokens, and the model has {positions} positions."
    remedy = "Shorten or remove it, or ask with fewer examples (few_shot)."
    if writes:
        remedy = f"{remedy.removesuffix('.')}, or lower benchmarks.max_new_tokens."
    return DataError.single("benchmarks.tasks", name, message, remedy, code="benchmark-too-long")
