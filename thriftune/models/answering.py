"""Continuing token sequences with a model: greedy, or drawn from its distribution."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thriftune.models import mixed_batch
from thriftune.models.positions import answer_room
from thriftune.models.stopping import before_stop, stop_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A lower temperature draws the likeliest token, too: scores divided by it may be no numbers.
COLDEST = 1e-6


@dataclass(frozen=True)
class Sampling:
    """How answers are generated.

    Attributes:
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 always takes the likeliest token; above 0, tokens are drawn from the distribution.
        seed: Seed of the draws, from 0 to 2^32 - 1.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Continuation:
    """What a model wrote after a prompt.

    Attributes:
        text: It, without special tokens.
        tokens: Number of its tokens, without the one that ended it.
        stopped: Whether a stop token ended it, and not its longest length.
    """

    text: str
    tokens: int
    stopped: bool


def complete(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[list[int]],
    sampling: Sampling,
    batch: int,
    adapter_names: Sequence[str] | None = None,
) -> Iterator[str]:
    """Continue token sequences.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer; padding is on the left, whatever the tokenizer's setting.
        prompts: Token ids of each prompt.
        sampling: How answers are generated.
        batch: Prompts per forward pass.
        adapter_names: Which of the model's adapters continues each prompt, as `continue_batch` takes it.

    Yields:
        The continuation of each prompt, in order, without special tokens: up to EOS, the token with which the chat
        template ends a turn, or another stop token of the model's generation_config.

    Raises:
        ConfigError: A prompt leaves no room for an answer in the model's position table.
    """
    from transformers import set_seed

    if sampling.temperature > 0:  # so that answering does not change a training's random numbers
        set_seed(sampling.seed)
    drawing: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if sampling.temperature > 0:
        drawing = {"do_sample": True, "temperature": max(sampling.temperature, COLDEST)}
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        names = None if adapter_names is None else adapter_names[start : start + batch]
        said = continue_batch(model, tokenizer, part, sampling.max_new_tokens, drawing, names)
        yield from (one.text for one in said)


def continue_batch(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    drawing: Mapping[str, Any],
    adapter_names: Sequence[str] | None = None,
) -> Iterator[Continuation]:
    """Continue the token sequences of one batch.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer.
        prompts: Token ids of each prompt.
        max_new_tokens: Longest answer, in tokens.
        drawing: How the model's `generate` chooses tokens.
        adapter_names: Which of the model's adapters continues each prompt, by its name on the model, or
            `thriftune.models.mixed_batch.NO_ADAPTER`; only names that `mixed_batch.batchable` lets through. None leaves
            that to the model: the adapter that is active.

    Yields:
        The continuation of each prompt, in order.

    Raises:
        ConfigError: A prompt leaves no room for an answer in the model's position table.
    """
    import torch

    stops = stop_tokens(tokenizer, model.generation_config.eos_token_id)
    device = next(model.parameters()).device
    padded = tokenizer.pad({"input_ids": list(prompts)}, padding_side="left", return_tensors="pt").to(device)
    longest = answer_room(model, padded["input_ids"].shape[1], max_new_tokens)
    mixed = {} if adapter_names is None else {"adapter_names": list(adapter_names)}
    whole = mixed_batch.whole_modules(model) if mixed else []
    with mixed_batch.sharing(whole), torch.no_grad():  # not inference mode: a training may go on with these weights
        generated = model.generate(
            **padded,
            max_new_tokens=longest,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=stops,
            **drawing,
            **mixed,
        )
    for row in generated[:, padded["input_ids"].shape[1] :].tolist():
        said = before_stop(row, stops)
        text = str(tokenizer.decode(said, skip_special_tokens=True)).strip()
        yield Continuation(text, len(said), len(said) < len(row))
