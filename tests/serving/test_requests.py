"""Requests as they are read, before anybody decodes for them."""

import json
from dataclasses import dataclass
from typing import Any

import pytest

from serving.http_server import question
from thriftune.inference.serving.limits import Limits
from thriftune.inference.serving.questions import Questions
from thriftune.inference.serving.refusals import RefusedError
from thriftune.inference.serving.requests import read


def refused(body):
    with pytest.raises(RefusedError) as raised:
        read(body if isinstance(body, bytes) else json.dumps(question("hi") | body).encode(), ["base"])
    return raised.value


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "base", "model": "a1", "messages": [{"role": "user", "content": "hi"}]}',
        b'{"model": "base", "messages": [{"role": "user", "content": "hi", "content": "ho"}]}',
    ],
)
def test_a_key_that_is_there_twice_is_refused(body):
    """The last of the two was read, without a word about the other."""
    error = refused(body)
    assert (error.status, error.code) == (400, "invalid_json")
    assert "is there twice" in str(error)


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "user", "content": [0] * 300_000}],
        [{"role": "user", "content": [0] * 1000}] * 300,
    ],
)
def test_many_wrong_parts_are_one_problem(messages):
    """Each was a problem with a text of its own: 430 MB for a body of 1 MB."""
    error = refused({"messages": messages})
    assert error.param.startswith("messages.0.content")
    assert int(str(error).partition(" more)")[0].rpartition("(")[2]) < 3


def test_a_number_of_thousands_of_digits_is_not_quoted():
    assert len(str(refused({"max_tokens": 10**4000}))) < 200


@dataclass
class Watched:
    """A tokenizer that notes the longest text that it gets."""

    tokenizer: Any
    longest: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def __call__(self, text: str, **options: Any) -> Any:
        self.longest = max(self.longest, len(text))
        return self.tokenizer(text, **options)


def asks(tokenizer, text, style="chat", most=20, positions=None):
    questions: Any = Questions(tokenizer, {"base": style}, Limits(max_prompt_tokens=most), positions)
    return questions.asks(read(json.dumps(question(text)).encode(), ["base"]))


def test_of_a_text_that_is_far_too_long_the_beginning_is_read(llama_tokenizer):
    """Its tokens took 150 times its memory, for each of six at once, and streams of others stood still meanwhile."""
    watched = Watched(llama_tokenizer)
    with pytest.raises(RefusedError, match=r"The messages are more than \d+ tokens; at most 20 are read"):
        asks(watched, "long " * 100_000)
    assert watched.longest < 1000


def leaving_out(tokenizer, letter):
    """The tokenizer, without a BOS, as one that leaves out a letter that has no shape."""
    from tokenizers import Tokenizer, normalizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    inner.normalizer, inner.post_processor = normalizers.Replace(letter, ""), None
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def test_a_text_of_few_tokens_is_read_however_long_it_is(llama_tokenizer):
    (ask,) = asks(leaving_out(llama_tokenizer, "\u200b"), "\u200b" * 5000 + "hi", "text")
    assert 0 < len(ask.prompt) <= 20


def test_a_text_without_tokens_is_refused(llama_tokenizer):
    """The forward pass failed on it: status 500 for what the client has to correct."""
    with pytest.raises(RefusedError, match="The messages have no tokens"):
        asks(leaving_out(llama_tokenizer, "\u200b"), "\u200b", "text")


def test_an_answer_ends_with_the_position_table(llama_tokenizer):
    (ask,) = asks(llama_tokenizer, "hi", "text", positions=6)
    assert len(ask.prompt) + ask.max_tokens == 6
    with pytest.raises(RefusedError, match=r"The messages are \d+ tokens, and the model has 2 positions"):
        asks(llama_tokenizer, "hi", "text", positions=2)
