"""Tokens and labels, compared with lists written by hand, and what must hold for every text."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thriftune.data.formats import FORMATS, Conversation, MarkedText, RowError
from thriftune.data.tokenization import IGNORED, as_text, require_usable, tokenize
from thriftune.errors import DataError

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


def word_tokenizer(vocabulary, template, *, bos=None, eos, special):
    """A tokenizer whose tokens are whole words and whole runs of white space, with ids to write down by hand."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pieces = Regex(r"\[/?INST\]|\w+|\s+|[^\w\s]")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pieces, behavior="isolated")
    tokenizer.add_special_tokens(list(special))
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, vocabulary[bos])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token=bos, eos_token=eos, chat_template=template
    )


@pytest.fixture(scope="module")
def llama(llama_tokenizer):
    return word_tokenizer(
        LLAMA_VOCABULARY, llama_tokenizer.chat_template, bos="<s>", eos="</s>", special=("<s>", "</s>", "<pad>")
    )


@pytest.fixture(scope="module")
def chatml():
    return word_tokenizer(CHATML_VOCABULARY, CHATML_TEMPLATE, eos="<|im_end|>", special=("<|im_start|>", "<|im_end|>"))


def chat(*contents, system=None):
    """A conversation that alternates between user and assistant."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]
    return Conversation(tuple(([{"role": "system", "content": system}] if system else []) + turns))


def only_row(item, tokenizer, **options):
    ((row,),) = tokenize([as_text(item, tokenizer)], tokenizer, **{"max_length": 1000, **options})
    assert len(row.input_ids) == len(row.labels)
    return row


def test_llama_trains_the_answer_and_eos_and_nothing_else(llama):
    row = only_row(chat("hi", "yes"), llama)
    assert row.input_ids == [1, 4, 6, 10, 6, 5, 6, 11, 2]
    assert row.labels == [_, _, _, _, _, _, 6, 11, 2]
    assert row.trained_tokens == 3
    assert not row.truncated


def test_llama_trains_every_answer_of_a_long_conversation(llama):
    row = only_row(chat("hi", "yes", "why", "no so"), llama)
    assert row.input_ids == [1, 4, 6, 10, 6, 5, 6, 11, 2, 4, 6, 12, 6, 5, 6, 13, 6, 14, 2]
    assert row.labels == [_, _, _, _, _, _, 6, 11, 2, _, _, _, _, _, 6, 13, 6, 14, 2]


def test_chatml_trains_the_answer_and_its_end_but_no_white_space_after_it(chatml):
    row = only_row(chat("hi", "yes"), chatml)
    assert row.input_ids == [1, 10, 3, 13, 2, 3, 1, 11, 3, 14, 2, 3, 1, 12, 3, 15, 2, 3]
    assert row.labels == [_, _, _, _, _, _, _, _, _, _, _, _, _, _, _, 15, 2, _]


def test_chatml_trains_every_answer_and_keeps_a_system_message(chatml):
    row = only_row(chat("hi", "yes", "why", "no", system="no"), chatml)
    prompt = [1, 10, 3, 17, 2, 3, 1, 11, 3, 14, 2, 3, 1, 12, 3]
    assert row.input_ids == [*prompt, 15, 2, 3, 1, 11, 3, 16, 2, 3, 1, 12, 3, 17, 2, 3]
    assert row.labels == [*[_] * len(prompt), 15, 2, _, _, _, _, _, _, _, _, _, _, 17, 2, _]


def test_a_marked_text_gets_bos_and_eos_once_each(llama):
    row = only_row(MarkedText("a:b c", ((2, 5),)), llama)
    assert row.input_ids == [1, 15, 19, 16, 6, 17, 2]
    assert row.labels == [_, _, _, 16, 6, 17, 2]


def test_an_answer_that_already_ends_in_eos_gets_no_second_one(llama):
    row = only_row(MarkedText("a:b</s>", ((2, 7),)), llama)
    assert row.input_ids == [1, 15, 19, 16, 2]
    assert row.labels == [_, _, _, 16, 2]


def test_a_tokenizer_that_appends_eos_itself_gets_no_second_one(llama):
    from tokenizers import processors

    closing = word_tokenizer(LLAMA_VOCABULARY, None, bos="<s>", eos="</s>", special=("<s>", "</s>"))
    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    row = only_row(MarkedText("a:b", ((2, 3),)), closing)
    assert row.input_ids == [1, 15, 19, 16, 2]
    assert row.labels == [_, _, _, 16, 2]


def test_a_token_over_the_border_of_prompt_and_answer_is_trained(llama):
    """The prompt ends in a line break and the answer starts with one: the tokenizer makes one token of both."""
    row = only_row(MarkedText("a\n\nb", ((2, 4),)), llama)
    assert row.input_ids == [1, 15, 8, 16, 2]
    assert row.labels == [_, _, 8, 16, 2]


def test_training_on_inputs_labels_every_token(llama):
    row = only_row(chat("hi", "yes"), llama, train_on_inputs=True)
    assert row.labels == row.input_ids == [1, 4, 6, 10, 6, 5, 6, 11, 2]
    assert row.trained_tokens == 8, "nothing comes before the first token to predict it from"


def test_a_row_that_is_too_long_is_cut_at_the_end_and_says_so(llama):
    row = only_row(chat("hi", "yes"), llama, max_length=8)
    assert row.input_ids == [1, 4, 6, 10, 6, 5, 6, 11]
    assert row.labels == [_, _, _, _, _, _, 6, 11]
    assert row.truncated
    assert not only_row(chat("hi", "yes"), llama, max_length=9).truncated


def test_a_row_whose_prompt_fills_it_has_nothing_to_train(llama):
    assert only_row(chat("hi", "yes"), llama, max_length=6).trained_tokens == 0


def test_a_long_text_continues_in_the_next_row(llama):
    text = FORMATS["text"].read({"text": "a b c d"})
    (rows,) = tokenize([text], llama, max_length=4)
    assert [row.input_ids for row in rows] == [[1, 15, 6, 16], [16, 6, 17, 6], [6, 18, 2]]
    # Each piece starts with the last token of the one before, so that every token is predicted exactly once.
    assert [row.labels for row in rows] == [[_, 15, 6, 16], [_, 6, 17, 6], [_, 18, 2]]
    assert not any(row.truncated for row in rows)


def test_a_batch_gives_what_its_texts_give_one_by_one(llama):
    texts = [as_text(chat("hi", answer), llama) for answer in ("yes", "no so", "a b c")]
    together = tokenize(texts, llama, max_length=10)
    assert together == [tokenize([text], llama, max_length=10)[0] for text in texts]
    assert tokenize([], llama, max_length=10) == []


def test_what_the_chat_template_refuses_is_a_bad_row(llama):
    twice = Conversation(({"role": "user", "content": "hi"},) * 2 + ({"role": "assistant", "content": "yes"},))
    with pytest.raises(RowError, match="chat template refuses it: Conversation roles must alternate"):
        as_text(twice, llama)
    with pytest.raises(RowError, match="chat template refuses it"):
        as_text(chat("hi", "yes", system="help"), llama)


def test_a_template_that_rewrites_earlier_turns_is_refused(chatml):
    """Templates of reasoning models drop the thoughts of earlier turns, so the answers are not where they were."""
    rewriting = word_tokenizer(
        CHATML_VOCABULARY,
        "{% for m in messages %}{{ m['role'] + ' ' + (m['content'] if loop.last else 'no') + ' ' }}{% endfor %}",
        eos="<|im_end|>",
        special=("<|im_end|>",),
    )
    with pytest.raises(RowError, match="rewrites earlier turns"):
        as_text(chat("hi", "yes"), rewriting)


def test_a_conversation_that_the_assistant_opens_is_labelled_or_a_bad_row(chatml):
    opening = ({"role": "assistant", "content": "hi"}, {"role": "user", "content": "why"})
    try:
        row = only_row(Conversation((*opening, {"role": "assistant", "content": "yes"})), chatml)
    except RowError:
        return
    assert row.labels[-3:] == [15, 2, _]


def test_a_tokenizer_without_what_the_format_needs_is_refused(llama):
    bare = word_tokenizer(LLAMA_VOCABULARY, None, bos="<s>", eos="</s>", special=("<s>", "</s>"))
    endless = word_tokenizer(LLAMA_VOCABULARY, None, bos="<s>", eos=None, special=("<s>",))
    require_usable(llama, "chat")
    require_usable(bare, "alpaca")
    with pytest.raises(DataError, match=r"data\.format = chat: .*no chat template"):
        require_usable(bare, "chat")
    with pytest.raises(DataError, match=r"model\.source.*no EOS token"):
        require_usable(endless, "text")


# No "<": a text that spells a special token out is that token.
words = st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda text: text.strip()
)
checked = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@checked
@given(text=words, max_length=st.integers(2, 30))
def test_splitting_a_long_text_loses_nothing(llama_tokenizer, text, max_length):
    (rows,) = tokenize([FORMATS["text"].read({"text": text})], llama_tokenizer, max_length=max_length)
    assert all(len(row.input_ids) == max_length for row in rows[:-1])
    assert 2 <= len(rows[-1].input_ids) <= max_length
    # Each piece repeats the last token of the one before, as what its own first token is predicted from.
    ids = [*rows[0].input_ids, *(i for row in rows[1:] for i in row.input_ids[1:])]
    assert llama_tokenizer.decode(ids) == f"<s>{text}</s>"
    assert [label for row in rows for label in row.labels[1:]] == ids[1:]
    assert all(row.labels[0] == _ for row in rows)


@checked
@given(instruction=words, answer=words)
def test_an_alpaca_row_trains_its_whole_answer_and_eos(llama_tokenizer, instruction, answer):
    row = only_row(FORMATS["alpaca"].read({"instruction": instruction, "output": answer}), llama_tokenizer)
    trained = llama_tokenizer.decode([label for label in row.labels if label != _])
    # One token may hold the end of the prompt, which is white space, too.
    assert trained.lstrip("\n") == f"{answer}</s>".lstrip("\n")
    assert row.input_ids.count(llama_tokenizer.bos_token_id) == 1
    assert row.input_ids.count(llama_tokenizer.eos_token_id) == 1
    assert row.labels[-1] == llama_tokenizer.eos_token_id


@checked
@given(contents=st.lists(st.tuples(words, words), min_size=1, max_size=3))
def test_a_conversation_trains_each_whole_answer_and_its_eos(llama_tokenizer, contents):
    row = only_row(chat(*(text for pair in contents for text in pair)), llama_tokenizer)
    trained = llama_tokenizer.decode([label for label in row.labels if label != _])
    assert trained == "".join(f" {answer}</s>" for _question, answer in contents)
    assert row.input_ids.count(llama_tokenizer.bos_token_id) == 1
    assert row.input_ids.count(llama_tokenizer.eos_token_id) == len(contents)
