"""The loss on general questions while a model learns a task: what it forgets shows there first."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from thriftune.data.examples import Conversation, MarkedText, RowError
from thriftune.data.general import general_items
from thriftune.data.items import Item
from thriftune.data.rendering import render
from thriftune.data.tokenization import IGNORED, Tokenization
from thriftune.distributed import Rank
from thriftune.models.stopping import stop_tokens
from thriftune.training.held_out import ALONE, RowLosses, row_losses

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class GeneralLoss:
    """Measures the loss of the right answers to general-mini.

    Args:
        tokenizer: The model's tokenizer.
        max_length: Longest row of the run, in tokens: a batch of its rows needs no less memory than one of these.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> None:
        self._tokenizer, self._max_length = tokenizer, max_length
        self.rows = general_rows(tokenizer)

    def measure(
        self, model: Any, batch: int, rank: Rank = ALONE, on_batch: Callable[[], None] = lambda: None
    ) -> RowLosses:
        """The loss of each answer, in the order of the items. Collective where there are several ranks.

        Args:
            model: The model, in evaluation mode.
            batch: Rows of the run per forward pass.
            rank: This process among those that share the rows.
            on_batch: Called after each batch of this process.
        """
        fitting = batch * self._max_length // max(self.rows["length"])
        return row_losses(model, self._tokenizer, self.rows, max(1, min(batch, fitting)), rank, on_batch)


def general_rows(tokenizer: "PreTrainedTokenizerBase") -> "Dataset":
    """The items of general-mini as rows in which the right answer alone carries loss: no question, and no end of turn.

    They are asked with the model's own chat template if it has one, whatever the format of the run's rows, so that
    runs on one model can be compared. The end of a turn is what a model learns from any task, and would hide a loss.

    Args:
        tokenizer: The model's tokenizer.

    Returns:
        Rows with input_ids, labels and length, as those of a prepared dataset.
    """
    from datasets import Dataset

    rows, stops = Tokenization(tokenizer).tokenize(_texts(tokenizer)), set(stop_tokens(tokenizer))
    return Dataset.from_dict(
        {
            "input_ids": [row.input_ids for row in rows],
            "labels": [[IGNORED if token in stops else token for token in row.labels] for row in rows],
            "length": [len(row.input_ids) for row in rows],
        }
    )


def _texts(tokenizer: "PreTrainedTokenizerBase") -> list[MarkedText]:
    if tokenizer.chat_template:
        try:
            return [_in_chat(item, tokenizer) for item in general_items()]
        except RowError as error:
            logger.warning("The general questions are asked without the model's chat template: %s", error)
    return [_bare(item) for item in general_items()]


def _in_chat(item: Item, tokenizer: "PreTrainedTokenizerBase") -> MarkedText:
    turns = (("user", item.question), ("assistant", item.accepted[0]))
    return render(Conversation(tuple({"role": role, "content": said} for role, said in turns)), tokenizer)


def _bare(item: Item) -> MarkedText:
    text = f"{item.question} {item.accepted[0]}"
    return MarkedText(text, ((len(item.question), len(text)),), item.question)
