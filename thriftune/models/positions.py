"""Rows longer than a model's positions: allowed by most models, an index error in those with a position table.

Rotary embeddings and ALiBi are computed for any position. A learned table (GPT-2, OPT), or one of sines that is filled
once (GPT-J, CTRL), has an end: a look-up beyond it is an index error, on a GPU an assertion that kills the process.
"""

import logging
from typing import TYPE_CHECKING, Any

from thriftune.batching import PAD_MULTIPLE
from thriftune.errors import ConfigError
from thriftune.models.architecture import Architecture
from thriftune.models.decoder_config import positions_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# A table may have more rows than positions: OPT, BioGPT and TrOCR do not use the first two.
_ROWS_BESIDE = 4


def table_length(model: "PreTrainedModel") -> int | None:
    """Number of positions in a model's position table; None if it has no table.

    Args:
        model: The model; the meta device is enough.
    """
    import torch

    made_for, tokens = positions_of(model.config.get_text_config()), model.get_input_embeddings()
    if made_for is None:
        return None
    found = []
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module is not tokens:
            if made_for <= module.num_embeddings <= made_for + _ROWS_BESIDE:
                unused = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa starts after it
                found.append(min(made_for, module.num_embeddings - unused))
        elif any(
            buffer.is_floating_point() and buffer.ndim == 2 and buffer.shape[0] == made_for != buffer.shape[1]
            for buffer in module.buffers(recurse=False)
        ):
            found.append(made_for)
    return min(found, default=None)


def require_positions(architecture: Architecture, max_length: int, virtual_tokens: int = 0) -> None:
    """Refuse rows that are longer than a model's position table.

    Args:
        architecture: Architecture of the base model.
        max_length: data.max_length, in tokens.
        virtual_tokens: Positions before a row, of a trained prefix.

    Raises:
        ConfigError: Padded rows may be longer than the table.
    """
    length = table_length(architecture.skeleton)
    if length is None or -(-max_length // PAD_MULTIPLE) * PAD_MULTIPLE <= length - virtual_tokens:
        return
    raise ConfigError.single(
        "data.max_length",
        max_length,
        f"{architecture.name} has a table of {length} positions, and fails with a longer row (rows are padded to "
        f"multiples of {PAD_MULTIPLE}{f', after {virtual_tokens} of the prefix' if virtual_tokens else ''}).",
        f"Use at most {(length - virtual_tokens) // PAD_MULTIPLE * PAD_MULTIPLE}.",
        code="max-length-beyond-table",
    )


def answer_room(model: "PreTrainedModel", prompt: int, wanted: int) -> int:
    """Tokens that an answer may have: the wanted number, or fewer if the model's position table ends before.

    Args:
        model: The model that answers.
        prompt: Tokens of the question.
        wanted: Longest answer, in tokens.

    Raises:
        ConfigError: There is no room for an answer.
    """
    length = table_length(model)
    configs: Any = getattr(model, "peft_config", {})
    prompt += max((getattr(each, "num_virtual_tokens", None) or 0 for each in configs.values()), default=0)
    if length is None or prompt + wanted <= length:
        return wanted
    if prompt >= length:
        message = f"the model has a table of {length} positions, which leaves no room for an answer."
        raise ConfigError.single("prompts", f"{prompt} tokens", message, "Ask shorter questions.")
    logger.warning("Answers end after %d tokens: the model has %d positions", length - prompt, length)
    return length - prompt
