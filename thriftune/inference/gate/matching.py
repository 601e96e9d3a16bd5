"""The items of several results, put together: what differs is refused, since a difference would be of other items."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile

from thriftune.errors import DataError, Problem
from thriftune.inference.benchmarks.results import ItemResult, Results

# Items that are named in a message; the others are counted.
_NAMED = 5
# Characters of a prompt in a message, and those of them before it parts from another.
_SHOWN, _BEFORE = 60, 20


@dataclass(frozen=True)
class Pair:
    """One item, as each measurement of the base and the result answered it.

    Attributes:
        base: Of the base, one for each time that it was measured.
        tuned: Of the result.
    """

    base: tuple[ItemResult, ...]
    tuned: ItemResult


def pairs_of(base: Sequence[Results], tuned: Results) -> list[Pair]:
    """The items of several results, each with all of its answers, in the order of the result.

    Args:
        base: The measurements of the base, one or several.
        tuned: The result.

    Raises:
        DataError: A benchmark has another version in one of them, or an item is not in all of them or had another
            prompt.
    """
    if not base:
        raise ValueError("There is no measurement of the base to compare with.")
    found = [_by_name(results) for results in (*base, tuned)]
    problems = [problem for results in base for problem in _other_versions(results, tuned)]
    problems = problems or [problem for items in found[:-1] for problem in _other_items(items, found[-1])]
    if problems:
        raise DataError(problems)
    return [Pair(tuple(items[name] for items in found[:-1]), item) for name, item in found[-1].items()]


def _by_name(results: Results) -> dict[tuple[str, str], ItemResult]:
    """The items of a result by benchmark and id; of two with one name, none could be matched.

    Raises:
        DataError: Two have the same name.
    """
    found = {(item.task, item.item): item for item in results.items}
    if len(found) < len(results.items):
        counts = Counter((item.task, item.item) for item in results.items)
        task, item = next(name for name, count in counts.items() if count > 1)
        raise DataError.single(f"benchmarks.{task}", item, "is the id of two items.", "Give each item its own id.")
    return found


def _other_versions(base: Results, tuned: Results) -> Iterator[Problem]:
    versions = {task.name: task.version for task in base.tasks}
    for task in tuned.tasks:
        if versions.get(task.name, task.version) != task.version:
            message = f"base and result were measured on different versions of it ({versions[task.name]} before)."
            yield Problem(f"benchmarks.{task.name}", task.version, message, "Measure both with the same version.")


def _other_items(
    base: dict[tuple[str, str], ItemResult], tuned: dict[tuple[str, str], ItemResult]
) -> Iterator[Problem]:
    only_base, only_tuned = (
        {name: f"is an item that only the {whose} has." for name in one if name not in other}
        for one, other, whose in ((base, tuned, "base"), (tuned, base, "result"))
    )
    others = {
        name: _other_prompts(base[name], item)
        for name, item in tuned.items()
        if name in base and base[name].prompt_hash != item.prompt_hash
    }
    again = "Measure base and result on the same items, with the same examples before each."
    template = "If their chat templates differ, give the result chat_template.jinja of the base. "
    for found, remedy in ((only_base, again), (only_tuned, again), (others, template + again)):
        for (task, item), message in islice(found.items(), _NAMED):
            more = f" So are {len(found) - _NAMED:,} more." if len(found) > _NAMED else ""
            yield Problem(f"benchmarks.{task}", item, message, remedy + more)


def _other_prompts(base: ItemResult, tuned: ItemResult) -> str:
    """That two prompts differ, with both from shortly before where they part; or only what they go on with."""
    if base.prompt == tuned.prompt:
        return "was asked with other choices or tokens of the base than of the result."
    same = takewhile(lambda pair: pair[0] == pair[1], zip(base.prompt, tuned.prompt, strict=False))
    start = max(0, sum(1 for _ in same) - _BEFORE)
    before, after = (one.prompt[start : start + _SHOWN] for one in (base, tuned))
    return f"was asked with another prompt of the base ({before!r}) than of the result ({after!r})."
