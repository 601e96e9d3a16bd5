"""The same prompts and rows in llama.cpp itself, where its Python package is installed; it is no dependency of ours."""

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.data.questions import encode_text, prompt_text
from thriftune.inference.parity.differences import Difference
from thriftune.inference.parity.rows import Asked, Row
from thriftune.models.next_tokens import Compared, compare

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_LONGEST_ROW = 512  # tokens: it keeps the logits of each


@dataclass(frozen=True)
class InLlamaCpp:
    """What llama.cpp made of a file.

    Attributes:
        version: Version of its Python package.
        compared: Its next tokens beside the reference's.
        stopped: Whether its greedy answer to each prompt stops; None where prompt and answer do not fit.
        differences: Prompts that it makes other tokens of.
    """

    version: str
    compared: Compared
    stopped: list[bool | None]
    differences: list[Difference]


def is_installed() -> bool:
    """Whether llama.cpp's Python package is installed."""
    return importlib.util.find_spec("llama_cpp") is not None


def run(
    file: Path,
    tokenizer: "PreTrainedTokenizerBase",
    asked: Asked,
    rows: Sequence[Row],
    reference: "Sequence[torch.Tensor]",
    longest: int,
    tied: float,
) -> InLlamaCpp | Difference:
    """Read a file with llama.cpp, and ask it what was asked of the reference.

    Args:
        file: A GGUF file.
        tokenizer: Tokenizer of what was trained.
        asked: Prompts, and the form of a question.
        rows: Rows.
        reference: Log-probabilities of what was trained on the rows.
        longest: Most tokens of an answer.
        tied: As in `outputs.compare`.

    Returns:
        What it made of the file, or that it cannot read it.
    """
    llama_cpp: Any = importlib.import_module("llama_cpp")

    kept = [number for number, row in enumerate(rows) if len(row.tokens) <= _LONGEST_ROW]
    try:
        model: Any = llama_cpp.Llama(str(file), n_ctx=_LONGEST_ROW, logits_all=True, verbose=False)
    except ValueError as error:
        return Difference("llama.cpp", f"it cannot read the file: {error}")
    try:
        encoded = [encode_text(prompt_text(p, tokenizer, asked.style), tokenizer, asked.style) for p in asked.prompts]
        found = list(_differences(model, tokenizer, asked, encoded))
        found_likely = _log_probabilities(model, [rows[number] for number in kept])
        compared = compare([reference[number] for number in kept], found_likely, tied)
        stopped = [
            _ends(llama_cpp, model, ids, longest) if len(ids) + longest <= _LONGEST_ROW else None for ids in encoded
        ]
    finally:
        model.close()
    return InLlamaCpp(str(llama_cpp.__version__), compared, stopped, found)


def _differences(
    model: Any, tokenizer: "PreTrainedTokenizerBase", asked: Asked, encoded: Sequence[list[int]]
) -> Iterator[Difference]:
    """The first prompt that becomes other tokens."""
    for prompt, ids in zip(asked.prompts, encoded, strict=True):
        text = prompt_text(prompt, tokenizer, asked.style)
        has_bos = bool(ids) and ids[0] == tokenizer.bos_token_id
        starts = has_bos and not text.startswith(str(tokenizer.bos_token))
        found = list(model.tokenize(text.encode(), add_bos=starts, special=True))
        if found != ids:
            at = next((n for n, pair in enumerate(zip(found, ids, strict=False)) if pair[0] != pair[1]), len(ids))
            names = [tokenizer.convert_ids_to_tokens(some[at : at + 3]) for some in (found, ids)]
            yield Difference("tokens", f"llama.cpp makes {names[0]} of {prompt[:40]!r} where {names[1]} was")
            return


def _log_probabilities(model: Any, rows: Sequence[Row]) -> "Iterator[torch.Tensor]":
    import torch

    for row in rows:
        model.reset()
        model.eval(list(row.tokens))
        logits = torch.from_numpy(model.scores[: len(row.tokens)].copy())
        yield logits[[place - 1 for place in row.trained]].float().log_softmax(-1)


def _ends(library: Any, model: Any, prompt: list[int], longest: int) -> bool:
    """Whether a greedy answer ends with a token that llama.cpp takes for an end.

    Token by token: its own completion counts no token while a text ends within a character of several bytes.
    """
    vocabulary = library.llama_model_get_vocab(model.model)
    model.reset()
    said = islice(model.generate(prompt, temp=0.0, repeat_penalty=1.0), longest)
    return any(library.llama_vocab_is_eog(vocabulary, token) for token in said)
