"""What ends a turn of the assistant, found in what a chat template writes."""

import copy

import pytest

from thriftune.models.chat_template import TurnEnd, closings, turn_end

OWN = ("<|im_start|>", "<|im_end|>", "<end_of_turn>")  # special tokens that are not EOS
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
GEMMA = "{{ bos_token }}{% for m in messages %}{{ m.role + '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
PHI = CHATML + "{{ eos_token }}"
PLAIN = "{% for m in messages %}{{ m.role + ': ' + m.content }}END\n{% endfor %}"
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
)
STRICT = "{% if messages[0].role != 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML
REFUSING = "{{ raise_exception('no') }}"


@pytest.fixture
def base_tokenizer(llama_tokenizer):
    """The tokenizer of a base model, whose EOS is </s>, with a chat template."""

    def make(template):
        tokenizer = copy.deepcopy(llama_tokenizer)
        tokenizer.add_special_tokens({"additional_special_tokens": list(OWN)})
        tokenizer.add_tokens(["END!", "    "])
        tokenizer.chat_template = template
        return tokenizer

    return make


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (CHATML, TurnEnd("<|im_end|>", "<|im_end|>")),
        (GEMMA, TurnEnd("<end_of_turn>", "<end_of_turn>")),
        (PHI, TurnEnd("<|im_end|>", "<|im_end|>")),
        (MARKED, TurnEnd("<|im_end|>", "<|im_end|>")),
        (STRICT, TurnEnd("<|im_end|>", "<|im_end|>")),
        (PLAIN.replace("END", "</s>"), TurnEnd("</s>", "</s>")),
        (PLAIN.replace("END", " ###</s>"), TurnEnd("###</s>", "</s>")),
        (PLAIN.replace("END", " END!"), TurnEnd("END!", "END!")),  # a token of its own that is not marked as special
        (PLAIN.replace("END", "\n### End"), TurnEnd("### End", None)),
        (PLAIN.replace("END", "    "), TurnEnd("", None)),  # white space with a token of its own ends nothing
        (PLAIN.replace("END", ""), TurnEnd("", None)),
        (REFUSING, None),
        ("{% if %}", None),
        (None, None),
    ],
)
def test_the_end_of_a_turn_is_what_follows_an_answer(base_tokenizer, template, end):
    assert turn_end(base_tokenizer(template)) == end


def test_the_template_of_the_tests_ends_with_eos(llama_tokenizer):
    assert turn_end(llama_tokenizer) == TurnEnd("</s>", "</s>")


@pytest.mark.parametrize(
    ("template", "texts"),
    [
        (CHATML, ("<|im_end|>", "</s>")),
        (PLAIN.replace("END", "</s>"), ("</s>",)),
        (PLAIN.replace("END", ""), ("</s>",)),
        (None, ("</s>",)),
    ],
)
def test_what_can_close_a_turn(base_tokenizer, template, texts):
    assert closings(base_tokenizer(template)) == texts
