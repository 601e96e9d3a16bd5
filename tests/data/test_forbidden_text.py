"""What no row may spell out, and tokenizers that cannot be used."""

import copy
import json

import pytest

from thriftune.config import DataConfig
from thriftune.data.conversion import Batch, Converter
from thriftune.data.sources import NumberedRow
from thriftune.data.tokenization import ForbiddenText, require_usable
from thriftune.errors import DataError


@pytest.fixture
def reasons(llama_tokenizer):
    """Why texts are refused, each in a column of its own: a, b ..."""

    def find(*texts, keep=False):
        forbidden = ForbiddenText(llama_tokenizer, allow_special_tokens=keep)
        return list(forbidden.reasons(zip("abc", texts, strict=False)))

    return find


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a\0b", "column 'a' holds a NUL character"),
        ("a\ud83d", "column 'a' is not UTF-8"),  # the first half of an emoji
        ("\udcff", "column 'a' is not UTF-8"),  # how Python keeps a byte that is no text
        ("yes</s>", "column 'a' spells out the special token '</s>'"),
        ("<s>yes", "column 'a' spells out the special token '<s>'"),
        ("<<<pad>>>", "column 'a' spells out the special token '<pad>'"),
        ("<unk>", "column 'a' spells out the special token '<unk>'"),
    ],
)
def test_a_text_that_no_row_may_hold_is_refused(reasons, text, reason):
    assert reasons(text) == [reason]


@pytest.mark.parametrize(
    "text", ["", "a", "é 😀 \u2028 \ufeff", "<S> < s> </ s> <s", "a < b > c", "[INST] [/INST]", "\r\n\t\x07"]
)
def test_a_text_like_others_is_not(reasons, text):
    assert reasons(text) == []


def test_each_column_has_its_own_reasons(reasons):
    assert reasons("<s>\0", "good", "</s>\udc80") == [
        "column 'a' holds a NUL character",
        "column 'a' spells out the special token '<s>'",
        "column 'c' is not UTF-8",
        "column 'c' spells out the special token '</s>'",
    ]


def test_special_tokens_may_be_kept_and_nothing_else(reasons):
    assert reasons("<s>yes</s>", keep=True) == []
    assert reasons("<s>\0", "\ud800", keep=True) == ["column 'a' holds a NUL character", "column 'b' is not UTF-8"]


def test_the_longest_special_token_is_named(llama_tokenizer):
    longer = copy.deepcopy(llama_tokenizer)
    longer.add_special_tokens({"additional_special_tokens": ["</s>extra", "|.*|"]})
    forbidden = ForbiddenText(longer)
    assert list(forbidden.reasons([("a", "x</s>extra")])) == ["column 'a' spells out the special token '</s>extra'"]
    assert list(forbidden.reasons([("a", "|.*|")])) == ["column 'a' spells out the special token '|.*|'"]
    assert list(forbidden.reasons([("a", "|abc|")])) == [], "names are no patterns"


CALLING = (
    "{% for m in messages %}{{ m.role + ': ' + m.content }}"
    "{% for call in m.tool_calls %}{{ call.function.name + (call.function.arguments | string) }}{% endfor %}"
    "{{ '\n' }}{% endfor %}"
    "{% if tools %}{{ tools | string }}{% endif %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\ud800", "is not UTF-8"),
        ("\0", "holds a NUL character"),
        ("</s>", "spells out the special token '</s>'"),
    ],
)
def test_what_json_text_hides_in_escapes_is_refused(llama_tokenizer, text, reason):
    """Arguments and tools in JSON text hid it: half an emoji ended the run, and </s> became the token."""
    tokenizer = copy.deepcopy(llama_tokenizer)
    tokenizer.chat_template = CALLING
    hidden = json.dumps({"at": text}).replace("<", "\\u003c")
    assert list(ForbiddenText(tokenizer).reasons([("a", hidden)])) == []
    asked = {"role": "user", "content": "Why?"}
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "sky", "arguments": hidden}}]}
    rows = [
        {"messages": [asked, call]},
        {"messages": [asked, {"role": "assistant", "content": "So."}], "tools": f"[{hidden}]"},
        {"messages": [asked, {"role": "assistant", "content": "So."}]},
    ]
    batch = Batch(0, [NumberedRow("f", number, row) for number, row in enumerate(rows, 1)], [False] * 3)
    result = Converter(DataConfig(source="f", format="chat"), tokenizer).convert(batch)
    assert [(r.row, r.reason) for r in result.rejected] == [
        (1, f"column 'tool_calls' {reason}"),
        (2, f"column 'tools' {reason}"),
    ]
    assert result.table.num_rows == 1


# Tokenizers.


def test_a_tokenizer_without_what_the_format_needs_is_refused(llama_tokenizer):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1}, unk_token="<s>"))
    bare = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>")
    endless = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>")
    require_usable(llama_tokenizer, needs_chat_template=True)
    require_usable(bare, needs_chat_template=False)
    with pytest.raises(DataError, match=r"data\.format = chat: .*no chat template"):
        require_usable(bare, needs_chat_template=True)
    with pytest.raises(DataError, match=r"model\.source.*no EOS token"):
        require_usable(endless, needs_chat_template=False)


def test_a_tokenizer_without_places_in_the_text_is_refused():
    from transformers import ByT5Tokenizer

    with pytest.raises(DataError, match=r"model\.source.*gives no character offsets"):
        require_usable(ByT5Tokenizer(), needs_chat_template=False)


def converted(tokenizer, row, **config):
    result = Converter(DataConfig(source="x", **config), tokenizer).convert(
        Batch(0, [NumberedRow("x", 1, row)], [False])
    )
    return [rejected.reason for rejected in result.rejected], result.table.column("input_ids").to_pylist()


def test_columns_cannot_spell_out_a_special_token_together(llama_tokenizer):
    """ "a<" before "/s>b" once became the end of the text in the middle of a row."""
    row = {"prompt": "a<", "completion": "/s>b"}
    reasons, _ = converted(llama_tokenizer, row, format="prompt_completion")
    assert reasons == ["its columns together spell out the special token '</s>'"]
    reasons, _ = converted(llama_tokenizer, row, format="template", template="{prompt}{completion}")
    assert reasons == ["its columns together spell out the special token '</s>'"]


def test_a_template_may_hold_special_tokens_itself(llama_tokenizer):
    options = {"format": "template", "template": "{q}</s>{a}"}
    reasons, (ids,) = converted(llama_tokenizer, {"q": "hi", "a": "yes"}, **options)
    assert reasons == []
    assert ids.count(llama_tokenizer.eos_token_id) == 2
    reasons, _ = converted(llama_tokenizer, {"q": "hi<", "a": "/s>"}, **options)
    assert reasons == []  # each is separated from the other by the template
    reasons, _ = converted(llama_tokenizer, {"q": "hi", "a": "/s>"}, **{**options, "template": "{q}</s><{a}"})
    assert reasons == ["its columns together spell out the special token '</s>'"]


def test_a_text_with_its_template_applied_is_closed_once(llama_tokenizer):
    """ChatML ends in a line break after the closing token: a second one was added behind it."""
    options = {"format": "text", "special_tokens": "keep", "packing": True}
    reasons, (ids,) = converted(llama_tokenizer, {"text": "<s>hi</s>\n"}, **options)
    assert reasons == []
    assert llama_tokenizer.decode(ids) == "<s>hi</s>"
