"""Choosing the next token of each row, as the model's own `generate` does where it takes the likeliest."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thriftune.errors import ModelSourceError
from thriftune.models.answering import COLDEST

if TYPE_CHECKING:
    import torch

# Settings in a model's generation_config.json that change which token is the likeliest, with their values that do not.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "encoder_repetition_penalty": (None, 1, 1.0),
    "bad_words_ids": (None, []),
    "sequence_bias": (None, {}),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "exponential_decay_length_penalty": (None,),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
    "guidance_scale": (None, 1, 1.0),
    "penalty_alpha": (None, 0, 0.0),
    "dola_layers": (None,),
    "watermarking_config": (None,),
}


def require_known(generation_config: Any, source: object) -> None:
    """Refuse a model whose generation_config asks for what the server's decoder does not do.

    Args:
        generation_config: The model's.
        source: The model, for the message.

    Raises:
        ModelSourceError: Names the setting.
    """
    for name, harmless in _HARMLESS.items():
        value = getattr(generation_config, name, None)
        if value not in harmless:
            message = f"its generation_config.json sets {name} to {value}, which the server does not apply."
            remedy = f"Remove {name} from the file, or answer with workflows/generate.py."
            raise ModelSourceError.single("--base", source, message, remedy)


@dataclass(frozen=True)
class Choice:
    """How the tokens of one row are chosen.

    Attributes:
        temperature: 0 always takes the likeliest.
        top_p: Share of the probability from which tokens are drawn.
        penalty: The model's repetition penalty; 1 is none.
        generator: Source of the draws.
    """

    temperature: float
    top_p: float
    penalty: float
    generator: "torch.Generator"

    @property
    def is_plain(self) -> bool:
        """Whether it is the likeliest token, and nothing else."""
        return self.temperature == 0 and self.penalty == 1


def choice_of(temperature: float, top_p: float, seed: int, penalty: float) -> Choice:
    """How the tokens of a row are chosen.

    Args:
        temperature: 0 always takes the likeliest.
        top_p: Share of the probability from which tokens are drawn.
        seed: Seed of the draws, which depend on nothing else: not on the other rows of the batch.
        penalty: The model's repetition penalty; 1 is none.
    """
    import torch

    return Choice(temperature, top_p, penalty, torch.Generator().manual_seed(seed))


def choose(logits: "torch.Tensor", choices: Sequence[Choice], seen: Sequence[Sequence[int]]) -> list[int | None]:
    """Choose the next token of each row.

    Args:
        logits: Scores, [rows, vocabulary].
        choices: How each row chooses.
        seen: The tokens of each row so far, with its question.

    Returns:
        One token a row; None where the scores are no numbers, as after an overflow in fp16. That is an error of this
        row alone.
    """
    import torch

    scores = logits.float()
    likeliest: list[int] = scores.argmax(-1).tolist()
    usable: list[bool] = torch.isfinite(scores.amax(-1)).tolist()
    tokens: list[int | None] = []
    for row, choice in enumerate(choices):
        if not usable[row]:
            tokens.append(None)
        else:
            tokens.append(likeliest[row] if choice.is_plain else _chosen(scores[row].cpu(), choice, seen[row]))
    return tokens


def _chosen(scores: "torch.Tensor", choice: Choice, seen: Sequence[int]) -> int:
    """The next token of a row that does not just take the likeliest. The scores are its own."""
    import torch

    if choice.penalty != 1:
        ids = torch.tensor(sorted(set(seen)))
        old = scores[ids]
        scores = scores.index_put((ids,), torch.where(old < 0, old * choice.penalty, old / choice.penalty))
    if choice.temperature == 0:
        return int(scores.argmax())
    # Differences, and no division by what is 0 in 32 bits: else a tiny temperature makes scores that are no numbers.
    warmed = (scores - scores.max()) / max(choice.temperature, COLDEST)
    shares, order = torch.softmax(warmed, -1).sort(descending=True)
    before = shares.cumsum(-1) - shares
    shares = shares.masked_fill(before >= choice.top_p, 0.0)  # the likeliest always stays
    return int(order[torch.multinomial(shares, 1, generator=choice.generator)])
