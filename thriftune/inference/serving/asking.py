"""What the HTTP process and the decoding process say to each other. Both are plain values, so that they can be sent."""

from dataclasses import dataclass
from typing import Literal

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Ask:
    """A request for one answer.

    Attributes:
        uid: Identity of the answer.
        model: Name of the adapter that answers, or `base`.
        prompt: Token ids of the question.
        max_tokens: Longest answer, in tokens; at most what the model has positions for.
        temperature: 0 always takes the likeliest token; above 0, tokens are drawn.
        top_p: Share of the probability from which tokens are drawn.
        seed: Seed of the draws.
        stop: Texts before which the answer ends.
        is_streamed: Whether its text is wanted while it is made, or only at the end.
    """

    uid: str
    model: str
    prompt: tuple[int, ...]
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    is_streamed: bool = False


@dataclass(frozen=True)
class Cancel:
    """An answer that nobody waits for any more."""

    uid: str


@dataclass(frozen=True)
class Piece:
    """A part of an answer.

    Attributes:
        uid: Identity of the answer.
        text: The text that is new; may be empty.
        tokens: Tokens of the answer so far, without the one that ended it.
        finish: Why the answer ended; None while it goes on.
        error: What went wrong with it, in one line; empty if nothing did. An answer with an error has ended.
    """

    uid: str
    text: str
    tokens: int
    finish: Finish | None = None
    error: str = ""

    @property
    def is_last(self) -> bool:
        """Whether nothing comes after it."""
        return self.finish is not None or bool(self.error)


@dataclass(frozen=True)
class Report:
    """What one step of the decoder brought.

    Attributes:
        pieces: Parts of answers.
        rows: Answers that the step worked on.
        waiting: Answers that wait for a place.
    """

    pieces: tuple[Piece, ...]
    rows: int
    waiting: int
