"""The base model's tokenizer: it loads, can do what the data needs, and its tokens are in the embedding table."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from thriftune.config import RunConfig
from thriftune.data.chat import read_messages
from thriftune.data.conversion import formats
from thriftune.data.examples import RowError
from thriftune.data.questions import encode_prompt
from thriftune.data.rendering import render
from thriftune.data.tokenization import require_usable
from thriftune.errors import DataError, Problem
from thriftune.models.architecture import Architecture
from thriftune.models.chat_template import SIMPLEST_CONVERSATIONS, turn_end
from thriftune.models.positions import table_length
from thriftune.models.tokenizer import load_usable
from thriftune.preflight.base_model import FIELD, BaseModel
from thriftune.preflight.findings import skipped
from thriftune.preflight.outcome import attempt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckedTokenizer:
    """The tokenizer, and its problems.

    Attributes:
        tokenizer: The tokenizer; None if rows cannot be tokenized with it.
        findings: Its problems.
    """

    tokenizer: "PreTrainedTokenizerBase | None" = None
    findings: tuple[Problem, ...] = ()


def check(config: RunConfig, base: BaseModel) -> CheckedTokenizer:
    """Load the tokenizer, and check that it can do what the run needs.

    Args:
        config: The run.
        base: Its base model, with its files on this disk.

    Returns:
        The tokenizer, if rows can be tokenized with it, and what was found.
    """
    directory, source = base.directory, config.model.source
    if directory is None or base.architecture is None:
        reason = "the base model could not be had" if directory is None else "config.json, read first, cannot be used"
        return CheckedTokenizer(findings=(skipped("tokenizer", reason),))
    logger.info("Preflight: the tokenizer")
    trust = config.model.trust_remote_code
    loaded = attempt(lambda: load_usable(directory, FIELD, source, trust_remote_code=trust), FIELD, source)
    if loaded.value is None:
        return CheckedTokenizer(findings=tuple(_named(found, source) for found in loaded.findings))
    tokenizer = loaded.value
    needs_template = any(row_format.is_chat for row_format in formats(config.data))
    usable = attempt(lambda: require_usable(tokenizer, needs_chat_template=needs_template), FIELD, source)
    if usable.failed:
        return CheckedTokenizer(findings=tuple(_named(found, source) for found in usable.findings))
    findings = [*_special_tokens(tokenizer, base.architecture, source)]
    if needs_template:
        findings += _end_of_turn(tokenizer)
    return CheckedTokenizer(tokenizer, tuple(findings))


def check_template(config: RunConfig, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Problem]:
    """Whether the chat template renders anything, for a run whose own conversations cannot be tried.

    Args:
        config: The run.
        tokenizer: Its tokenizer.
    """
    if not any(row_format.is_chat for row_format in formats(config.data)):
        return
    reasons = [_refusal(messages, tokenizer) for messages in SIMPLEST_CONVERSATIONS]
    if all(reasons):
        yield Problem.coded(
            "chat-template-fails",
            "data.format",
            "chat",
            f"not even the simplest conversation can be rendered: {reasons[0]}.",
            "Repair chat_template.jinja, or use another instruct model.",
        )


def _refusal(messages: Sequence[dict[str, str]], tokenizer: "PreTrainedTokenizerBase") -> str:
    try:
        render(read_messages(messages, "messages"), tokenizer)
    except RowError as error:
        return str(error)
    return ""


def check_prompts(
    config: RunConfig, tokenizer: "PreTrainedTokenizerBase", architecture: Architecture
) -> Iterator[Problem]:
    """Check the questions that the model answers before and after training.

    Args:
        config: The run.
        tokenizer: Its tokenizer.
        architecture: Of the base model.
    """
    evaluation = config.evaluation
    positions, table = architecture.longest_input, table_length(architecture.skeleton)
    for number, prompt in enumerate(evaluation.prompts):
        field = f"evaluation.prompts.{number}"
        ids, reason = _encoded(prompt, tokenizer, config)
        if not reason and table is not None and len(ids) >= table:
            reason = f"it has {len(ids)} tokens, and the model a table of {table} positions"
        if reason:
            yield Problem.coded(
                "evaluation-prompt-unusable", field, prompt[:80], f"{reason}.", "Write another, or remove it."
            )
        elif positions is not None and not config.labels and len(ids) + evaluation.max_new_tokens > positions:
            yield Problem.coded(
                "evaluation-prompt-too-long",
                field,
                f"{len(ids)} tokens",
                f"with {evaluation.max_new_tokens} tokens of an answer it needs more than {positions} positions.",
                "Shorten it, or ask for shorter answers.",
            )


def _encoded(prompt: str, tokenizer: "PreTrainedTokenizerBase", config: RunConfig) -> tuple[Sequence[int], str]:
    """The tokens of a prompt, or why there are none."""
    if not prompt.strip():
        return [], "it asks nothing"
    try:
        ids = encode_prompt(prompt, tokenizer, config.data.prompt_format)
    except DataError as error:
        return [], error.problems[0].message.removesuffix(".")
    return ids, "" if ids else "it makes no tokens"


def _named(found: Problem, source: str) -> Problem:
    """Name the model's source in place of the folder that the tokenizer was loaded from."""
    if found.field != FIELD:
        return found
    return replace(found, value=source)


def _special_tokens(tokenizer: "PreTrainedTokenizerBase", architecture: Architecture, source: str) -> Iterator[Problem]:
    """Compare pad and EOS with each other and with the embedding table."""
    pad, end = tokenizer.pad_token_id, turn_end(tokenizer)
    if tokenizer.pad_token in (tokenizer.eos_token, end.token if end else None):
        yield Problem.coded(
            "pad-is-eos",
            FIELD,
            source,
            f"has one token, {tokenizer.pad_token!r}, for both padding and the end of a text or turn.",
            "Nothing is lost here, where labels go by position; give it a pad token for other tools.",
        )
    rows = architecture.vocabulary
    if pad is not None and int(pad) >= rows:
        yield Problem.coded(
            "pad-outside-embedding",
            FIELD,
            source,
            f"the pad token {tokenizer.pad_token!r} has id {pad}, and the embedding table {rows} rows.",
            "Use a pad token that is among them, or enlarge the table and save the model.",
        )
    elif len(tokenizer) > rows:
        yield Problem.coded(
            "tokenizer-larger-than-embedding",
            FIELD,
            source,
            f"the tokenizer knows {len(tokenizer)} tokens, and the embedding table has {rows} rows.",
            "Enlarge the table, or see that no row holds the tokens past its end.",
        )


def _end_of_turn(tokenizer: "PreTrainedTokenizerBase") -> Iterator[Problem]:
    """Check the token that the chat template ends an answer with, if that is not EOS."""
    end = turn_end(tokenizer)
    if end is None or end.token == tokenizer.eos_token:
        return
    if end.token is not None:
        yield Problem.coded(
            "turn-end-is-not-eos",
            "data.format",
            "chat",
            f"a turn ends with {end.token!r}, which is not the tokenizer's EOS ({tokenizer.eos_token!r}): it is added "
            "to generation_config.eos_token_id of the model that is saved or merged.",
            "An adapter has no such file: whatever serves it on the base model has to be told to stop there.",
        )
        return
    ends = f"with {end.text!r}, which is no token of its own" if end.text else "with no token"
    yield Problem.coded(
        "turn-end-is-no-token",
        "data.format",
        "chat",
        f"a turn ends {ends}: EOS ({tokenizer.eos_token!r}) is put behind the last answer of each conversation, and "
        "behind no earlier one.",
        "Let chat_template.jinja write EOS at the end of every turn of the assistant.",
    )
