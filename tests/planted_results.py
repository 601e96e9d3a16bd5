"""Results of two models on the same items, of which it is known how much better the second is."""

import numpy as np

from thriftune.inference.benchmarks.results import ItemResult, Results, TaskFacts
from thriftune.inference.gate.statistics import Estimate

GROUPS = ("arithmetic", "common sense", "grammar", "knowledge", "instructions")
CHOICE = TaskFacts("choice", "v1", {"accuracy": True}, "accuracy")
ROWS = TaskFacts("rows", "v1", {"loss": False}, "loss")
WRITTEN = TaskFacts("written", "v1", {"exact_match": True}, "exact_match")


def choices(right, *, task="choice", prompt="Question", group=True):
    """Items of multiple choice that are right or not."""
    return tuple(
        ItemResult(
            task, f"c{n:04}", GROUPS[n % 5] if group else "", f"{prompt} {n}: yes or no?", f"{prompt}-{n}", "yes",
            "yes" if is_right else "no", {"accuracy": float(is_right)}, (-1.0, -2.0), 0, bool(is_right),
        )
        for n, is_right in enumerate(right)
    )  # fmt: skip


def rows(losses, tokens):
    """Held-out rows with their summed losses."""
    return tuple(
        ItemResult("rows", f"r{n}", "", f"Row {n}", f"r-{n}", "text", "", {"loss": float(loss)}, (), int(count))
        for n, (loss, count) in enumerate(zip(losses, tokens, strict=True))
    )


def answers(texts, *, stopped=True, expected="It is four.", tokens=10):
    """Questions that were answered in words."""
    return tuple(
        ItemResult(
            "written", f"w{n}", "", f"What is two and two, for the {n}th time?", f"w-{n}", expected, text,
            {"exact_match": float(text == expected)}, (), tokens, text == expected, stopped,
        )
        for n, text in enumerate(texts)
    )  # fmt: skip


def results(*items):
    """The results of one model on several benchmarks."""
    found = tuple(item for part in items for item in part)
    names = {item.task for item in found}
    return Results(tuple(task for task in (CHOICE, ROWS, WRITTEN) if task.name in names), found)


def pair_of_models(items, gained, lost, seed):
    """A base that gets half of the items right, and a result that changes a share of them, as sampled answers do."""
    random = np.random.default_rng(seed)
    base, luck = random.random(items) < 0.5, random.random(items)
    tuned = np.where(base, luck >= 2 * lost, luck < 2 * gained)
    return results(choices(base)), results(choices(tuned))


def estimate(value, half):
    """A value with an even interval."""
    return Estimate(value, value - half, value + half)
