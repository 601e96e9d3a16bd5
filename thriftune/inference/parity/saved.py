"""Whether a saved or merged result has the text and settings of the model it came from, at the end of each run.

Files are compared, not weights, so that it takes seconds; what merging measured of next tokens is held to its limits.
What differs is written into the result's manifest: a result
is never lost for it, and never published.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune import artifacts
from thriftune.data.questions import prompt_style
from thriftune.errors import Problem, ResultParityError
from thriftune.inference.parity import differences, rows
from thriftune.inference.parity.allowed import ALLOWED
from thriftune.inference.parity.differences import Difference
from thriftune.inference.parity.report import beyond, measures_of
from thriftune.models.classifier import content_of, is_classifier
from thriftune.models.exporting.reading import InDirectory
from thriftune.models.exporting.tensors import StoredTensors
from thriftune.models.next_tokens import Compared
from thriftune.models.stopping import stop_tokens

if TYPE_CHECKING:
    from transformers import PretrainedConfig

logger = logging.getLogger(__name__)

_KEY = "differences"  # in the manifest of a result
_STOPS = "generation_config.json"
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")


def compare(
    model_dir: Path,
    result: Path,
    dataset_dir: Path,
    *,
    next_tokens: Compared | None = None,
    added_layers: int = 0,
    trust_remote_code: bool = False,
) -> list[Difference]:
    """Compare a result with the model it came from, and write what differs into its manifest.

    What training changes on purpose is no difference: the list of tokens that end an answer grows, a pad token is
    chosen, a classifier has another head, layers are added, and an output head is no longer the embedding.

    Args:
        model_dir: The model it came from.
        result: The finished model directory.
        dataset_dir: The prepared dataset, whose held-out questions are compared token by token.
        next_tokens: Those of a merged model beside the adapter on its base, where they were measured.
        added_layers: How many layers the training added.
        trust_remote_code: Run code that the model ships.

    Returns:
        All that differs; a result that cannot be read differs, and raises nothing.
    """
    base, made = (_Result(directory, trust_remote_code=trust_remote_code) for directory in (model_dir, result))
    found = list(_all(base, made, rows.prompts_of(dataset_dir), added_layers))
    if next_tokens:
        found += beyond(measures_of(next_tokens, ALLOWED["merged"]))
    if found:
        artifacts.change_manifest(result, {_KEY: [{"what": one.what, "detail": one.detail} for one in found]})
        logger.error(sentence_of(found))
    return found


def sentence_of(found: list[Difference]) -> str:
    """What differs, for a reader of a run's numbers.

    Args:
        found: What differs.
    """
    named = "; ".join(map(str, found))
    return f"The result is not what was trained, and will not be published, though it is kept. {named}."


def require_same(result: Path, kept: str) -> None:
    """Refuse a result that is not what was trained.

    Args:
        result: A finished model or adapter directory.
        kept: Where everything is, for the message.

    Raises:
        ResultParityError: It was found to differ when it was made; names all.
    """
    remedy = f"Everything is kept ({kept}). Put right the file that is named, or train again, and publish by hand."
    problems = [
        Problem("result", one["what"], f"{one['detail']}.", remedy)
        for one in artifacts.read_content(result).get(_KEY, [])
    ]
    if problems:
        raise ResultParityError(problems)


class _Result(InDirectory):
    """A result, or the model it came from.

    Other programs know no template: only what is listed in the file ends an answer there.
    """

    @property
    def stops(self) -> tuple[int, ...]:
        """The tokens that end an answer; of a classifier, which writes none, those of its tokenizer."""
        return super().stops if self.classifies else tuple(self.listed)

    @property
    def classifies(self) -> bool:
        """Whether it is a classifier."""
        return is_classifier(content_of(self.directory))

    @property
    def listed(self) -> list[int]:
        """The tokens that are listed as ends of an answer."""
        listed: Any = content_of(self.directory, _STOPS).get("eos_token_id")
        return [] if listed is None else [listed] if isinstance(listed, int) else list(listed)


def _all(base: _Result, made: _Result, prompts: tuple[str, ...], added_layers: int) -> Iterator[Difference]:
    """What differs; the model it came from was read before, so that what cannot be read is the result's fault."""
    tokenizer, config = base.tokenizer(), base.own_config().get_text_config()
    stops = [] if made.classifies else stop_tokens(tokenizer, base.listed)
    try:
        style = prompt_style(made.directory, tokenizer)
        yield from differences.in_text(tokenizer, stops, made, prompts, style)
    except Exception as error:  # noqa: BLE001 - tokenizers raises no other; after hours of training nothing may be lost
        yield Difference("tokens", f"its tokenizer cannot be used: {error}")
    try:
        changed = _changed(config, made.directory, added_layers)
        yield from differences.in_settings(config, made.own_config().get_text_config(), changed)
    except Exception as error:  # noqa: BLE001 - the same, of transformers
        yield Difference("settings", f"its config.json cannot be used: {error}")


def _changed(config: "PretrainedConfig", result: Path, added_layers: int) -> dict[str, Any]:
    """The settings that training changes on purpose, as they should be."""
    changed: dict[str, Any] = {}
    if added_layers:
        changed["num_hidden_layers"] = config.num_hidden_layers + added_layers
    if getattr(config, "tie_word_embeddings", False) and any(head in StoredTensors(result).shapes for head in _HEADS):
        changed["tie_word_embeddings"] = False
    return changed
