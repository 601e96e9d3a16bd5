"""What was trained, asked once: its tokenizer, settings and stop tokens, its next tokens, and its answers."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import container
from thriftune.data.questions import encode_text, prompt_text
from thriftune.inference.parity.outputs import first_tokens, in_fp32, log_probabilities
from thriftune.inference.parity.rows import Asked, Row
from thriftune.models.answering import continue_batch
from thriftune.models.exporting.reading import InDirectory
from thriftune.models.exporting.tensors import StoredTensors
from thriftune.models.stopping import stop_tokens
from thriftune.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Whether the answer to each prompt stops; None of one that was not answered.
Stopping = Sequence[bool | None]

LONGEST_ANSWER = 64  # tokens
# Tokens of a prompt that is answered: eight of them and their answers take minutes.
_LONGEST_PROMPT = 512 - LONGEST_ANSWER
_GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
# Operations of one pass over the rows, and of the answers: minutes on the four CPUs of a pod.
_OPERATIONS = 2e13
# Factor: a model is read tensor by tensor, and the largest computes in 32 bits beside it.
_HELD = 1.25
_BESIDE_BYTES = 3 << 29  # log-probabilities that are kept, and those of a row
_GIB = 2**30


@dataclass(frozen=True)
class Reference:
    """What was trained.

    Attributes:
        tokenizer: Its tokenizer.
        config: Its configuration.
        stops: EOS, and what ends a turn: the tokens at which every export has to stop.
        listed: Other tokens at which it stops.
        weights: The directory of its weights; None where they are not those of one, as with an adapter on a base.
        asked: What it was asked.
        rows: The rows that were compared.
        likely: Its log-probabilities of the next tokens; None where it does not fit into memory.
        stopped: Whether each of its answers stops; None in the same case.
        dtype: Type in which it was held, and exports are.
        remark: Why something could not be measured; empty otherwise.
    """

    tokenizer: "PreTrainedTokenizerBase"
    config: "PretrainedConfig"
    stops: tuple[int, ...]
    listed: tuple[int, ...]
    weights: Path | None
    asked: Asked
    rows: Sequence[Row]
    likely: "Sequence[torch.Tensor] | None"
    stopped: Stopping | None
    dtype: "torch.dtype"
    remark: str = ""


def of_directory(model_dir: Path, asked: Asked, room: float | None = None) -> Reference:
    """A model directory: what was trained, or merged.

    Args:
        model_dir: Model directory.
        asked: What to ask.
        room: Bytes of memory that a model may take; None for what is free now.
    """
    directory = InDirectory(model_dir)
    tokenizer = load_tokenizer(model_dir, padding_side="left")
    config = directory.own_config()
    dtype, remark = held_in(model_dir, free_bytes() if room is None else room)
    rows = _affordable(first_tokens(asked.rows, config.get_text_config().vocab_size), parameters_in(model_dir))
    likely, stopped = None, None
    if dtype is not None:
        model = directory.load(config, dtype)
        likely, stopped = list(log_probabilities(model, rows)), which_stop(model, tokenizer, asked)
        del model
    stops = tuple(stop_tokens(tokenizer))
    listed = tuple(token for token in directory.stops if token not in stops)
    held: Any = dtype
    return Reference(tokenizer, config, stops, listed, model_dir, asked, rows, likely, stopped, held, remark)


def of_model(model: Any, tokenizer: "PreTrainedTokenizerBase", asked: Asked) -> Reference:
    """A model in memory, such as an adapter on its base.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        asked: What to ask.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    rows = _affordable(first_tokens(asked.rows, model.config.get_text_config().vocab_size), parameters)
    likely, stopped = list(log_probabilities(model, rows)), which_stop(model, tokenizer, asked)
    stops = tuple(stop_tokens(tokenizer))
    listed = tuple(t for t in stop_tokens(tokenizer, model.generation_config.eos_token_id) if t not in stops)
    return Reference(tokenizer, model.config, stops, listed, None, asked, rows, likely, stopped, model.dtype)


def which_stop(model: Any, tokenizer: "PreTrainedTokenizerBase", asked: Asked) -> Stopping:
    """Whether a stop token ends each greedy answer.

    Args:
        model: A language model in evaluation mode.
        tokenizer: Its tokenizer.
        asked: Prompts, and the form of a question.

    Returns:
        That of each prompt; None for a long one, where there are shorter ones.
    """
    encoded = [encode_text(prompt_text(p, tokenizer, asked.style), tokenizer, asked.style) for p in asked.prompts]
    longest = max(_LONGEST_PROMPT, min(map(len, encoded)))
    answered = [ids for ids in encoded if len(ids) <= longest]
    with in_fp32(model), _padding(tokenizer):
        said = continue_batch(model, tokenizer, answered, LONGEST_ANSWER, _GREEDY)
        stopped = iter([one.stopped for one in said])
    return [next(stopped) if len(ids) <= longest else None for ids in encoded]


@contextmanager
def _padding(tokenizer: "PreTrainedTokenizerBase") -> Iterator[None]:
    """Give a tokenizer that was read from a GGUF file without one a pad token, which no answer depends on."""
    before = tokenizer.pad_token
    if before is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    try:
        yield
    finally:
        tokenizer.pad_token = before


def free_bytes() -> float:
    """Bytes of memory that are free now, in this container."""
    import psutil

    limit = container.memory_fill()
    free = float(psutil.virtual_memory().available)
    return free if limit is None else min(free, (limit.size - limit.used) * _GIB)


def parameters_in(model_dir: Path) -> int:
    """Number of weights in a model's files.

    Args:
        model_dir: Model directory.
    """
    return sum(math.prod(shape) for shape in StoredTensors(model_dir).shapes.values())


def _affordable(rows: Sequence[Row], parameters: int) -> Sequence[Row]:
    """The first rows that take minutes, and at least one."""
    taken: list[Row] = []
    left = _OPERATIONS / (2 * parameters)
    for row in rows:
        left -= len(row.tokens)
        if taken and left < 0:
            break
        taken.append(row)
    return taken


def held_in(model_dir: Path, room: float) -> "tuple[torch.dtype | None, str]":
    """The type to hold a model in.

    Args:
        model_dir: Model directory.
        room: Bytes of memory that it may take.

    Returns:
        32 bits where there is room, else 16; or none if that does not fit either, and why.
    """
    import torch

    parameters = parameters_in(model_dir)
    for dtype, size in ((torch.float32, 4), (torch.float16, 2)):
        if _HELD * size * parameters + _BESIDE_BYTES <= room:
            return dtype, ""
    needed, free = (number / _GIB for number in (_HELD * 2 * parameters + _BESIDE_BYTES, room))
    remark = (
        f"To run the model takes {needed:.1f} GiB of memory, and {free:.1f} are free: next tokens and answers were not "
        "compared."
    )
    logger.warning(remark)
    return None, remark
