"""What a secret looks like in a text, and what does not."""

import time

import pytest

from thriftune.errors import ConfigError, Problem, TransientError, chain_of, in_a_line, without_secrets
from thriftune.redaction import names_user, redacted, unsigned

SECRET = "s3cr3t"
WITH_SECRETS = {
    "http://user:s3cr3t@host/data.jsonl": "http://REDACTED@host/data.jsonl",
    "https://s3cr3t@host/data.jsonl": "https://REDACTED@host/data.jsonl",
    "http://user:pa/s3cr3t@host": "http://REDACTED@host",
    "http://:s3cr3t@host": "http://REDACTED@host",
    "http://user:p@s3cr3t@host/x, me@example.org": "http://REDACTED@host/x, me@example.org",
    "simplecache::s3://key:s3cr3t@bucket/x": "simplecache::s3://REDACTED@bucket/x",
    "abfs://container:s3cr3t@account/x": "abfs://REDACTED@account/x",
    "http://h/d.jsonl?sig=s3cr3t": "http://h/d.jsonl?sig=REDACTED",
    "http://h/d.jsonl?sig=s3cr3t: cannot be read": "http://h/d.jsonl?sig=REDACTED: cannot be read",
    "['http://h/d.jsonl?a=1&token=s3cr3t%2F%3D']": "['http://h/d.jsonl?a=1&token=REDACTED']",
    "http://h/d.jsonl?a=1&amp;password=s3cr3t&amp;b=2": "http://h/d.jsonl?a=1&amp;password=REDACTED&amp;b=2",
    r"http://h/d.jsonl?a=1\u0026api_key=s3cr3t": r"http://h/d.jsonl?a=1\u0026api_key=REDACTED",
    "http://h/d#access_token=s3cr3t": "http://h/d#access_token=REDACTED",
    "with url: /d?Signature=s3cr3t&Expires=17": "with url: /d?Signature=REDACTED&Expires=17",
    "http%3A%2F%2Fh%2Fd%3Fsig%3Ds3cr3t": "http%3A%2F%2Fh%2Fd%3Fsig%3DREDACTED",
    "http://h/d?X-Amz-Credential=s3cr3t%2F2026&X-Amz-Signature=s3cr3t&X-Amz-Security-Token=s3cr3t": (
        "http://h/d?X-Amz-Credential=REDACTED&X-Amz-Signature=REDACTED&X-Amz-Security-Token=REDACTED"
    ),
    "http://h/d?x-goog-signature=s3cr3t": "http://h/d?x-goog-signature=REDACTED",
    "http://h/d?AWSAccessKeyId=s3cr3t": "http://h/d?AWSAccessKeyId=REDACTED",
    "http://h/d?key=s3cr3t": "http://h/d?key=REDACTED",
    "http://h/d?s=s3cr3t4f0e1d2c3b4a59687": "http://h/d?s=REDACTED",
    "http://h/d?s3cr3t4f0e1d2c3b4a59687": "http://h/d?REDACTED",
    "hf_s3cr3tAbCdEfGhIjKlMn": "REDACTED",
    r'"a line\nhf_s3cr3tAbCdEfGhIjKlMn"': r'"a line\nREDACTED"',
    "Authorization: Bearer s3cr3t.abc": "Authorization: Bearer REDACTED",
    '{"authorization": "bearer s3cr3t.abc"}': '{"authorization": "bearer REDACTED"}',
}  # fmt: skip
WITHOUT = [
    "http://host:8080/a@b.jsonl",
    "http://[::1]:8080/a@b.jsonl",
    "hf://datasets/owner/name@main/train.jsonl",
    "abfs://container@account.dfs.core.windows.net/x",
    "write to me@example.org about s3://bucket/rows.jsonl",
    "https://www.youtube.com/watch?v=dQw4w9WgXcQ",
    "http://h/d?file=training-data-2024-part-one-of-the-whole-thing.jsonl",
    '{"source": "http://h/d?file=the-rows-of-a-larger-data-set", "rows": "b2"}',
    "author=x&authors=y",
    "for (i = 0;code=3;) a;key=5",
    "/data/run;key=3/adapter",
    "What does ?key=abc mean, and &pass=1?",
    "the standard bearer organization",
    "hf_raise_for_status(response)",
    "owner/model",
    "/data/rows.jsonl",
]


@pytest.mark.parametrize(("text", "expected"), WITH_SECRETS.items())
def test_a_secret_is_taken_out_and_the_rest_stays(text, expected):
    assert redacted(text) == expected
    assert redacted(expected) == expected
    assert SECRET not in redacted(f"{text} and {text}")


def test_keys_of_aws_are_taken_out():
    assert redacted("AKIA" + "ABCDEFGHIJKLMNOP") == "REDACTED"


@pytest.mark.parametrize("text", WITHOUT)
def test_what_is_none_stays(text):
    assert redacted(text) == text
    assert not names_user(text)
    assert unsigned(text) == text


@pytest.mark.parametrize(
    "text", ["a", "://", "?", "&token", "?a=", "://a:", "eyJ", "bearer ", "hf_", "http://h?a1", "@"]
)
def test_no_text_takes_long(text):
    started = time.monotonic()
    redacted(text * (1_000_000 // len(text)))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("X-Amz-Date=1&X-Amz-Signature=a", "X-Amz-Date=2&X-Amz-Signature=b&X-Amz-Security-Token=c"),
        ("sv=2020&se=1&sig=a", "sv=2020&se=2&sp=r&sig=b"),
        ("Expires=1&Signature=a&AWSAccessKeyId=k", "Expires=2&Signature=b&AWSAccessKeyId=k"),
    ],
)
def test_a_place_is_one_whoever_signed_it(first, second):
    place = "https://h/rows.jsonl?version=3"
    assert unsigned(f"{place}&{first}") == unsigned(f"{place}&{second}") == place
    assert unsigned(f"https://h/rows.jsonl?{first}") == "https://h/rows.jsonl"


def test_places_that_differ_stay_apart():
    assert unsigned("https://h/get?file=a&token=1") != unsigned("https://h/get?file=b&token=1")
    assert unsigned("https://h/get?key=a") != unsigned("https://h/get?key=b")
    assert unsigned("s3://bucket/rows-?.jsonl") == "s3://bucket/rows-?.jsonl"


def test_errors_of_ours_hold_no_secret_from_the_start():
    url = "http://user:s3cr3t@h/d?sig=s3cr3t"
    problem = Problem("data.source", url, f"{url} is away.", f"Try {url}.")
    for text in (problem, problem.value, ConfigError([problem]), TransientError(f"{url} is away")):
        assert SECRET not in str(text)


def test_half_a_secret_is_no_secret_any_more_where_a_text_is_cut():
    """A password in a long URL was cut off before the @, by which it is told."""
    assert SECRET not in in_a_line(OSError(f"http://user:{SECRET}{'x' * 300}@host"))


def test_what_led_to_an_error_is_shown_without_secrets_and_under_its_name():
    def chained():
        try:
            try:
                raise FileNotFoundError("http://h/d?sig=s3cr3t")
            except FileNotFoundError:
                raise KeyError("nothing") from None
        except KeyError as error:
            try:
                raise ConnectionRefusedError("http://h/e?sig=s3cr3t") from error
            except ConnectionRefusedError as cause:
                raise ValueError("fine") from cause

    with pytest.raises(ValueError, match="fine") as caught:
        chained()
    shown = without_secrets(caught.value)
    assert shown is caught.value
    assert [type(link).__name__ for link in chain_of(shown)] == ["ValueError", "ConnectionRefusedError", "KeyError"]
    assert not [link for link in chain_of(shown) if SECRET in str(link)]
    assert str(shown.__cause__) == "http://h/e?sig=REDACTED"


def test_an_error_without_secrets_is_left_as_it_is():
    error = ValueError("a")
    error.__cause__ = OSError("b")
    assert without_secrets(error) is error
    assert isinstance(error.__cause__, OSError)
