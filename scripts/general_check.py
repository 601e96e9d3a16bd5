"""Check the items of general-mini: balance, lengths, duplicates and clean text.

Usage: python scripts/general_check.py
"""

import re
import string
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

from thriftune.data.general import general_items
from thriftune.data.items import Item

CHOICES = 4
LEAST_ITEMS, GROUPS = 300, 5
# The right choice stands at each place this share of the time, give or take so much, in every group.
_EACH, _TOLERANCE = 1 / CHOICES, 0.05
# Pearson's chi-square of the places, with three degrees of freedom, is below this in 95 % of sets drawn evenly.
_CHI_SQUARE = 7.815
# Who always takes the longest choice, or always the shortest, may score so much above chance: in a group, and overall.
_GROUP_MARGIN, _WHOLE_MARGIN = 0.10, 0.05
# Two items with so large a share of their words in common are the same item in other words.
_NEAR = 0.8
# Shorter answers, and those of grammar, are everyday words that other questions contain by chance.
_TELLING_LETTERS, _EVERYDAY_WORDS = 4, ("grammar_spelling", "instruction_following")
_CLEAN = set(string.ascii_letters + string.digits + string.punctuation + " ")


def problems(items: Sequence[Item]) -> list[str]:
    """What is wrong with items.

    Args:
        items: Items of multiple choice.

    Returns:
        A sentence for each problem; none for good items.
    """
    groups = _by_group(items)
    found = [*_counts(items, groups), *_texts(items), *_copies(items), *_answers_told(items)]
    for group, members in groups.items():
        found += _places(group, members)
        found += _lengths(group, members, _GROUP_MARGIN)
    return [*found, *_lengths("all groups", items, _WHOLE_MARGIN)]


def table(items: Sequence[Item]) -> str:
    """The figures of each group, and of all, as text.

    Args:
        items: Items of multiple choice.
    """
    lines = [f"{'group':24}{'items':>6}  {'places':20}{'chi2':>6}{'longest':>9}{'shortest':>9}{'nearest pair':>14}"]
    for group, members in {**_by_group(items), "all": list(items)}.items():
        longest, shortest = (f"{_score_by_length(members, sign):.1%}" for sign in (1, -1))
        near = max(share for share, _, _ in _pairs(members))
        places = " ".join(f"{count:3}" for count in _at_places(members))
        lines.append(
            f"{group:24}{len(members):6}  {places:20}{_chi_square(members):6.2f}{longest:>9}{shortest:>9}{near:14.2f}"
        )
    return "\n".join(lines)


def _by_group(items: Sequence[Item]) -> dict[str, list[Item]]:
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.group].append(item)
    return groups


def _counts(items: Sequence[Item], groups: dict[str, list[Item]]) -> Iterator[str]:
    if len(items) < LEAST_ITEMS:
        yield f"{len(items)} items are fewer than {LEAST_ITEMS}."
    sizes = {group: len(members) for group, members in groups.items()}
    if len(groups) != GROUPS or len(set(sizes.values())) > 1:
        yield f"there are not {GROUPS} groups of one size: {sizes}."
    if len({item.id for item in items}) < len(items):
        yield "an id is there twice."


def _texts(items: Sequence[Item]) -> Iterator[str]:
    for item in items:
        choices = {_normal(choice, keep_case=True) for choice in item.choices}
        if len(choices) != CHOICES or len(item.choices) != CHOICES:
            yield f"{item.id} has no four different choices."
        if item.answer not in range(CHOICES):
            yield f"{item.id} has no choice {item.answer}."
        for text in (item.question, *item.choices):
            if not text or set(text) - _CLEAN or text != " ".join(text.split()):
                yield f"{item.id} has a text that is empty, not plain, or has spaces too many: {text!r}."


def _copies(items: Sequence[Item]) -> Iterator[str]:
    questions = sorted((_normal(item.question), item.id) for item in items)
    for (question, one), (other_question, other) in pairwise(questions):
        if question == other_question:
            yield f"{one} and {other} ask the same."
    for share, one, other in _pairs(items):
        if share >= _NEAR:
            yield f"{one} and {other} have {share:.0%} of their words in common."


def _pairs(items: Sequence[Item]) -> Iterator[tuple[float, str, str]]:
    """The share of words that two items have in common, for all pairs."""
    words = [(item.id, set(_normal(" ".join((item.question, *item.choices))).split())) for item in items]
    for (one, mine), (other, theirs) in combinations(words, 2):
        yield len(mine & theirs) / len(mine | theirs), one, other


def _answers_told(items: Sequence[Item]) -> Iterator[str]:
    """Items whose right answer another question of their group mentions."""
    for item in items:
        told = _normal(item.accepted[0])
        if item.group in _EVERYDAY_WORDS or len(told) < _TELLING_LETTERS:
            continue
        for other in items:
            if other is not item and other.group == item.group and f" {told} " in f" {_normal(other.question)} ":
                yield f"{other.id} mentions the answer of {item.id}: {told}."


def _places(group: str, items: Sequence[Item]) -> Iterator[str]:
    shares = [count / len(items) for count in _at_places(items)]
    if max(abs(share - _EACH) for share in shares) > _TOLERANCE or _chi_square(items) > _CHI_SQUARE:
        yield f"{group}: the right choice is not at each place equally often: {_at_places(items)}."


def _at_places(items: Sequence[Item]) -> list[int]:
    return [sum(item.answer == place for item in items) for place in range(CHOICES)]


def _chi_square(items: Sequence[Item]) -> float:
    expected = len(items) / CHOICES
    return sum((count - expected) ** 2 / expected for count in _at_places(items))


def _lengths(group: str, items: Sequence[Item], margin: float) -> Iterator[str]:
    for sign, which in ((1, "longest"), (-1, "shortest")):
        score = _score_by_length(items, sign)
        if score > _EACH + margin:
            yield f"{group}: who always takes the {which} choice scores {score:.1%}."


def _score_by_length(items: Sequence[Item], sign: int) -> float:
    """Score of who always takes the longest choice (sign 1) or the shortest (-1), guessing among equal ones."""
    score = 0.0
    for item in items:
        lengths = [sign * len(choice) for choice in item.choices]
        best = max(lengths)
        score += (sign * len(item.accepted[0]) == best) / lengths.count(best)
    return score / len(items)


def _normal(text: str, *, keep_case: bool = False) -> str:
    """A text with case and punctuation folded; where case is kept, so is punctuation, which may be the difference."""
    return text if keep_case else " ".join(re.findall(r"[a-z0-9]+", text.casefold()))


def main() -> int:
    """Print the table and the problems."""
    items = general_items()
    found = problems(items)
    sys.stdout.write("\n".join((table(items), *found)) + "\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
