"""Text that is shown while it is made adds up to what decoding all tokens gives."""

import random

import pytest

from thriftune.inference.serving.text import AnswerText

TEXTS = [
    "Plain words, and more of them.",
    "  white space around, tabs\tand lines\n\n\nwithin \n ",
    "Zwölf Öfen, 猫と犬, 👩‍👩‍👧‍👦 and 🇩🇪, é as two",
    "It is n't , he 's ' here ' .",
    "\ufffd is a character, too \ufffd",
    "",
    "   ",
]


@pytest.fixture(scope="module", params=["bytes", "fallback", "cleaning"])
def tokenizer(request, llama_tokenizer):
    """A byte-level BPE, a SentencePiece with bytes for what it lacks, and one that cleans up spaces."""
    if request.param == "bytes":
        return llama_tokenizer
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted({letter for text in TEXTS for letter in text if ord(letter) < 128 and letter != " "})
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters, "n't"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    inner = Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="</s>", unk_token="<unk>",
        clean_up_tokenization_spaces=request.param == "cleaning",
    )  # fmt: skip


def shown(tokenizer, tokens, stop=(), *, is_streamed=True):
    """The parts that were shown, until the answer ended."""
    text = AnswerText(tokenizer, stop, is_streamed=is_streamed)
    parts = []
    for token in tokens:
        parts.append(text.add(token))
        if text.is_stopped:
            break
    return [*parts, text.end()]


@pytest.mark.parametrize("text", TEXTS)
def test_the_parts_add_up_to_the_whole(tokenizer, text):
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    for end in range(len(tokens) + 1):
        expected = tokenizer.decode(tokens[:end], skip_special_tokens=True).strip()
        parts = shown(tokenizer, tokens[:end])
        assert "".join(parts) == expected
        assert "".join(shown(tokenizer, tokens[:end], is_streamed=False)) == expected
    if len(text.split()) > 2:
        assert sum(map(bool, parts)) > 3, "nothing was shown before the end"


def test_any_tokens_add_up_to_the_whole(tokenizer):
    """What a model writes need not be a text: runs of bytes that are no characters, and special tokens."""
    drawn = random.Random(1)
    for _ in range(60):
        tokens = [drawn.randrange(len(tokenizer)) for _ in range(drawn.randrange(1, 40))]
        assert "".join(shown(tokenizer, tokens)) == tokenizer.decode(tokens, skip_special_tokens=True).strip()


def test_half_a_character_is_never_shown(tokenizer):
    tokens = tokenizer("a猫b猫", add_special_tokens=False)["input_ids"]
    assert len(tokens) > 5
    assert all("\ufffd" not in part for part in shown(tokenizer, tokens))


def test_an_answer_ends_before_a_stop_text_that_comes_in_parts(llama_tokenizer):
    tokens = llama_tokenizer("One two END three", add_special_tokens=False)["input_ids"]
    for is_streamed in (True, False):
        parts = shown(llama_tokenizer, tokens, ["END", "never"], is_streamed=is_streamed)
        assert "".join(parts) == "One two"
        assert len(parts) < len(tokens) + 1
    assert "".join(shown(llama_tokenizer, tokens[:-4], ["two E_"])) == llama_tokenizer.decode(tokens[:-4]).strip()


def test_a_long_answer_costs_little_for_each_token(llama_tokenizer):
    """Decoded from its start for each token, an answer of 4000 tokens would take minutes."""
    counted = []

    class Counting:
        clean_up_tokenization_spaces = False

        def decode(self, tokens, **options):
            counted.append(len(tokens))
            return llama_tokenizer.decode(tokens, **options)

        def convert_ids_to_tokens(self, token):
            return llama_tokenizer.convert_ids_to_tokens(token)

    tokens = llama_tokenizer("word " * 2000, add_special_tokens=False)["input_ids"][:4000]
    assert "".join(shown(Counting(), tokens)) == llama_tokenizer.decode(tokens).strip()
    assert sum(counted) / len(tokens) < 200


def test_a_long_stop_text_costs_no_more_than_the_answer(llama_tokenizer):
    """All its beginnings were looked for at every token: seconds each, in the process that all answers share."""
    beginnings = []

    class Counting(str):
        __slots__ = ()

        def __getitem__(self, part):
            beginnings.append(part)
            return str.__getitem__(self, part)

    tokens = llama_tokenizer("x" * 40, add_special_tokens=False)["input_ids"]
    answer = AnswerText(llama_tokenizer, [Counting("x" * 10**5)], is_streamed=True)
    shown = "".join(answer.add(token) for token in tokens)
    assert 0 < len(beginnings) <= 40 * len(tokens)
    assert (shown, answer.end()) == ("", "x" * 40), "what may be its beginning is held back"
