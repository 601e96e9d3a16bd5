"""How a model answers: each of the seven numbers, on answers that have it and on some that nearly do."""

import pytest

from thriftune.config.publishing import BEHAVIOURS as NAMES
from thriftune.inference.gate import language
from thriftune.inference.gate.behaviour import (
    BEHAVIOURS,
    Answer,
    has_template_text,
    is_empty,
    is_loop,
    is_refusal,
)

ENGLISH = "The quick brown fox jumps over the lazy dog, and then it goes home to sleep for the whole night."
GERMAN = "Der schnelle braune Fuchs springt über den faulen Hund und geht danach nach Hause, um zu schlafen."
RUSSIAN = "Быстрая коричневая лиса прыгает через ленивую собаку, а потом идёт домой спать всю ночь."  # noqa: RUF001 (it is Cyrillic)
JAPANESE = "すばやい茶色の狐がのろまな犬を飛び越えて、それから家に帰って一晩中眠りました。"
CHINESE = "敏捷的棕色狐狸跳过了懒狗，然后回家睡了一整夜。"  # noqa: RUF001 (a Chinese comma)
CODE = "def f(x):\n  return [y for y in x if y > 3]\nprint(f([1, 2, 3, 4]))\nfor i in range(10):\n   print(i, i ** 2)"


def test_run_files_and_answers_know_the_same_names():
    assert tuple(BEHAVIOURS) == NAMES


@pytest.mark.parametrize(("text", "loops"), [
    ("The cat sat down. " * 4, True),
    ("The cat sat down. " * 3, False),
    ("Well. " + "and so on " * 7, True),
    ("aaaa" * 20, True),
    ("ha ha ha ha", False),
    ("行こう。" * 20, True),
    (f"{ENGLISH} {ENGLISH} {ENGLISH}", False),
    ("-" * 80, False),
    ("." * 300, True),
    ("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |", False),
    (", ".join(map(str, range(60))), False),
    ("def f(x):\n" + "\n".join(f"    if x == {n}: return {n * n}" for n in range(9)), False),
    ("", False),
])  # fmt: skip
def test_a_loop_says_the_same_four_times_in_a_row(text, loops):
    assert is_loop(text) is loops


@pytest.mark.parametrize(
    ("text", "empty"), [("", True), (" \n\t\u200b\x00", True), ("4", False), ("?", False), ("🙂", False)]
)
def test_an_empty_answer_has_nothing_to_see(text, empty):
    assert is_empty(text) is empty


@pytest.mark.parametrize("text", [
    "I'm sorry, but I can't help with that.", "I\u2019m sorry, I cannot answer this.", "As an AI language model, I",
    "I am unable to provide that.", "Unfortunately, I must decline.", "Es tut mir leid, aber ich weiß es nicht.",
    "Je suis désolé, mais cela ne va pas.", "Lo siento, pero no puedo.", "Desculpe, mas não.", "Mi dispiace, ma no.",
    "Извините, но я не могу помочь.", "抱歉，我无法回答。", "申し訳ありませんが、お答えできません。",  # noqa: RUF001
])  # fmt: skip
def test_a_refusal_is_known_by_its_words(text):
    assert is_refusal(text)


@pytest.mark.parametrize("text", [
    "Four.", "He said that he was sorry.", "I can help with that.", "The AI of the car", "Sorry seems to be a word.",
    "Ich kann das.", "x" * 250 + " I'm sorry, but I can't help with that.", "",
])  # fmt: skip
def test_other_answers_are_no_refusals(text):
    assert not is_refusal(text)


@pytest.mark.parametrize("text", [
    "Four.<|im_end|>", "<|eot_id|>", "[INST] And five? [/INST]", "Four.</s>", "<start_of_turn>model", "user\nAnd five?",
    "Four.\n### Response:\nFive.", "Four.\nUser: And five?", "<\uff5cend\u2581of\u2581sentence\uff5c>", "caf\ufffd",
])  # fmt: skip
def test_markers_of_templates_are_found(text):
    assert has_template_text(text)
    assert not has_template_text(text, expected=f"Write {text}"), "it is what was asked for"


@pytest.mark.parametrize("text", [
    "The user is here.", "a < b and b > c", "x | y || z", "<b>bold</b>", "<td>4</td>", "# Response", "[1, 2]",
    "The assistant: a job.", "if user in users:", "<html><s2></html>",
])  # fmt: skip
def test_other_text_has_no_markers(text):
    assert not has_template_text(text)


@pytest.mark.parametrize(("answer", "references", "is_other"), [
    (ENGLISH, (ENGLISH,), False),
    (GERMAN, (ENGLISH,), True),
    (GERMAN, ("", ENGLISH), True),
    (GERMAN, (GERMAN, ENGLISH), False),  # a translation
    (RUSSIAN, (ENGLISH,), True),
    ("Париж", ("Paris", "What is the capital of France?"), True),
    ("Paris", ("Paris", "What is the capital of France?"), False),
    ("π is about 3.14, and the letter is Greek.", (ENGLISH,), False),
    (CHINESE, (JAPANESE,), False),  # the script may be the same, and a short text is not told
    (JAPANESE, (ENGLISH,), True),
    (CODE, (ENGLISH,), False),
    ("4", (ENGLISH,), False),
    ("", (ENGLISH,), False),
    (ENGLISH, ("4", "2 + 2"), False),
    (GERMAN, ("", f"<|im_start|>user\n{GERMAN}<|im_end|>"), False),
])  # fmt: skip
def test_another_language_or_script_than_both_question_and_answer(answer, references, is_other):
    assert language.is_other(answer, references) is is_other


def test_what_is_not_known_of_an_answer_is_not_counted():
    answer = Answer("What is two and two?", "Four.", "Four.")
    measured = {name: behaviour.measure(answer) for name, behaviour in BEHAVIOURS.items()}
    assert measured == {
        "stops": None, "repeats": 0, "empty": 0, "other_language": 0, "length": None, "refusals": 0, "template_text": 0,
    }  # fmt: skip
    known = Answer("", "", "", stopped=False, tokens=7)
    assert (BEHAVIOURS["stops"].measure(known), BEHAVIOURS["length"].measure(known)) == (0, 7)
