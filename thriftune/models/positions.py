"""Rows longer than a model has positions for: a matter of taste for most, an index error for those that own a table.

Rotary embeddings and ALiBi are computed for any position. A learned table (GPT-2, OPT) and one of sinuses that was
filled once (GPT-J, CTRL) end, and looking further up is an index error, on a GPU an assertion that kills the process.
"""

import logging
from typing import TYPE_CHECKING

from thriftune.batching import PAD_MULTIPLE
from thriftune.errors import ConfigError
from thriftune.models.architecture import Architecture
from thriftune.models.decoder_config import positions_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

# A table may have more rows than positions: OPT, BioGPT and TrOCR leave the first two out.
_ROWS_BESIDE = 4


def table_length(model: "PreTrainedModel") -> int | None:
    """Positions in the table that a model looks them up in; None where it has none.

    Args:
        model: The model, on the meta device too.
    """
    import torch

    made_for, tokens = positions_of(model.config.get_text_config()), model.get_input_embeddings()
    if made_for is None:
        return None
    found = []
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module is not tokens:
            if made_for <= module.num_embeddings <= made_for + _ROWS_BESIDE:
                unused = 0 if module.padding_idx is None else module.padding_idx + 1  # RoBERTa begins behind it
                found.append(min(made_for, module.num_embeddings - unused))
        elif any(
            buffer.is_floating_point() and buffer.ndim == 2 and buffer.shape[0] == made_for != buffer.shape[1]
            for buffer in module.buffers(recurse=False)
        ):
            found.append(made_for)
    return min(found, default=None)


def require_positions(architecture: Architecture, max_length: int) -> None:
    """Refuse rows that a model has no positions for.

    Args:
        architecture: The base model's.
        max_length: data.max_length, in tokens.

    Raises:
        ConfigError: Rows may be longer than its table, once they are padded.
    """
    length = table_length(architecture.skeleton)
    if length is None or -(-max_length // PAD_MULTIPLE) * PAD_MULTIPLE <= length:
        return
    raise ConfigError.single(
        "data.max_length",
        max_length,
        f"{architecture.name} looks positions up in a table of {length}, and fails at a longer row (rows are padded to "
        f"multiples of {PAD_MULTIPLE}).",
        f"Use at most {length // PAD_MULTIPLE * PAD_MULTIPLE}.",
        code="max-length-beyond-table",
    )


def answer_room(model: "PreTrainedModel", prompt: int, wanted: int) -> int:
    """Tokens that an answer may have: as many as are wanted, or fewer where the model's position table ends.

    Args:
        model: The model that answers.
        prompt: Tokens of the question.
        wanted: Longest answer, in tokens.

    Raises:
        ConfigError: There is no room for any.
    """
    length = table_length(model)
    if length is None or prompt + wanted <= length:
        return wanted
    if prompt >= length:
        message = f"the model looks positions up in a table of {length}, which leaves no room for an answer."
        raise ConfigError.single("prompts", f"{prompt} tokens", message, "Ask shorter questions.")
    logger.warning("Answers end after %d tokens: the model has %d positions", length - prompt, length)
    return length - prompt
