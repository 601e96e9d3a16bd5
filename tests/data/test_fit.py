"""Rows brought to the maximum length, and what makes two pieces the same."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thriftune.data.examples import MarkedText
from thriftune.data.formats import FORMATS
from thriftune.data.tokenization import IGNORED, Tokenization, TokenRow, digest, fit

_ = IGNORED
LONG = TokenRow([1, 15, 6, 16, 6, 17, 2], [_, _, _, 16, 6, 17, 2])


@pytest.mark.parametrize("policy", ["truncate", "drop", "split"])
def test_a_row_that_fits_stays_as_it_is(policy):
    assert fit(LONG, 7, policy) == [LONG]
    assert fit(LONG, 8, policy) == [LONG]


def test_a_row_that_is_too_long_is_cut_at_its_end_or_left_out():
    assert fit(LONG, 6, "truncate") == [TokenRow([1, 15, 6, 16, 6, 17], [_, _, _, 16, 6, 17])]
    assert fit(LONG, 3, "truncate") == [TokenRow([1, 15, 6], [_, _, _])]
    assert fit(LONG, 6, "drop") == []


def test_pieces_of_a_row_start_with_the_last_token_of_the_one_before():
    assert fit(LONG, 4, "split") == [
        TokenRow([1, 15, 6, 16], [_, _, _, 16]),
        TokenRow([16, 6, 17, 2], [_, 6, 17, 2]),
    ]
    assert fit(LONG, 6, "split") == [
        TokenRow([1, 15, 6, 16, 6, 17], [_, _, _, 16, 6, 17]),
        TokenRow([17, 2], [_, 2]),
    ]
    assert [piece.input_ids for piece in fit(LONG, 2, "split")] == [
        [1, 15], [15, 6], [6, 16], [16, 6], [6, 17], [17, 2],
    ]  # fmt: skip
    assert [piece.labels for piece in fit(LONG, 2, "split")] == [[_, _], [_, _], [_, 16], [_, 6], [_, 17], [_, 2]]


def test_a_digest_is_of_what_a_piece_says_and_trains():
    text = MarkedText("abc", ((1, 3),), question="a")
    assert digest(text, 0) == digest(MarkedText("abc", ((1, 3),), question="b"), 0)
    others = [MarkedText("abd", ((1, 3),)), MarkedText("abc", ((2, 3),))]
    assert len({digest(text, 0), digest(text, 1), *(digest(other, 0) for other in others)}) == 4
    assert len(digest(text, 0)) == 16


# No "<": a text that spells a special token out is that token.
words = st.text(st.characters(exclude_characters="<", exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda text: text.strip()
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=words, max_length=st.integers(2, 30))
def test_splitting_a_long_text_loses_nothing(llama_tokenizer, text, max_length):
    (example,) = FORMATS["text"].read({"text": text})
    rows = fit(*Tokenization(llama_tokenizer).tokenize([example]), max_length, "split")
    assert all(len(row.input_ids) == max_length for row in rows[:-1])
    assert 2 <= len(rows[-1].input_ids) <= max_length
    ids = [*rows[0].input_ids, *(i for row in rows[1:] for i in row.input_ids[1:])]
    assert llama_tokenizer.decode(ids) == f"<s>{text}</s>"
    assert [label for row in rows for label in row.labels[1:]] == ids[1:]
    assert all(row.labels[0] == _ for row in rows)
