"""How a model answers, whatever it answers: seven numbers of each written answer, which a loss does not show."""

import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from thriftune.inference.gate import language

# Loops shorter than this, in characters, or of fewer rounds are ordinary text: a refrain, a row of a table.
_SHORTEST_LOOP, _FEWEST_ROUNDS, _LONGEST_ROUND = 60, 4, 200
# Lines of dashes or dots are layout; a model that never stops writes more of them than any layout has.
_LONGEST_RULE = 200
# A refusal stands at the beginning; further on, the same words quote or explain.
_OPENING = 200

_REFUSALS = re.compile(
    "|".join(
        (
            # English
            r"\bi(?:['\u2019]m| am) (?:really |very |so )?sorry,? (?:but )?(?:i|as an)\b",
            r"\bi(?: can(?:['\u2019]t|not)| can not| won['\u2019]t| will not) (?:help|assist|provide|answer|comply"
            r"|do that|fulfill?|continue|discuss|engage|support)\b",
            r"\bi(?:['\u2019]m| am) (?:not able|unable) to\b",
            r"\bi(?:['\u2019]m| am) not (?:allowed|permitted|comfortable)\b",
            r"\bi (?:must|have to) (?:decline|refuse)\b",
            r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b",
            r"\bi(?:['\u2019]m| am) (?:just |only )?an? (?:ai|(?:large )?language model)\b",
            # German, French, Spanish, Portuguese, Italian
            r"\bes tut mir leid,? (?:aber )?ich\b|\bich kann (?:dir|ihnen|dabei|das|diese\w*)\b[^.]*\bnicht\b",
            r"\bals (?:ki|sprachmodell)\b",
            r"\bje (?:suis désolée?|regrette),? mais\b",
            r"\bje ne peux pas (?:vous |t['\u2019])?(?:aider|répondre|fournir)\b",
            r"\ben tant qu['\u2019](?:ia|intelligence artificielle|assistant)\b",
            r"\blo siento,? (?:pero )?no puedo\b|\bno puedo (?:ayudar|proporcionar|responder)\w*\b",
            r"\b(?:desculpe|sinto muito|lamento),? mas\b|\bnão posso (?:ajudar|fornecer|responder)\w*\b",
            r"\bmi dispiace,? ma\b|\bnon posso (?:aiutar|fornir|rispondere)\w*\b",
            # Russian, Chinese, Japanese
            r"извините,? (?:но )?я не могу|я не могу (?:помочь|ответить|предоставить)",
            r"抱歉\uff0c?我(?:不能|无法)|我(?:不能|无法)(?:帮助|提供|回答)|作为(?:一个)?(?:ai|人工智能)",
            r"申し訳(?:ありません|ございません)が|お(?:答え|手伝い)(?:することは)?できません",
        )
    ),
    re.IGNORECASE,
)
_TEMPLATE = re.compile(
    "|".join(
        (
            r"<\|\w[\w ]{0,40}\|>",  # ChatML, Llama 3, GPT, Phi: <|im_start|>, <|eot_id|>, <|endoftext|>
            r"<\uff5c[^<>\n]{1,40}\uff5c>",  # DeepSeek, with wide bars
            r"\[/?INST\]|<</?SYS>>|\[/?(?:AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT)\]",  # Llama 2, Mistral
            r"</?s>|<(?:pad|unk|bos|eos|mask)>|<(?:start|end)_of_turn>",  # Gemma, and tokens of sentencepiece
            r"(?m:^\s*#{2,3} ?(?:Instruction|Response|Input|Human|Assistant|User|System)s?:)",  # Alpaca
            r"(?m:^\s*(?:USER|ASSISTANT|Human|Assistant|User|System): )",  # Vicuna, and transcripts
            r"(?m:^(?:user|assistant|system)$)",  # ChatML without its tokens, as decoding leaves it
            "\ufffd",  # bytes that are no text
        )
    )
)


@dataclass(frozen=True)
class Answer:
    """What a model wrote.

    Attributes:
        prompt: What it was asked.
        expected: The right answer; empty if none is known.
        text: The answer.
        stopped: Whether it ended by itself, and not by its longest length; None where that is not known.
        tokens: Its number of tokens; None where that is not known.
    """

    prompt: str
    expected: str
    text: str
    stopped: bool | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Behaviour:
    """A number of an answer.

    Attributes:
        title: What the mean over answers says.
        higher_is_better: Whether more of it is better; None where neither is.
        measure: The number; None where it is not known.
    """

    title: str
    higher_is_better: bool | None
    measure: Callable[[Answer], float | None]


def is_loop(text: str) -> bool:
    """Whether a text says one thing over and over: four times in a row, over sixty characters or more.

    Args:
        text: The text.
    """
    import numpy as np

    letters = " ".join(text.casefold().split()) + " "  # so that the last round of a sentence is as long as the others
    codes = np.frombuffer(letters.encode("utf-32-le"), dtype=np.uint32)
    for period in range(1, min(_LONGEST_ROUND, len(codes) // _FEWEST_ROUNDS) + 1):
        differs = np.flatnonzero(codes[period:] != codes[:-period])
        ends = np.concatenate([[-1], differs, [len(codes) - period]])
        longest = int(np.argmax(np.diff(ends)))
        length = int(ends[longest + 1] - ends[longest] - 1) + period
        start = int(ends[longest]) + 1
        has_words = any(letter.isalnum() for letter in letters[start : start + period])
        if length >= max(_FEWEST_ROUNDS * period, _SHORTEST_LOOP if has_words else _LONGEST_RULE):
            return True
    return False


def is_empty(text: str) -> bool:
    """Whether a text has nothing that can be seen.

    Args:
        text: The text.
    """
    return all(letter.isspace() or unicodedata.category(letter) in ("Cc", "Cf") for letter in text)


def is_refusal(text: str) -> bool:
    """Whether an answer begins with one of the usual words of a refusal.

    Args:
        text: The answer.
    """
    return _REFUSALS.search(text.lstrip()[:_OPENING]) is not None


def has_template_text(text: str, expected: str = "") -> bool:
    """Whether an answer has markers of a chat template as text, or bytes that are none.

    Args:
        text: The answer.
        expected: The right answer; markers that it has too are part of the matter.
    """
    return any(found.group().strip() not in expected for found in _TEMPLATE.finditer(text))


def _share(found: bool | None) -> float | None:
    return None if found is None else float(found)


BEHAVIOURS: Mapping[str, Behaviour] = {
    "stops": Behaviour("stop by themselves", True, lambda answer: _share(answer.stopped)),
    "repeats": Behaviour("repeat themselves", False, lambda answer: float(is_loop(answer.text))),
    "empty": Behaviour("are empty", False, lambda answer: float(is_empty(answer.text))),
    "other_language": Behaviour(
        "are in another language or script",
        False,
        lambda answer: float(language.is_other(answer.text, (answer.expected, answer.prompt))),
    ),
    "length": Behaviour("tokens, in the mean", None, lambda answer: answer.tokens),
    "refusals": Behaviour("refuse", False, lambda answer: float(is_refusal(answer.text))),
    "template_text": Behaviour(
        "have text of a template", False, lambda answer: float(has_template_text(answer.text, answer.expected))
    ),
}
