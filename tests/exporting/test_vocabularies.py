"""Tokenizers in GGUF files: what each becomes there, and those that llama.cpp would misread are refused."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from exporting.exported_models import bytes_tokenizer, pieces_tokenizer, save_model
from thriftune.errors import ExportError
from thriftune.models.exporting.gguf_reading import GgufFile
from thriftune.models.exporting.gguf_vocabulary import vocabulary_of
from thriftune.models.exporting.gguf_writing import write
from thriftune.models.tokenizer import load_tokenizer

SPLITS = ("gpt-2", "smollm", "llama-bpe", "tekken", "qwen2")
TEXTS = [
    "It's 2026:\n\n  12345 caf\u00e9s, don't you?",
    "x = [1, 2]\t# \u00fcber\r\n",
    " leading",
    "<|im_start|>user\nhi<|im_end|>",
]


def refused(tokenizer, reason: str) -> None:
    with pytest.raises(ExportError, match=reason):
        vocabulary_of(tokenizer, 1000)


@pytest.mark.parametrize("split", SPLITS)
def test_a_way_to_split_has_its_name(split):
    assert vocabulary_of(bytes_tokenizer(split), 380).split == split


@pytest.mark.parametrize("split", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_a_file_makes_the_same_tokens(model_of, tmp_path, split):
    name = {"gpt-2": "linear", "smollm": "llama", "llama-bpe": "llama3", "qwen2": "qwen2"}[split]
    write(model_of(name), tmp_path, "f16", "m")
    found, tokenizer = GgufFile(tmp_path / "model.gguf").tokenizer(), bytes_tokenizer(split)
    for text in TEXTS:
        assert found(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_sentencepiece_s_kind_makes_the_same_tokens(model_of, tmp_path):
    write(model_of("mistral"), tmp_path, "f16", "m")
    file, tokenizer = GgufFile(tmp_path / "model.gguf"), pieces_tokenizer()
    found = file.tokenizer()
    for text in (*TEXTS[:3], "<s>[INST] What is it? [/INST] Four.</s>"):
        plain = {"add_special_tokens": False}
        assert found(text, **plain)["input_ids"] == tokenizer(text, **plain)["input_ids"]
    assert file.value("tokenizer.ggml.model") == "llama"
    assert file.value("tokenizer.ggml.add_bos_token") is True
    kinds = file.value("tokenizer.ggml.token_type")
    assert (kinds[0], kinds[1], kinds[3], kinds[300]) == (2, 3, 6, 1)  # unknown, control, byte, normal


def test_what_ends_a_turn_is_named_where_it_is_not_eos():
    tokenizer = bytes_tokenizer("gpt-2")
    tokenizer.eos_token = "<|endoftext|>"
    special = vocabulary_of(tokenizer, 380).special
    assert special["eos"] == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert special["eot"] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_rows_without_a_token_have_a_name_and_added_tokens_their_kind():
    tokenizer = bytes_tokenizer("gpt-2")
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False)])
    count = len(tokenizer)
    vocabulary = vocabulary_of(tokenizer, count + 3)
    assert vocabulary.tokens[count - 1 :] == ("<tool_call>", f"[PAD{count}]", f"[PAD{count + 1}]", f"[PAD{count + 2}]")
    assert vocabulary.types[count - 1 :] == (4, 5, 5, 5)
    assert vocabulary.types[0] == 3


def test_more_tokens_than_rows_are_refused():
    with pytest.raises(ExportError, match="has a token with id 379, but the model's embedding has 379 rows"):
        vocabulary_of(bytes_tokenizer("gpt-2"), 379)


def test_a_split_without_a_name_is_refused():
    tokenizer = bytes_tokenizer("gpt-2")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    refused(tokenizer, "splits text by Punctuation and ByteLevel in another way than gpt-2, smollm, llama-bpe")


def test_the_expression_of_llama_3_without_its_whole_tokens_is_refused():
    """llama.cpp takes tokens whole under that name, so that it would make other tokens."""
    tokenizer = bytes_tokenizer("llama-bpe")
    tokenizer.backend_tokenizer.model.ignore_merges = False
    refused(tokenizer, "splits text by Split and ByteLevel in another way")


def test_a_tokenizer_without_an_end_is_refused():
    """llama.cpp has a default for what a file does not name, and ended answers at a letter."""
    for made, token in ((bytes_tokenizer("gpt-2"), r"'\)'"), (pieces_tokenizer(), "'</s>'")):
        made.eos_token = None
        refused(made, f"has no EOS .llama.cpp would end an answer at its default, here {token}")


def test_tokens_that_take_the_space_beside_them_are_said(model_of, tmp_path):
    tokenizer = bytes_tokenizer("smollm")
    tokenizer.add_tokens([AddedToken("<tool>", special=True, rstrip=True)], special_tokens=True)
    model = save_model(tmp_path / "model", "llama", tokenizer)
    said = write(model, tmp_path, "f16", "m")
    assert said == ["llama.cpp keeps the white space beside <tool>, which the tokenizer takes away."]


def test_a_prefix_space_and_a_changed_text_are_refused():
    tokenizer = bytes_tokenizer("gpt-2")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    refused(tokenizer, "splits text by ByteLevel in another way")
    tokenizer = bytes_tokenizer("gpt-2")
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    refused(tokenizer, "changes text by Lowercase first")
    pieces = pieces_tokenizer()
    pieces.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(" ", "\u2581")]
    )
    refused(pieces, "changes or splits text by Lowercase")


def test_another_kind_of_model_is_refused():
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0)], unk_id=0))
    refused(PreTrainedTokenizerFast(tokenizer_object=unigram), "is of kind Unigram")


def test_qwen_s_normal_form_is_no_reason_to_refuse():
    tokenizer = bytes_tokenizer("qwen2")
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    assert vocabulary_of(tokenizer, 380).split == "qwen2"
    assert json.loads(tokenizer.backend_tokenizer.to_str())["normalizer"]["type"] == "NFC"


@pytest.mark.parametrize("name", ["linear", "llama", "llama3", "qwen2", "mistral"])
def test_llama_cpp_itself_makes_the_same_tokens(model_of, tmp_path, name):
    """Only where its Python package is installed, which is no dependency."""
    llama_cpp = pytest.importorskip("llama_cpp")
    write(model_of(name), tmp_path, "f16", "m")
    found = llama_cpp.Llama(str(tmp_path / "model.gguf"), vocab_only=True, verbose=False)
    tokenizer = load_tokenizer(model_of(name))
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert found.tokenize(text.encode(), add_bos=False, special=True) == ids
