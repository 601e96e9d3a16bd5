"""Tokens and labels, compared with lists written by hand, and what must hold for every text."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thriftune.data.examples import Conversation, MarkedText
from thriftune.data.formats import FORMATS
from thriftune.data.rendering import render
from thriftune.data.tokenization import IGNORED, Tokenization, TokenRow

_ = IGNORED

LLAMA_VOCABULARY = {
    "<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3, "[INST]": 4, "[/INST]": 5, " ": 6, "\n": 7, "\n\n": 8,
    "hi": 10, "yes": 11, "why": 12, "no": 13, "so": 14, "a": 15, "b": 16, "c": 17, "d": 18, ":": 19,
}  # fmt: skip
CHATML_VOCABULARY = {
    "<unk>": 0, "<|im_start|>": 1, "<|im_end|>": 2, "\n": 3, " ": 4,
    "system": 10, "user": 11, "assistant": 12, "help": 13, "hi": 14, "yes": 15, "why": 16, "no": 17,
}  # fmt: skip
# As SmolLM2's: a system message of its own when there is none.
CHATML_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nhelp<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def word_tokenizer(vocabulary, template, *, opening="", closing="", eos):
    """A tokenizer whose tokens are whole words and whole runs of white space, with ids to write down by hand."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = [name for name in vocabulary if name.startswith("<")]
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pieces = Regex(r"\[/?INST\]|\w+|\s+|[^\w\s]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="isolated")
    tokenizer.add_special_tokens(special)
    if opening or closing:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{opening} $A {closing}".strip(), special_tokens=[(name, vocabulary[name]) for name in special]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token=opening or None, eos_token=eos, chat_template=template
    )


def byte_tokenizer(text, merges=()):
    """A byte-level BPE in which the id of a byte is the byte; 256 is BOS, 257 is EOS, and merges come after."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    ((letters, _span),) = level.pre_tokenize_str(text)
    letter_of = dict(zip(text.encode(), letters, strict=True))
    pairs = [(letter_of[first], letter_of[second]) for first, second in merges]
    vocabulary = {letter: byte for byte, letter in letter_of.items()} | {"<s>": 256, "</s>": 257}
    vocabulary |= {first + second: 258 + number for number, (first, second) in enumerate(pairs)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = level
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 256)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def llama(llama_tokenizer):
    return word_tokenizer(LLAMA_VOCABULARY, llama_tokenizer.chat_template, opening="<s>", eos="</s>")


@pytest.fixture(scope="module")
def chatml():
    return word_tokenizer(CHATML_VOCABULARY, CHATML_TEMPLATE, eos="<|im_end|>")


def chat(*contents, system=None):
    """A conversation that alternates between user and assistant."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]
    return Conversation(tuple(([{"role": "system", "content": system}] if system else []) + turns))


def tokenized(example, tokenizer, **options):
    text = render(example, tokenizer) if isinstance(example, Conversation) else example
    (row,) = Tokenization(tokenizer, **options).tokenize([text])
    assert len(row.input_ids) == len(row.labels)
    return row


def test_llama_trains_the_answer_and_eos_and_nothing_else(llama):
    row = tokenized(chat("hi", "yes"), llama)
    assert row.input_ids == [1, 4, 6, 10, 6, 5, 6, 11, 2]
    assert row.labels == [_, _, _, _, _, _, 6, 11, 2]
    assert row.trained_tokens == 3


def test_llama_trains_every_answer_of_a_long_conversation(llama):
    row = tokenized(chat("hi", "yes", "why", "no so"), llama)
    assert row.input_ids == [1, 4, 6, 10, 6, 5, 6, 11, 2, 4, 6, 12, 6, 5, 6, 13, 6, 14, 2]
    assert row.labels == [_, _, _, _, _, _, 6, 11, 2, _, _, _, _, _, 6, 13, 6, 14, 2]


def test_chatml_trains_the_answer_and_its_end_but_no_white_space_after_it(chatml):
    row = tokenized(chat("hi", "yes"), chatml)
    assert row.input_ids == [1, 10, 3, 13, 2, 3, 1, 11, 3, 14, 2, 3, 1, 12, 3, 15, 2, 3]
    assert row.labels == [_, _, _, _, _, _, _, _, _, _, _, _, _, _, _, 15, 2, _]


def test_chatml_trains_every_answer_and_keeps_a_system_message(chatml):
    row = tokenized(chat("hi", "yes", "why", "no", system="no"), chatml)
    prompt = [1, 10, 3, 17, 2, 3, 1, 11, 3, 14, 2, 3, 1, 12, 3]
    assert row.input_ids == [*prompt, 15, 2, 3, 1, 11, 3, 16, 2, 3, 1, 12, 3, 17, 2, 3]
    assert row.labels == [*[_] * len(prompt), 15, 2, _, _, _, _, _, _, _, _, _, _, 17, 2, _]


@pytest.mark.parametrize(
    "turn",
    [
        "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}",
        "{% generation %}{{ m.content + '<|im_end|>\n' }}{% endgeneration %}",
        "{% generation %}{{ m.content }}{% endgeneration %}{{ '<|im_end|>\n' }}",
    ],
)
def test_a_template_that_marks_its_turns_gets_one_eos_wherever_it_closes_them(turn):
    """SmolLM3's marks the line break after the closing token too, and a second closing token was put after that."""
    template = "{% for m in messages %}{{ m.role + '\n' }}{% if m.role == 'user' %}{{ m.content + '\n' }}"
    marking = word_tokenizer(
        CHATML_VOCABULARY, template + "{% else %}" + turn + "{% endif %}{% endfor %}", eos="<|im_end|>"
    )
    row = tokenized(chat("hi", "yes"), marking)
    assert row.input_ids == [11, 3, 14, 3, 12, 3, 15, 2, 3]
    assert row.labels == [_, _, _, _, _, _, 15, 2, _]


# A turn that ends with another token than EOS, as ChatML's on the tokenizer of a base model.

BASE_VOCABULARY = {**CHATML_VOCABULARY, "<eos>": 5, ":": 18}
PROMPT = [1, 10, 3, 13, 2, 3, 1, 11, 3, 14, 2, 3, 1, 12, 3]


@pytest.fixture(scope="module")
def base():
    return word_tokenizer(BASE_VOCABULARY, CHATML_TEMPLATE, eos="<eos>")


def test_a_turn_is_trained_through_its_own_end_and_eos_comes_right_behind_it(base):
    """EOS came behind the line break after it, which is not trained, so that no model would ever come to it."""
    row = tokenized(chat("hi", "yes"), base)
    assert row.input_ids == [*PROMPT, 15, 2, 5]
    assert row.labels == [*[_] * len(PROMPT), 15, 2, 5]
    assert row.answers == ((15, 17),)


def test_every_turn_is_trained_through_its_own_end(base):
    row = tokenized(chat("hi", "yes", "why", "no"), base)
    assert row.input_ids == [*PROMPT, 15, 2, 3, 1, 11, 3, 16, 2, 3, 1, 12, 3, 17, 2, 5]
    assert row.labels == [*[_] * len(PROMPT), 15, 2, _, _, _, _, _, _, _, _, _, _, 17, 2, 5]
    assert row.answers == ((15, 17), (27, 29))


@pytest.mark.parametrize(
    "turn",
    [
        "{% generation %}{{ m.content }}{% endgeneration %}{{ '<|im_end|>\n' }}",
        "{% generation %}{{ m.content + '<|im_end|>\n' }}{% endgeneration %}",
        # Qwen3's: earlier turns are found by what they say, and their end was not trained.
        "{{ '<|im_start|>\n' if loop.last }}{{ m.content + '<|im_end|>\n' }}",
    ],
)
def test_the_end_of_a_turn_is_trained_wherever_the_template_writes_it(turn):
    """An end outside of what the template marks was not trained unless it was EOS."""
    template = "{% for m in messages %}{{ m.role + '\n' }}{% if m.role == 'user' %}{{ m.content + '\n' }}{% else %}"
    template += turn + "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'assistant\n' }}{% endif %}"
    row = tokenized(chat("hi", "yes", "why", "no"), word_tokenizer(BASE_VOCABULARY, template, eos="<eos>"))
    trained = [label for label in row.labels if label != _ and label not in (1, 3)]
    assert trained == [15, 2, 17, 2, 5]
    assert row.input_ids[-3:] == [17, 2, 5]


def test_a_turn_that_ends_with_no_token_is_followed_by_eos(base):
    """EOS came behind the line break that ends the turn, which is not trained."""
    plain = "{% for m in messages %}{{ m.role + ':' + m.content + '\n' }}{% endfor %}"
    plain += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    row = tokenized(chat("hi", "yes"), word_tokenizer(BASE_VOCABULARY, plain, eos="<eos>"))
    assert row.input_ids == [11, 18, 14, 3, 12, 18, 15, 5]
    assert row.labels == [_, _, _, _, _, _, 15, 5]


def test_the_end_of_a_turn_that_is_not_to_be_learned_is_not(base):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    bad = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "no", "weight": 0}]
    row = tokenized(Conversation((*turns, *bad)), base)
    assert row.input_ids == [*PROMPT, 15, 2, 3, 1, 11, 3, 16, 2, 3, 1, 12, 3, 17, 2, 5]
    assert row.labels == [*[_] * len(PROMPT), 15, 2, *[_] * 13]
    assert render(Conversation((*turns, *bad)), base).question == "hi"
    everything = tokenized(Conversation((*turns, *bad)), base, train_on_inputs=True)
    assert everything.labels == [_, *everything.input_ids[1:]]


# BOS and EOS.


def test_a_marked_text_gets_bos_and_eos_once_each(llama):
    row = tokenized(MarkedText("a:b c", ((2, 5),)), llama)
    assert row.input_ids == [1, 15, 19, 16, 6, 17, 2]
    assert row.labels == [_, _, _, 16, 6, 17, 2]


def test_a_tokenizer_without_bos_gets_none(chatml):
    row = tokenized(MarkedText("hi yes", ((3, 6),)), chatml)
    assert row.input_ids == [14, 4, 15, 2]
    assert row.labels == [_, _, 15, 2]


@pytest.mark.parametrize("closing", ["", "</s>"])
def test_a_tokenizer_that_puts_eos_itself_gets_no_second_one(closing):
    appending = word_tokenizer(LLAMA_VOCABULARY, None, opening="<s>", closing=closing, eos="</s>")
    row = tokenized(MarkedText("a:b", ((2, 3),)), appending)
    assert row.input_ids == [1, 15, 19, 16, 2]
    assert row.labels == [_, _, _, 16, 2]


@pytest.mark.parametrize(
    "text",
    [
        MarkedText("<s>a:b", ((5, 6),)),
        MarkedText("<s>a:b</s>", ((5, 10),)),
        MarkedText("<s>a:b</s>", ((5, 6),)),  # closed outside of the answer
        MarkedText("a:b</s>", ((2, 3),)),
    ],
)
def test_text_that_spells_out_bos_or_eos_gets_no_second_one(llama, text):
    row = tokenized(text, llama)
    assert row.input_ids == [1, 15, 19, 16, 2]
    assert row.labels == [_, _, _, 16, 2]


def test_a_rendered_text_is_opened_by_its_template_alone(llama):
    row = tokenized(MarkedText("a:b", ((2, 3),), is_rendered=True), llama)
    assert row.input_ids == [15, 19, 16, 2]
    assert row.labels == [_, _, 16, 2]


def test_eos_closes_a_row_whose_last_words_are_not_its_answer(llama):
    row = tokenized(MarkedText("a:b c", ((0, 1), (2, 3))), llama)
    assert row.input_ids == [1, 15, 19, 16, 6, 17, 2]
    assert row.labels == [_, 15, _, 16, _, _, 2]


def test_the_first_token_is_never_trained(llama, chatml):
    assert tokenized(MarkedText("a b", ((0, 3),), is_document=True), llama).labels == [_, 15, 6, 16, 2]
    assert tokenized(MarkedText("hi yes", ((0, 6),), is_document=True), chatml).labels == [_, 4, 15, 2]
    assert tokenized(MarkedText("hi yes", ((0, 2),)), chatml).labels == [_, _, _, 2]
    assert tokenized(MarkedText("hi", ((0, 2),)), chatml) == TokenRow([14, 2], [_, 2])


def test_training_on_inputs_labels_every_token(llama, chatml):
    row = tokenized(chat("hi", "yes"), llama, train_on_inputs=True)
    assert row.input_ids == [1, 4, 6, 10, 6, 5, 6, 11, 2]
    assert row.labels == [_, 4, 6, 10, 6, 5, 6, 11, 2]
    row = tokenized(chat("hi", "yes"), chatml, train_on_inputs=True)
    assert row.input_ids == [1, 10, 3, 13, 2, 3, 1, 11, 3, 14, 2, 3, 1, 12, 3, 15, 2, 3]
    assert row.labels == [_, *row.input_ids[1:]]


# Borders of answers.


def test_a_token_over_the_border_of_prompt_and_answer_is_trained(llama):
    """The prompt ends in a line break and the answer starts with one: the tokenizer makes one token of both."""
    row = tokenized(MarkedText("a\n\nb", ((2, 4),)), llama)
    assert row.input_ids == [1, 15, 8, 16, 2]
    assert row.labels == [_, _, 8, 16, 2]


def test_a_character_of_several_tokens_is_trained_whole_at_both_ends_of_an_answer():
    """😀 is F0 9F 98 80 and 😃 is F0 9F 98 83: places in the text say only which tokens hold a part of them."""
    tokenizer = byte_tokenizer("ab😀😃")
    row = tokenized(MarkedText("a😀😃b😀a", ((2, 5),)), tokenizer)
    assert row.input_ids == [
        256, 97, 0xF0, 0x9F, 0x98, 0x80, 0xF0, 0x9F, 0x98, 0x83, 98, 0xF0, 0x9F, 0x98, 0x80, 97, 257,
    ]  # fmt: skip
    assert row.labels == [
        _, _, _, _, _, _, 0xF0, 0x9F, 0x98, 0x83, 98, 0xF0, 0x9F, 0x98, 0x80, _, 257,
    ]  # fmt: skip


def test_a_token_of_parts_of_two_characters_is_trained_when_one_of_them_is():
    tokenizer = byte_tokenizer("ab😀😃", merges=[(0x80, 0xF0)])
    row = tokenized(MarkedText("😀😃", ((1, 2),)), tokenizer)
    assert row.input_ids == [256, 0xF0, 0x9F, 0x98, 258, 0x9F, 0x98, 0x83, 257]
    assert row.labels == [_, _, _, _, 258, 0x9F, 0x98, 0x83, 257]
    row = tokenized(MarkedText("😀😃", ((0, 1),)), tokenizer)
    assert row.labels == [_, 0xF0, 0x9F, 0x98, 258, _, _, _, 257]


def test_white_space_that_belongs_to_no_token_moves_no_border():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "</s>": 2, "a": 15, "b": 16}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>")
    row = tokenized(MarkedText("a b  a  b", ((1, 5),)), tokenizer)
    assert row.input_ids == [15, 16, 15, 16, 2]
    assert row.labels == [_, 16, _, _, 2]
    assert tokenized(MarkedText("a   b", ((1, 3),)), tokenizer).labels == [_, _, 2], "an answer of no token"


def test_a_batch_gives_what_its_texts_give_one_by_one(llama):
    texts = [render(chat("hi", answer), llama) for answer in ("yes", "no so", "a b c")]
    texts.append(MarkedText("a b", ((0, 3),)))
    tokenization = Tokenization(llama)
    assert tokenization.tokenize(texts) == [tokenized(text, llama) for text in texts]
    assert tokenization.tokenize([]) == []


# No "<": a text that spells a special token out is that token.
words = st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda text: text.strip()
)
checked = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@checked
@given(instruction=words, answer=words)
def test_an_alpaca_row_trains_its_whole_answer_and_eos(llama_tokenizer, instruction, answer):
    (example,) = FORMATS["alpaca"].read({"instruction": instruction, "output": answer})
    row = tokenized(example, llama_tokenizer)
    trained = llama_tokenizer.decode([label for label in row.labels if label != _])
    # One token may hold the end of the prompt, which is white space, too.
    assert trained.lstrip("\n") == f"{answer}</s>".lstrip("\n")
    assert row.input_ids.count(llama_tokenizer.bos_token_id) == 1
    assert row.input_ids.count(llama_tokenizer.eos_token_id) == 1
    assert row.labels[-1] == llama_tokenizer.eos_token_id


@checked
@given(contents=st.lists(st.tuples(words, words), min_size=1, max_size=3))
def test_a_conversation_trains_each_whole_answer_and_its_eos(llama_tokenizer, contents):
    row = tokenized(chat(*(text for pair in contents for text in pair)), llama_tokenizer)
    trained = llama_tokenizer.decode([label for label in row.labels if label != _])
    assert trained == "".join(f" {answer}</s>" for _question, answer in contents)
    assert row.input_ids.count(llama_tokenizer.bos_token_id) == 1
    assert row.input_ids.count(llama_tokenizer.eos_token_id) == len(contents)
