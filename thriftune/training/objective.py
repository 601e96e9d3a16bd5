"""What a model learns from a row, to write its tokens or to name its class: loss, measures and answers of each.

Training, validation and evaluation ask the objective, so that none of them knows which one it is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from thriftune.data.tokenization import IGNORED
from thriftune.models.answering import Sampling, complete
from thriftune.models.classifier import logits_of
from thriftune.models.next_tokens import Seen

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

# The loss of a pass from the outputs of a model, the labels of its rows and the number of labels of the whole step, as
# the Trainer asks for it.
LossFunction = Callable[..., "torch.Tensor"]


class Objective(Protocol):
    """What a model learns.

    Attributes:
        loss_function: For the Trainer; None where the loss that the model itself computes is right.
        unit: What the loss is a mean of.
    """

    loss_function: LossFunction | None
    unit: str

    def measure(
        self, model: Any, inputs: "Mapping[str, torch.Tensor]", seen: Seen | None = None
    ) -> "tuple[torch.Tensor, ...]":
        """Measure a batch of rows.

        Args:
            model: The model, in evaluation mode.
            inputs: Tensors of shape [rows, tokens], including the labels.
            seen: Told of each row's outputs.

        Returns:
            Tensors of shape [rows]: the summed loss and the number of labels of each row; of a classifier also the
            likeliest class, and that of the label.
        """

    def answers(
        self,
        model: Any,
        tokenizer: "PreTrainedTokenizerBase",
        prompts: Sequence[list[int]],
        longest: int,
        batch: int,
    ) -> Iterator[str]:
        """What the model says to prompts.

        Args:
            model: The model, in evaluation mode.
            tokenizer: Its tokenizer.
            prompts: Token ids of each prompt.
            longest: Most tokens of an answer.
            batch: Prompts per forward pass.

        Yields:
            The answer to each, in order.
        """


class Language(Objective):
    """To continue a text: the loss is a mean over the trained tokens, and an answer is a text."""

    loss_function = None
    unit = "tokens"

    def measure(
        self, model: Any, inputs: "Mapping[str, torch.Tensor]", seen: Seen | None = None
    ) -> "tuple[torch.Tensor, ...]":
        """Summed loss and number of trained tokens of each row."""
        import torch

        given, losses = dict(inputs), []
        labels = given.pop("labels")[:, 1:]
        with torch.no_grad():
            # Row by row: the outputs of a batch are its largest tensor, and the loss needs as much again.
            for logits, expected in zip(model(**given).logits[:, :-1], labels, strict=True):
                each = torch.nn.functional.cross_entropy(
                    logits.float(), expected, ignore_index=IGNORED, reduction="none"
                )
                losses.append(each.double().sum())
                if seen:
                    seen(logits, (expected != IGNORED).nonzero()[:, 0])
        return torch.stack(losses), (labels != IGNORED).sum(1)

    def answers(
        self,
        model: Any,
        tokenizer: "PreTrainedTokenizerBase",
        prompts: Sequence[list[int]],
        longest: int,
        batch: int,
    ) -> Iterator[str]:
        """The likeliest continuations."""
        yield from complete(model, tokenizer, prompts, Sampling(longest), batch)


class Classification(Objective):
    """To name the class of a text: the loss is a mean over rows, and an answer is a class with its probability.

    Args:
        labels: Names of the classes.
    """

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels, self.unit = tuple(labels), "rows"
        self.loss_function: LossFunction | None = _mean_over_step

    def measure(
        self, model: Any, inputs: "Mapping[str, torch.Tensor]", seen: Seen | None = None
    ) -> "tuple[torch.Tensor, ...]":
        """Loss, 1, likeliest class and true class of each row."""
        import torch

        given = dict(inputs)
        classes = class_numbers(given.pop("labels"))
        with torch.no_grad():
            logits = logits_of(model, given)
            losses = torch.nn.functional.cross_entropy(logits, classes.to(logits.device), reduction="none")
        if seen:
            for row in logits:
                seen(row[None], torch.zeros(1, dtype=torch.long))
        return losses.double(), torch.ones_like(classes), logits.argmax(1), classes

    def answers(
        self,
        model: Any,
        tokenizer: "PreTrainedTokenizerBase",
        prompts: Sequence[list[int]],
        longest: int,
        batch: int,
    ) -> Iterator[str]:
        """The likeliest class of each text, with its probability."""
        import torch

        device = next(model.parameters()).device
        for start in range(0, len(prompts), batch):
            part = list(prompts[start : start + batch])
            padded = tokenizer.pad({"input_ids": part}, padding_side="right", return_tensors="pt").to(device)
            given = {name: padded[name] for name in ("input_ids", "attention_mask")}
            with torch.no_grad():  # not inference mode: a training may go on with these weights
                shares, numbers = logits_of(model, given).softmax(1).max(1)
            for share, number in zip(shares.tolist(), numbers.tolist(), strict=True):
                yield f"{self._labels[number]} ({share:.0%})"


def class_numbers(labels: "torch.Tensor") -> "torch.Tensor":
    """The class of each row, which stands at its last token.

    Args:
        labels: Shape [rows, tokens]: the number of a class once in each row, `IGNORED` elsewhere.

    Returns:
        Shape [rows]; `IGNORED` for a row without a class.
    """
    return labels.amax(1)


def _mean_over_step(outputs: Any, labels: "torch.Tensor", num_items_in_batch: Any) -> "torch.Tensor":
    """Mean over the rows of the whole step, on all ranks: models compute a mean over those of a pass.

    Args:
        outputs: What the model returned.
        labels: Shape [rows, tokens].
        num_items_in_batch: Number of labels of the step.
    """
    import torch

    logits = outputs["logits"].float()
    classes = class_numbers(labels).to(logits.device)
    summed = torch.nn.functional.cross_entropy(logits, classes, ignore_index=IGNORED, reduction="sum")
    mean: torch.Tensor = summed / num_items_in_batch
    return mean


LANGUAGE = Language()


def objective_of(labels: Sequence[str]) -> Objective:
    """The objective of a run.

    Args:
        labels: Names of the classes of a classifier; none for a causal language model.
    """
    return Classification(labels) if labels else LANGUAGE
