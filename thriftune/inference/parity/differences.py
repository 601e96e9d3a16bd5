"""What differs between what was trained and an export before any number is computed: text, tokens and settings."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Literal

from thriftune.config import DataFormat
from thriftune.data.questions import encode_text, prompt_text
from thriftune.errors import DataError
from thriftune.models.chat_template import text_of
from thriftune.models.exporting.gguf_vocabulary import content_of, is_of_pieces

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

    from thriftune.models.exporting.reading import Candidate
    from thriftune.models.exporting.tensors import StoredTensors

What = Literal[
    "template", "bos", "eos", "turn-end", "special-tokens", "vocabulary", "tokens", "settings", "weights", "outputs",
    "answers", "llama.cpp",
]  # fmt: skip
_NONE: Mapping[str, Any] = {}
_PLAIN = "Two and two are 4.\n  Caf\u00e9, 2026!"
_NAMED = 3
_SHOWN = 40
_PART = 1 << 24  # weights that are compared at a time: in 64 bits, an embedding would take many GB
_CLOSE = 1e-5  # relative: a GGUF file holds settings in 32 bits
# Settings that decide a model's numbers; what an architecture does not have is not compared.
_SETTINGS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "hidden_act",
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """Something in which an export is not what was trained.

    Attributes:
        what: Its name.
        detail: What it was, and what it is.
    """

    what: What
    detail: str

    def __str__(self) -> str:
        return f"{self.what}: {self.detail}"


def in_text(
    trained: "PreTrainedTokenizerBase",
    stops: Sequence[int],
    candidate: "Candidate",
    prompts: Sequence[str],
    style: DataFormat,
) -> Iterator[Difference]:
    """What differs in template, special tokens, vocabulary, and the tokens of the same prompts.

    Args:
        trained: Tokenizer of what was trained.
        stops: The tokens that end an answer of what was trained: EOS and what ends a turn.
        candidate: The export.
        prompts: Questions.
        style: Form of a question in training.

    Yields:
        Each difference, by its name.
    """
    found = candidate.tokenizer()
    yield from _template(trained, candidate)
    yield from _special(trained, found, stops, candidate.stops)
    yield from _plain_text(trained, candidate)
    yield from _vocabulary(trained, found)
    yield from _merges(trained, found, candidate)
    yield from _around(trained, found)
    yield from _prompts(trained, found, prompts, style)


def in_settings(
    trained: "PretrainedConfig", found: "PretrainedConfig", changed: Mapping[str, Any] = _NONE
) -> Iterator[Difference]:
    """What differs in the settings that decide a model's numbers.

    Args:
        trained: Configuration of what was trained.
        found: That of the export.
        changed: Settings that were changed on purpose, as they should be.

    Yields:
        One difference, which names all of them.
    """
    pairs = [(n, changed.get(n, getattr(trained, n, None)), getattr(found, n, None)) for n in _SETTINGS]
    ropes = [dict(getattr(config, "rope_parameters", None) or {}) for config in (trained, found)]
    pairs += [(f"rope_parameters.{name}", ropes[0][name], ropes[1].get(name)) for name in sorted(ropes[0])]
    wrong = [f"{name} is {ours} and was {was}" for name, was, ours in pairs if was is not None and not _same(was, ours)]
    if wrong:
        yield Difference("settings", ", ".join(wrong))


def in_weights(
    trained: "StoredTensors", found: "Iterable[tuple[str, torch.Tensor]]", allowed: float
) -> tuple[float | None, list[Difference], Collection[str]]:
    """What differs in the weights, one tensor in memory at a time.

    Args:
        trained: The weights of what was trained.
        found: Those of the export, by their names; of others than there are in what was trained, nothing is compared.
        allowed: Most relative error of a tensor.

    Returns:
        The largest error, None if there was no weight to compare; one difference that names the worst tensors; and the
        names of those that were compared.
    """
    errors: dict[str, float] = {}
    for name, tensor in found:
        if name not in trained:
            continue
        was = trained.get(name)
        errors[name] = relative_error(was, tensor) if was.shape == tensor.shape else float("inf")
    wrong = sorted((name for name, error in errors.items() if not error <= allowed), key=errors.__getitem__)[::-1]
    if not wrong:
        return max(errors.values(), default=None), [], errors
    shown = ", ".join(f"{name} by {errors[name]:.3g}" for name in wrong[:_NAMED])
    detail = f"{len(wrong)} of {len(errors)} tensors differ by more than {allowed:g} of their norm: {shown}"
    return errors[wrong[0]], [Difference("weights", detail)], errors


def relative_error(trained: "torch.Tensor", found: "torch.Tensor") -> float:
    """The norm of the difference of two tensors by the norm of the first.

    Args:
        trained: The tensor.
        found: What came of it.
    """
    norm = error = 0.0
    for start in range(0, trained.numel(), _PART):
        was, ours = (one.reshape(-1)[start : start + _PART].double() for one in (trained, found))
        norm += float(was.square().sum())
        error += float((ours - was).square().sum())
    return math.sqrt(error / norm if norm else error)


def _same(was: Any, found: Any) -> bool:
    if isinstance(was, float) or isinstance(found, float):
        return found is not None and abs(was - found) <= _CLOSE * abs(was)
    return bool(was == found)


def _template(trained: "PreTrainedTokenizerBase", candidate: "Candidate") -> Iterator[Difference]:
    was, found = text_of(trained), candidate.template
    if was == found:
        return
    at = next((place for place, pair in enumerate(zip_longest(was, found)) if pair[0] != pair[1]), 0)
    was_there, is_there = (repr(text[at : at + _SHOWN]) for text in (was, found))
    yield Difference(
        "template", f"from character {at + 1} of the chat template on it is {is_there} and was {was_there}"
    )


def _special(
    trained: "PreTrainedTokenizerBase", found: "PreTrainedTokenizerBase", stops: Sequence[int], theirs: Sequence[int]
) -> Iterator[Difference]:
    ids: tuple[What, What] = ("bos", "eos")
    for what in ids:
        was, is_now = getattr(trained, f"{what}_token_id"), getattr(found, f"{what}_token_id")
        if was != is_now:
            yield Difference(what, f"the token is {_shown(found, is_now)} and was {_shown(trained, was)}")
    lost = [stop for stop in stops if stop not in theirs and stop != trained.eos_token_id]
    if lost:
        names = ", ".join(_shown(trained, stop) for stop in lost)
        yield Difference("turn-end", f"{names} no longer ends an answer")
    if trained.eos_token_id is not None and trained.eos_token_id not in theirs:
        yield Difference("eos", f"{_shown(trained, trained.eos_token_id)} no longer ends an answer")
    added = [token.content for token in trained.added_tokens_decoder.values()]
    # Some published tokenizers split a token of theirs themselves.
    broken = [name for name in added if _ids(found, name) != _ids(trained, name)]
    if broken:
        names = ", ".join(map(repr, broken[:_NAMED]))
        yield Difference("special-tokens", f"{len(broken)} are no longer one token, such as {names}")


def _vocabulary(trained: "PreTrainedTokenizerBase", found: "PreTrainedTokenizerBase") -> Iterator[Difference]:
    was, ours = trained.get_vocab(), found.get_vocab()
    lost = [token for token, number in was.items() if ours.get(token) != number]
    if lost:
        detail = f"{len(lost)} of {len(was)} tokens are gone or have another id, such as {lost[0]!r}"
        yield Difference("vocabulary", detail)


def _plain_text(trained: "PreTrainedTokenizerBase", candidate: "Candidate") -> Iterator[Difference]:
    """Added tokens that a program would take for text like any other."""
    lost = candidate.plain_text(list(trained.added_tokens_decoder))
    if lost:
        names = ", ".join(_shown(trained, token) for token in lost[:_NAMED])
        yield Difference("special-tokens", f"{len(lost)} are text like any other, such as {names}")


def _merges(
    trained: "PreTrainedTokenizerBase", found: "PreTrainedTokenizerBase", candidate: "Candidate"
) -> Iterator[Difference]:
    """Pairs of tokens that are joined: a text that shows a lost one may not be among the prompts."""
    was, ours = (_merges_of(tokenizer) for tokenizer in (trained, found))
    if was == ours or (candidate.gguf is not None and is_of_pieces(trained)):  # whose file holds scores in their place
        return
    at = next(place for place, pair in enumerate(zip_longest(was, ours)) if pair[0] != pair[1])
    shown = " and ".join(map(repr, was[at] if at < len(was) else ours[at]))
    detail = f"merges differ from number {at + 1:,} on, of {shown}; there are {len(ours):,} and were {len(was):,}"
    yield Difference("vocabulary", detail)


def _merges_of(tokenizer: "PreTrainedTokenizerBase") -> list[Any]:
    model = content_of(tokenizer).get("model", {})
    return [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model.get("merges", ())]


def _around(trained: "PreTrainedTokenizerBase", found: "PreTrainedTokenizerBase") -> Iterator[Difference]:
    """BOS before a plain text, and EOS after it."""
    was, ours = (list(one(_PLAIN)["input_ids"]) for one in (trained, found))
    for what, end in (("bos", 0), ("eos", -1)):
        token = getattr(trained, f"{what}_token_id")
        before, after = was[end] == token, ours[end] == token
        if token is not None and before != after:
            name: What = "bos" if what == "bos" else "eos"
            yield Difference(
                name, f"{_shown(trained, token)} is {'added to' if after else 'no longer at'} a plain text"
            )
    plain, theirs = (list(one(_PLAIN, add_special_tokens=False)["input_ids"]) for one in (trained, found))
    yield from _tokens(repr(_PLAIN), plain, theirs, trained)


def _prompts(
    trained: "PreTrainedTokenizerBase", found: "PreTrainedTokenizerBase", prompts: Sequence[str], style: DataFormat
) -> Iterator[Difference]:
    """The first prompt whose text or tokens differ, if there is one."""
    for prompt in prompts:
        was = prompt_text(prompt, trained, style)
        try:
            ours = prompt_text(prompt, found, style)
        except DataError as error:
            yield Difference("template", f"it refuses {prompt[:_SHOWN]!r}: {error.problems[0].message}")
            return
        if was != ours:
            yield Difference("template", f"{prompt[:_SHOWN]!r} becomes {ours[-_SHOWN:]!r} and was {was[-_SHOWN:]!r}")
            return
        ids = [encode_text(was, one, style) for one in (trained, found)]
        different = list(_tokens(repr(prompt[:_SHOWN]), ids[0], ids[1], trained))
        if different:
            yield from different
            return


def _tokens(
    text: str, was: Sequence[int], ours: Sequence[int], trained: "PreTrainedTokenizerBase"
) -> Iterator[Difference]:
    if list(was) == list(ours):
        return
    at = next(place for place, pair in enumerate(zip_longest(was, ours)) if pair[0] != pair[1])
    names = [", ".join(_shown(trained, token) for token in ids[at : at + _NAMED]) or "nothing" for ids in (ours, was)]
    yield Difference("tokens", f"of {text} token {at + 1} on is {names[0]} and was {names[1]}")


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _shown(tokenizer: "PreTrainedTokenizerBase", token: int | None) -> str:
    return "none" if token is None else f"{tokenizer.convert_ids_to_tokens(token)!r}"
