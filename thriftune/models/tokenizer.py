"""The tokenizer of a model directory: pad token, padding side and end of text are decided here."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from thriftune.digests import sha256_of
from thriftune.errors import ModelSourceError, UserError
from thriftune.models.chat_template import TemplateFailsError, turn_end

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Names of tokens in published tokenizers that never occur in text, best first.
_PAD_NAMES = ("<pad>", "[PAD]", "<|pad|>", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>", "[UNK]")


def load_tokenizer(
    model_dir: Path, *, padding_side: Literal["left", "right"] = "right", trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a model directory.

    Args:
        model_dir: Directory with tokenizer files.
        padding_side: `right` for training, `left` for generation.
        trust_remote_code: Run tokenizer code that the model ships.

    Returns:
        The tokenizer, with a pad token from the vocabulary, which is not EOS if there is any other.
    """
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        model_dir, trust_remote_code=trust_remote_code, local_files_only=True
    )
    tokenizer.padding_side = padding_side
    tokenizer.pad_token = choose_pad_token(tokenizer)
    return tokenizer


def load_usable(
    model_dir: Path, field: str, source: str, *, trust_remote_code: bool = False
) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a model directory that a person named, where nobody has looked at it yet.

    Args:
        model_dir: Directory with tokenizer files.
        field: The key that names the model, for the message.
        source: The model, for the message.
        trust_remote_code: Run tokenizer code that the model ships.

    Raises:
        ModelSourceError: It cannot be loaded.
    """
    try:
        return load_tokenizer(model_dir, trust_remote_code=trust_remote_code)
    except UserError:
        raise
    except Exception as error:  # the tokenizers library raises nothing more particular
        text = " ".join(str(error).split())[:300]
        raise ModelSourceError.single(
            field,
            source,
            f"its tokenizer cannot be loaded ({type(error).__name__}: {text}).",
            "Repair tokenizer.json and tokenizer_config.json; code of its own needs model.trust_remote_code.",
            code="chat-template-fails" if isinstance(error, TemplateFailsError) else "tokenizer-broken",
        ) from error


def choose_pad_token(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A pad token that needs no new row in the embedding table.

    A pad token that equals EOS, or the token that ends a turn of the chat template, is dangerous where padding is
    masked by id: the end of an answer is then never learned. This package labels by position, so it is safe here, but
    other tools use the saved tokenizer too.

    Args:
        tokenizer: Any tokenizer.

    Returns:
        The tokenizer's own pad token if it ends nothing, else a suitable token of the vocabulary, else the tokenizer's
        own or EOS.
    """
    current, eos, end = tokenizer.pad_token, tokenizer.eos_token, turn_end(tokenizer)
    ends = (eos, end.token if end else None)
    if current is not None and current not in ends:
        return str(current)
    vocabulary = tokenizer.get_vocab()
    for name in (*_PAD_NAMES, tokenizer.unk_token):
        if name in vocabulary and name not in (*ends, tokenizer.bos_token):
            return str(name)
    return str(current or eos)


def fingerprint(tokenizer: "PreTrainedTokenizerBase", code: Path | None = None) -> str:
    """A SHA-256 of everything that decides how text becomes tokens, independent of the tokenizer's model.

    Args:
        tokenizer: Any tokenizer.
        code: Directory whose Python code it may run; None if it may run none.

    Returns:
        A digest of its rules and vocabulary, its special tokens, its chat template and that code. Releases of the
        tokenizers library may write the same rules in another way: compare fingerprints of one installation.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    if backend is not None:  # settings of its last call, not part of it
        rules = {name: rule for name, rule in rules.items() if name not in ("truncation", "padding")}
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    shipped = [] if code is None else [[[file.name, sha256_of(file)] for file in sorted(code.glob("*.py"))]]
    parts = json.dumps([rules, special, tokenizer.chat_template, *shipped], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()
