"""The language and the script of a text, as far as it is long enough to tell."""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

# Letters in other scripts than the reference's that are an answer in another script: a name in Greek is none.
_FOREIGN = 0.3
# py3langid names the language of a sentence rightly; of a few words, and of code or tables, it guesses.
_FEWEST_LETTERS, _LETTERS_OF_PROSE, _SURE = 60, 0.6, 0.95
# Scripts that one language writes in together.
_TOGETHER = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "KATAKANA-HIRAGANA": "CJK", "BOPOMOFO": "CJK", "FULLWIDTH": "LATIN"}
# Markers of chat templates are no words of the language of a prompt.
_MARKERS = re.compile(r"<[^<>\n]{1,40}>|\[/?\w+\]")


def is_other(answer: str, references: Iterable[str]) -> bool:
    """Whether an answer is in a script or a language that none of several texts has.

    Args:
        answer: The answer.
        references: What it may be like: the right answer, and the question. A translation has the language of the one,
            and an explanation that of the other.
    """
    texts = [text for text in (_MARKERS.sub(" ", text) for text in references) if _letters(text)]
    letters = scripts_of(answer)
    if not texts or not letters:
        return False
    known = set().union(*(scripts_of(text) for text in texts))
    if sum(count for script, count in letters.items() if script not in known) > _FOREIGN * letters.total():
        return True
    spoken = language_of(answer)
    expected = [found for found in map(language_of, texts) if found]
    return bool(spoken and expected) and spoken not in expected


def scripts_of(text: str) -> Counter[str]:
    """The scripts of a text, by number of letters: LATIN, CYRILLIC, CJK ...

    Args:
        text: The text.
    """
    names = (unicodedata.name(letter, "").partition(" ")[0] for letter in _letters(text))
    return Counter(_TOGETHER.get(name, name) for name in names if name)


def language_of(text: str) -> str:
    """The language of a text, by its code of two letters; empty where it cannot be told.

    Args:
        text: The text.
    """
    letters = _letters(text)
    seen = sum(not letter.isspace() for letter in text)
    if len(letters) < _FEWEST_LETTERS or len(letters) < _LETTERS_OF_PROSE * seen:
        return ""
    name, probability = _identifier().classify(text)
    return str(name) if probability >= _SURE else ""


def _letters(text: str) -> Sequence[str]:
    return [letter for letter in text if letter.isalpha()]


@cache
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
