"""How far the next tokens that a model holds likely are from another's: KL divergence, and the likeliest one."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Told of each row that a model computes: its outputs [tokens, vocabulary], and the places among them that count.
Seen = Callable[["torch.Tensor", "torch.Tensor"], None]
# Bytes of a model's log-probabilities that are kept until another model computes the same rows.
KEPT_BYTES = 1 << 28
# Most bytes of the outputs of several rows that are computed together, in fp32; those of one row may be more.
OUTPUT_BYTES = 1 << 28


@dataclass(frozen=True)
class Compared:
    """How far the next tokens of a model are from the reference's.

    Attributes:
        rows: Rows compared.
        tokens: Tokens compared.
        kl: KL divergence, the mean over the tokens, in nats.
        agreement: Share of tokens where the model's likeliest is the reference's, or one that is as likely there.
    """

    rows: int
    tokens: int
    kl: float
    agreement: float

    @property
    def text(self) -> str:
        """Both numbers, in words."""
        return f"KL divergence {self.kl:.3g} nats, likeliest next token agrees for {self.agreement:.1%}"


class Comparison:
    """Log-probabilities of two models, compared row by row.

    Args:
        tied: Tokens that the reference holds likely within so many nats are equally likely.
    """

    def __init__(self, tied: float) -> None:
        self._tied, self._rows, self._tokens = tied, 0, 0
        self._divergence, self._agreeing = 0.0, 0

    def add(self, trained: "torch.Tensor", made: "torch.Tensor") -> None:
        """Compare a row.

        Args:
            trained: Log-probabilities of what was trained, [positions, vocabulary].
            made: Those of the model.
        """
        import torch

        size = min(trained.shape[-1], made.shape[-1])  # rows of an embedding beyond the vocabulary
        was, ours = trained[:, :size], made[:, :size]
        kl = (was.exp() * (was - ours)).sum(-1)
        self._divergence += float(kl.sum()) if bool(torch.isfinite(kl).all()) else float("inf")
        likely = was.gather(-1, ours.argmax(-1, keepdim=True))[:, 0]
        self._agreeing += int((was.max(-1).values - likely <= self._tied).sum())
        self._rows, self._tokens = self._rows + 1, self._tokens + trained.shape[0]

    @property
    def compared(self) -> Compared:
        """Means over all tokens; infinite where a number is not finite, and no numbers where nothing was compared."""
        if not self._tokens:  # which is no agreement
            return Compared(0, 0, float("nan"), float("nan"))
        kl, agreement = max(0.0, self._divergence / self._tokens), self._agreeing / self._tokens
        return Compared(self._rows, self._tokens, kl, agreement)


def compare(reference: "Iterable[torch.Tensor]", found: "Iterator[torch.Tensor]", tied: float) -> Compared:
    """Compare log-probabilities.

    Args:
        reference: Those of what was trained, row by row.
        found: Those of the model.
        tied: Tokens within so many nats are equally likely.

    Returns:
        As `Comparison.compared`.
    """
    comparison = Comparison(tied)
    for trained, made in zip(reference, found, strict=True):
        comparison.add(trained, made)
    return comparison.compared


class Kept:
    """What a model holds likely at some of the positions of each row, until other models compute the same rows.

    At most `KEPT_BYTES`: of long rows, or of many with a large vocabulary, positions at equal distances are kept.

    Args:
        rows: Number of rows that will be kept.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._likely: list[torch.Tensor] = []

    def keep(self, logits: "torch.Tensor", places: "torch.Tensor") -> None:
        """Keep a row.

        Args:
            logits: Outputs of the model, [tokens, vocabulary].
            places: Those of them that count, in order.
        """
        self._likely.append(self._some(logits, places))

    def beside(self, comparison: Comparison) -> Seen:
        """What another model tells of the same rows, in the same order, for it to be compared.

        Args:
            comparison: Where each row is added.
        """
        left = iter(self._likely)
        return lambda logits, places: comparison.add(next(left), self._some(logits, places))

    def _some(self, logits: "torch.Tensor", places: "torch.Tensor") -> "torch.Tensor":
        import torch

        most = max(1, KEPT_BYTES // (4 * logits.shape[-1] * self._rows))
        if len(places) > most:
            places = places[torch.linspace(0, len(places) - 1, most).round().long()]
        return logits[places].float().log_softmax(-1).cpu()
