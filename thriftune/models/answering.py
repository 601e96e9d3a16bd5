"""Continuing token sequences with a model: greedy, or drawn from its distribution."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thriftune.models.positions import answer_room
from thriftune.models.stopping import before_stop, stop_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Sampling:
    """How answers are generated.

    Attributes:
        max_new_tokens: Longest answer, in tokens.
        temperature: 0 always takes the likeliest token; above 0, tokens are drawn from the distribution.
        seed: Seed of the draws.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    seed: int = 0


def complete(
    model: Any, tokenizer: "PreTrainedTokenizerBase", prompts: Sequence[list[int]], sampling: Sampling, batch: int
) -> Iterator[str]:
    """Continue token sequences.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer; padding is on the left, whatever the tokenizer's setting.
        prompts: Token ids of each prompt.
        sampling: How answers are generated.
        batch: Prompts per forward pass.

    Yields:
        The continuation of each prompt, in order, without special tokens: up to EOS, the token with which the chat
        template ends a turn, or another stop token of the model's generation_config.

    Raises:
        ConfigError: A prompt leaves no room for an answer in the model's position table.
    """
    import torch
    from transformers import set_seed

    if sampling.temperature > 0:  # so that answering does not change a training's random numbers
        set_seed(sampling.seed)
    device = next(model.parameters()).device
    stops = stop_tokens(tokenizer, model.generation_config.eos_token_id)
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        padded = tokenizer.pad({"input_ids": part}, padding_side="left", return_tensors="pt").to(device)
        longest = answer_room(model, padded["input_ids"].shape[1], sampling.max_new_tokens)
        drawing: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if sampling.temperature > 0:
            drawing = {"do_sample": True, "temperature": sampling.temperature}
        with torch.no_grad():  # not inference mode: a training may go on with these weights
            generated = model.generate(
                **padded,
                max_new_tokens=longest,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=stops,
                **drawing,
            )
        for row in generated[:, padded["input_ids"].shape[1] :].tolist():
            yield str(tokenizer.decode(before_stop(row, stops), skip_special_tokens=True)).strip()
