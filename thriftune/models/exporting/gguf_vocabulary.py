"""A tokenizer as a GGUF file holds it: tokens, their kinds, merges or scores, and what is put around a text.

Two kinds are covered, which are nearly all of those that the covered architectures have: BPE over bytes (GPT-2's kind),
and BPE over characters with bytes for the others (sentencepiece's kind, as Llama 2 and Mistral have it).

A file only names the way in which a text is split before BPE. llama.cpp knows the names, so that a tokenizer that
splits in a way without a name is refused: llama.cpp would take its default for it, and make other tokens.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from thriftune.errors import ExportError
from thriftune.models.chat_template import text_of, turn_end
from thriftune.models.exporting.gguf_architectures import FIELD

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTES, PIECES = "gpt2", "llama"  # tokenizer.ggml.model
NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6  # gguf.TokenType
_OF_A_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# The token at which llama.cpp ends an answer where a file names none (llama-vocab.cpp): of bytes, of sentencepiece's.
_EOS_IF_NONE = {False: 11, True: 2}
_SPACE = "\u2581"
# How text is split before BPE, by llama.cpp's name (llama-vocab.cpp): the steps, and whether a token of the vocabulary
# is taken whole without its merges. `split` stands for the expression that transformers has under the same name.
_SPLITS: Mapping[str, tuple[tuple[Any, ...], bool]] = {
    "gpt-2": ((("bytes", True),), False),
    "smollm": ((("digits", True), ("bytes", True)), False),
    "llama-bpe": ((("split",), ("bytes", False)), True),
    "tekken": ((("split",), ("bytes", False)), True),
    "qwen2": ((("split",), ("bytes", False)), False),
}


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as a GGUF file holds it.

    Attributes:
        kind: tokenizer.ggml.model: gpt2 for BPE over bytes, llama for sentencepiece's.
        split: tokenizer.ggml.pre: how text is split before BPE.
        tokens: The tokens, in the order of their ids: one for each row of the embedding.
        types: Their kinds, as gguf.TokenType.
        scores: Which token is made first, highest first; only of sentencepiece's kind.
        merges: Pairs that are joined, first ones first; only of BPE over bytes.
        special: Token ids by what they are: bos, eos, unk, pad, eot (what ends a turn, if that is not EOS).
        adds: Whether BOS (`bos`), EOS (`eos`) and a space (`space`) are put around, or before, a plain text.
        template: The chat template; empty if there is none.
    """

    kind: str
    split: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    scores: tuple[float, ...]
    merges: tuple[str, ...]
    special: Mapping[str, int]
    adds: Mapping[str, bool]
    template: str


def vocabulary_of(tokenizer: "PreTrainedTokenizerBase", rows: int) -> Vocabulary:
    """The vocabulary of a tokenizer.

    Args:
        tokenizer: The model's tokenizer.
        rows: Rows of the model's embedding.

    Raises:
        ExportError: It is of a kind that a GGUF file cannot hold, or has more tokens than the embedding has rows.
    """
    content = content_of(tokenizer)
    if not content:
        raise _refused(tokenizer, "is a slow one, without a tokenizer.json")
    model = content["model"]
    if model.get("type") != "BPE":
        raise _refused(tokenizer, f"is of kind {model.get('type')}")
    tokens = _tokens(tokenizer, model["vocab"], rows)
    is_pieces = is_of_pieces(tokenizer)
    if tokenizer.eos_token_id is None:
        token = tokens[_EOS_IF_NONE[is_pieces]]
        raise _refused(tokenizer, f"has no EOS (llama.cpp would end an answer at its default, here {token!r})")
    split = _pieces_split(content, tokenizer) if is_pieces else _bytes_split(content, tokenizer)
    pairs = [pair.split(" ", 1) if isinstance(pair, str) else list(pair) for pair in model["merges"]]
    return Vocabulary(
        kind=PIECES if is_pieces else BYTES,
        split="default" if is_pieces else split,
        tokens=tuple(token or f"[PAD{number}]" for number, token in enumerate(tokens)),
        types=tuple(_types(tokenizer, tokens, model.get("unk_token"), is_pieces=is_pieces)),
        scores=tuple(_scores(tokens, pairs)) if is_pieces else (),
        merges=() if is_pieces else tuple(" ".join(pair) for pair in pairs),
        special=_special(tokenizer),
        adds=_adds(tokenizer) | ({"space": split == _SPACE} if is_pieces else {}),
        template=text_of(tokenizer),
    )


def split_of(name: str) -> tuple[Any, bool]:
    """The pre-tokenizer that a name in a file stands for, and whether tokens are taken whole without their merges.

    Args:
        name: tokenizer.ggml.pre.
    """
    from tokenizers import Regex, pre_tokenizers

    steps, is_whole = _SPLITS[name]
    made: list[Any] = []
    for step, *options in steps:
        if step == "digits":
            made.append(pre_tokenizers.Digits(individual_digits=options[0]))
        elif step == "bytes":
            made.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=options[0]))
        else:
            made.append(pre_tokenizers.Split(Regex(_expression(name)), behavior="isolated"))
    return (made[0] if len(made) == 1 else pre_tokenizers.Sequence(made)), is_whole


def content_of(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """The tokenizer as it works now, as in a tokenizer.json; empty for a slow one, which has no such form.

    Args:
        tokenizer: A tokenizer.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    content: dict[str, Any] = {} if backend is None else json.loads(backend.to_str())
    return content


def is_of_pieces(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a tokenizer is of sentencepiece's kind.

    Args:
        tokenizer: A tokenizer.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    return bool(getattr(getattr(backend, "model", None), "byte_fallback", False))


def _refused(tokenizer: "PreTrainedTokenizerBase", reason: str) -> ExportError:
    message = f"the tokenizer of {tokenizer.name_or_path} {reason}, which a GGUF file cannot say to llama.cpp."
    return ExportError.single(FIELD, "gguf", message, "Use int8, nf4, fp32, fp16 or bf16.")


def _tokens(tokenizer: "PreTrainedTokenizerBase", vocabulary: Mapping[str, int], rows: int) -> list[str | None]:
    """The token of each row of the embedding; None for a row without one."""
    known = {**vocabulary, **tokenizer.get_added_vocab()}
    largest = max(known.values())
    if largest >= rows:
        message = f"has a token with id {largest}, but the model's embedding has {rows} rows."
        raise ExportError.single("tokenizer", tokenizer.name_or_path, message, "Use the model's own tokenizer.")
    tokens: list[str | None] = [None] * rows
    for token, number in known.items():
        tokens[number] = token
    return tokens


def _types(
    tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[str | None], unknown: str | None, *, is_pieces: bool
) -> list[int]:
    special = {number: added.special for number, added in tokenizer.added_tokens_decoder.items()}
    special |= dict.fromkeys(tokenizer.all_special_ids, True)
    found = []
    for number, token in enumerate(tokens):
        if token is None:
            found.append(_UNUSED)
        elif is_pieces and token == unknown:
            found.append(_UNKNOWN)
        elif number in special:
            found.append(_CONTROL if special[number] else _USER)
        else:
            found.append(_BYTE if is_pieces and _OF_A_BYTE.fullmatch(token) else NORMAL)
    return found


def _scores(tokens: Sequence[str | None], merges: Sequence[Sequence[str]]) -> list[float]:
    """Scores that make sentencepiece join pairs in the order of the merges: the first merge has the highest."""
    ranks: dict[str, int] = {}
    for pair in merges:
        ranks.setdefault("".join(pair), len(ranks))
    last = len(ranks)
    return [0.0 if token is None or _OF_A_BYTE.fullmatch(token) else -float(ranks.get(token, last)) for token in tokens]


def _special(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int]:
    names = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "unk": tokenizer.unk_token_id}
    names["pad"] = tokenizer.pad_token_id
    end = turn_end(tokenizer)
    if end is not None and end.token is not None and end.token != tokenizer.eos_token:
        names["eot"] = tokenizer.convert_tokens_to_ids(end.token)
    return {name: int(number) for name, number in names.items() if number is not None}


def _adds(tokenizer: "PreTrainedTokenizerBase") -> dict[str, bool]:
    """What the tokenizer puts around a plain text: as it does, not as a setting says."""
    ids = list(tokenizer("a")["input_ids"])
    starts = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    ends = tokenizer.eos_token_id is not None and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
    return {"bos": starts, "eos": ends}


def _steps(content: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """The steps of a pre-tokenizer or normalizer, one after the other."""
    if not content:
        return []
    if content["type"] != "Sequence":
        return [content]
    inner = content.get("pretokenizers") or content.get("normalizers") or ()
    return [step for part in inner for step in _steps(part)]


def _bytes_split(content: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> str:
    """llama.cpp's name for how text is split before BPE over bytes.

    Raises:
        ExportError: It has none.
    """
    steps = _steps(content["pre_tokenizer"])
    normalized = [step["type"] for step in _steps(content["normalizer"]) if step["type"] != "NFC"]
    if normalized:
        raise _refused(tokenizer, f"changes text by {normalized[0]} first")
    is_whole = bool(content["model"].get("ignore_merges"))
    for name, (known, whole) in _SPLITS.items():
        if whole == is_whole and len(known) == len(steps) and all(map(_is(name), known, steps)):
            return name
    kinds = " and ".join(str(step["type"]) for step in steps) or "nothing"
    raise _refused(tokenizer, f"splits text by {kinds} in another way than {', '.join(_SPLITS)} do")


def _is(name: str) -> Any:
    """Whether a step of the table is a step of a pre-tokenizer."""

    def same(known: tuple[Any, ...], step: Mapping[str, Any]) -> bool:
        kind = step["type"]
        if kind == "Digits":
            return known == ("digits", step["individual_digits"])
        if kind == "ByteLevel":
            return known == ("bytes", step["use_regex"]) and not step["add_prefix_space"]
        if kind == "Split":
            is_plain = step["behavior"] == "Isolated" and not step["invert"]
            return known == ("split",) and is_plain and step["pattern"].get("Regex") == _expression(name)
        return False

    return same


def _expression(name: str) -> str:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    return str(GGUF_PRE_TOKENIZER_SPLITS[name])


def _pieces_split(content: Mapping[str, Any], tokenizer: "PreTrainedTokenizerBase") -> str:
    """What sentencepiece's kind puts before a text: a space (as the mark for one), or nothing.

    Raises:
        ExportError: It changes or splits text in another way.
    """
    prefix, marks = "", False
    for step in (*_steps(content["normalizer"]), *_steps(content["pre_tokenizer"])):
        if step["type"] == "Prepend" and step["prepend"] == _SPACE:
            prefix = _SPACE
        elif step["type"] == "Replace" and step["content"] == _SPACE and step["pattern"].get("String") == " ":
            marks = True
        elif step["type"] == "Metaspace" and step["replacement"] == _SPACE and not step["split"]:
            marks = True
            prefix = "" if step["prepend_scheme"] == "never" else _SPACE
        else:
            raise _refused(tokenizer, f"changes or splits text by {step['type']}")
    if not marks:
        raise _refused(tokenizer, f"does not write {_SPACE} for a space")
    return prefix
