"""Answer prompts in batches, with a model and any number of adapters: those that can, in one batch."""

import gc
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.data.questions import encode_prompt, prompt_style
from thriftune.inference.answers import Answer
from thriftune.inference.asking import BASE, Question, questions_of
from thriftune.inference.prompts import Prompt, require_prompts
from thriftune.inference.usable import require_usable
from thriftune.models import mixed_batch
from thriftune.models.answering import Sampling, complete
from thriftune.models.loading import Placement, attach_adapters, load_model
from thriftune.models.mixed_batch import NO_ADAPTER, Load
from thriftune.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def generate(
    model_dir: Path,
    prompts: Sequence[str | Prompt],
    *,
    adapters: dict[str, Path],
    placement: Placement,
    sampling: Sampling,
    batch: int,
) -> list[Answer]:
    """Answer prompts with a model directory.

    Args:
        model_dir: A model: a base model, a fine-tuned or a merged one.
        prompts: The prompts. One that names an adapter, or `base`, is answered by that alone.
        adapters: Adapter directories by name; each of them answers every prompt that names none. If empty, the model
            itself does.
        placement: How to hold the model.
        sampling: How tokens are sampled.
        batch: Prompts per forward pass.

    Returns:
        One answer per prompt and adapter: adapter by adapter; or in the order of the prompts, if one of them names who
        answers.

    Raises:
        DataError: There are no prompts, one is empty, or one names an adapter that there is not.
        UserError: The model or an adapter is damaged, contains links out of its directory, or is a classifier.
    """
    asked = [Prompt(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]
    require_prompts([prompt.text for prompt in asked])
    questions = questions_of(asked, list(adapters))
    require_usable(model_dir, adapters)
    tokenizer = load_tokenizer(model_dir, padding_side="left")
    # Each adapter is asked in the form that it was trained on.
    styles = {name: prompt_style(path, tokenizer) for name, path in {BASE: model_dir, **adapters}.items()}
    encoded = [encode_prompt(question.text, tokenizer, styles[question.adapter]) for question in questions]
    texts: dict[int, str] = {}
    for load in _loads(questions, adapters):
        texts |= _answered(model_dir, load, questions, encoded, tokenizer, placement, sampling, batch)
        gc.collect()  # a peft model refers to itself, and two copies of a base may not fit
    return [Answer(question.text, question.adapter, texts[i]) for i, question in enumerate(questions)]


def _loads(questions: Sequence[Question], adapters: Mapping[str, Path]) -> Iterator[Load]:
    """The copies of the base that questions need, one after the other; that without adapters only where none has room.

    Args:
        questions: What is asked.
        adapters: Directories by name.
    """
    named = {question.adapter for question in questions}
    loads = list(mixed_batch.loads_of({name: path for name, path in adapters.items() if name in named}))
    if BASE in named and not any(load.mixed for load in loads):
        yield Load("", {}, frozenset())
    yield from loads


def _answered(
    model_dir: Path,
    load: Load,
    questions: Sequence[Question],
    encoded: Sequence[list[int]],
    tokenizer: "PreTrainedTokenizerBase",
    placement: Placement,
    sampling: Sampling,
    batch: int,
) -> dict[int, str]:
    """The answers of the adapters on one copy of the base, by the number of the question."""
    # torch allows no dot in a module's name, and adapters are named by their paths.
    internal = {name: f"adapter_{number}" for number, name in enumerate(load.adapters)}
    attached = {internal[name]: path for name, path in load.adapters.items()}
    model = attach_adapters(load_model(model_dir, placement), attached)
    model.eval()
    texts: dict[int, str] = {}
    for names in _passes(model, load, internal):
        asked = [i for i, question in enumerate(questions) if question.adapter in names]
        # The adapters' questions of one prompt come together: rows of a batch are then about equally long.
        asked.sort(key=lambda i: questions[i].prompt)
        answering = sorted({questions[i].adapter for i in asked})
        logger.info("Answering %d prompts with %s", len(asked), ", ".join(answering) or "nobody")
        rows = [encoded[i] for i in asked]
        mixed = [internal.get(questions[i].adapter, NO_ADAPTER) for i in asked] if len(answering) > 1 else None
        with _active(model, [internal[name] for name in answering if name != BASE]):
            texts |= zip(asked, complete(model, tokenizer, rows, sampling, batch, mixed), strict=True)
    return texts


@contextmanager
def _active(model: Any, names: Sequence[str]) -> Iterator[None]:
    """Have adapters answer: the first where rows name none; the base alone if there are none.

    Args:
        model: The base, with or without adapters on it.
        names: Names of those that answer.
    """
    if names:
        model.set_adapter(names[0])
        yield
    elif hasattr(model, "peft_config"):
        with model.disable_adapter():
            yield
    else:
        yield


def _passes(model: Any, load: Load, internal: Mapping[str, str]) -> Iterator[frozenset[str]]:
    """Names of those that answer in one batch, and of each that answers alone.

    Args:
        model: The base with the adapters.
        load: The adapters.
        internal: Their names on the model.
    """
    if not load.adapters:
        yield frozenset({BASE})
        return
    reasons = {name: mixed_batch.unbatchable_on(model, internal[name]) for name in load.adapters}
    together = frozenset(name for name, reason in reasons.items() if not reason)
    if together or load.mixed:  # where nobody else answers in one batch after all, the base does
        yield together | {BASE}
    for name, reason in reasons.items():
        if reason:
            logger.info("%s answers in batches of its own: %s", name, reason)
            yield frozenset({name})
