"""Pad token, padding side and EOS of a tokenizer, decided in one place."""

import shutil

import pytest

from thriftune.models.tokenizer import choose_pad_token, fingerprint, load_tokenizer


@pytest.fixture
def tokenizer_with():
    """A tokenizer that knows the given special tokens and a few words."""

    def make(*vocabulary, **special):
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        ids = {name: i for i, name in enumerate([*vocabulary, "hello"])}
        model = models.WordLevel(ids, unk_token=special.get("unk_token", "hello"))
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **special)

    return make


@pytest.mark.parametrize(
    ("vocabulary", "special", "expected"),
    [
        (["</s>", "<own>"], {"eos_token": "</s>", "pad_token": "<own>"}, "<own>"),
        (["</s>", "<pad>"], {"eos_token": "</s>"}, "<pad>"),
        (["</s>", "<pad>"], {"eos_token": "</s>", "pad_token": "</s>"}, "<pad>"),
        (["<|im_end|>", "<|endoftext|>"], {"eos_token": "<|im_end|>"}, "<|endoftext|>"),
        (
            ["<|eot_id|>", "<|finetune_right_pad_id|>", "<unk>"],
            {"eos_token": "<|eot_id|>"},
            "<|finetune_right_pad_id|>",
        ),
        (["</s>", "<s>", "<unk>"], {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}, "<unk>"),
        (["</s>", "[?]"], {"eos_token": "</s>", "unk_token": "[?]"}, "[?]"),
        (["<|endoftext|>"], {"eos_token": "<|endoftext|>"}, "<|endoftext|>"),
        (
            ["<|endoftext|>"],
            {"eos_token": "<|endoftext|>", "bos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"},
            "<|endoftext|>",
        ),
    ],
)
def test_the_pad_token_needs_no_new_row_and_is_eos_only_as_a_last_resort(tokenizer_with, vocabulary, special, expected):
    tokenizer = tokenizer_with(*vocabulary, **special)
    size = len(tokenizer)
    assert choose_pad_token(tokenizer) == expected
    tokenizer.pad_token = expected
    assert len(tokenizer) == size
    assert tokenizer.pad_token_id < size


@pytest.mark.parametrize(
    ("vocabulary", "pad", "end", "expected"),
    [
        (["</s>", "<|im_end|>", "<unk>"], "<|im_end|>", "<|im_end|>", "<unk>"),
        (["</s>", "<|im_end|>", "<|endoftext|>"], None, "<|im_end|>", "<|endoftext|>"),
        (["</s>", "<unk>", "<|endoftext|>"], None, "<|endoftext|>", "<unk>"),
        (["</s>", "<|im_end|>"], "<|im_end|>", "<|im_end|>", "<|im_end|>"),
        (["</s>", "<|im_end|>"], None, "<|im_end|>", "</s>"),
    ],
)
def test_the_pad_token_is_not_what_ends_a_turn_where_there_is_any_other(tokenizer_with, vocabulary, pad, end, expected):
    """Padding that is masked by id would take the end of every answer with it."""
    template = "{% for m in messages %}{{ m.role + m.content + 'END' }}{% endfor %}".replace("END", end)
    tokenizer = tokenizer_with(*vocabulary, eos_token="</s>", pad_token=pad, chat_template=template)
    tokenizer.add_tokens(end, special_tokens=True)
    assert choose_pad_token(tokenizer) == expected


def test_a_loaded_tokenizer_pads_to_the_right_unless_asked(tiny_tokenizer_dir):
    assert load_tokenizer(tiny_tokenizer_dir).padding_side == "right"
    assert load_tokenizer(tiny_tokenizer_dir, padding_side="left").padding_side == "left"


def test_a_loaded_tokenizer_keeps_bos_eos_and_its_template(tiny_tokenizer_dir, llama_tokenizer):
    tokenizer = load_tokenizer(tiny_tokenizer_dir)
    assert tokenizer.is_fast
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<s>", "</s>", "<pad>")
    assert tokenizer.chat_template == llama_tokenizer.chat_template
    ids = tokenizer("What is it?")["input_ids"]
    assert ids == llama_tokenizer("What is it?")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] != tokenizer.eos_token_id


def test_a_directory_without_a_tokenizer_is_no_reason_to_ask_the_hub(tmp_path):
    with pytest.raises((OSError, ValueError)):
        load_tokenizer(tmp_path)


def test_where_code_of_a_model_may_run_it_counts(tiny_tokenizer_dir, tmp_path):
    """Rows of a tokenizer with code of its own were served to a run that trusts none, and after the code changed."""
    directory = shutil.copytree(tiny_tokenizer_dir, tmp_path / "tokenizer")
    tokenizer = load_tokenizer(directory)
    found = [fingerprint(tokenizer), fingerprint(tokenizer, directory)]
    for content in ("own = 1", "own = 2"):
        (directory / "tokenization_own.py").write_text(content)
        found.append(fingerprint(tokenizer, directory))
    assert len(set(found)) == 4
    assert fingerprint(tokenizer) == found[0]
