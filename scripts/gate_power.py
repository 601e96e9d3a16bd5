"""Simulate what the gate can see and how often it errs, and write the tables into docs/evaluation.md.

Usage: python scripts/gate_power.py [--simulations 400]    (about five minutes on one core)
"""

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from thriftune.inference.gate import statistics
from thriftune.inference.gate.statistics import Estimate, Sample, Values

PAGE = Path(__file__).parent.parent / "docs" / "evaluation.md"
ITEMS = (100, 300, 1000)
CONFIDENCE, POWER = 0.95, 0.8
# Fewer than the gate makes: the ends of an interval move by a few hundredths of its length, and simulations take less.
RESAMPLES = 2000
# Share of items that become right or wrong, between two models that are as good as one another.
CHANGED = (0.05, 0.1, 0.2, 0.4)
# Standard deviation of the change of an item's loss, in nats per token.
SPREADS = (0.05, 0.1, 0.3)

Draw = Callable[[np.random.Generator, int], Sample]


def accuracy(gain: float, changed: float) -> Draw:
    """Items that are right or wrong.

    Args:
        gain: By how much the second model is better.
        changed: Share of items that only one of the two gets right.
    """

    def draw(random: np.random.Generator, items: int) -> Sample:
        share = max(changed, gain)
        kinds = random.choice(3, size=items, p=[(share + gain) / 2, (share - gain) / 2, 1 - share])
        same = (random.random(items) < 0.5).astype(float)
        base, tuned = np.where(kinds == 2, same, kinds == 1), np.where(kinds == 2, same, kinds == 0)
        return Sample.of(base.astype(float), tuned.astype(float))

    return draw


def loss(gain: float, spread: float) -> Draw:
    """Texts of 5 to 200 tokens, of which some change far more than most.

    Args:
        gain: By how much the second model's loss is lower, in nats per token.
        spread: Standard deviation of that between texts.
    """

    def draw(random: np.random.Generator, items: int) -> Sample:
        tokens = np.clip(random.lognormal(3.5, 0.7, items), 5, 200).round()
        base = random.gamma(8, 0.25, items)
        change = gain + spread * random.standard_t(5, items) / np.sqrt(5 / 3)
        return Sample.of(base * tokens, (base - change) * tokens, "per_token", (tokens, tokens))

    return draw


def improvements(draw: Draw, items: int, simulations: int, seed: int) -> list[Estimate]:
    """The improvement that is measured in each of several comparisons.

    Args:
        draw: Draws the values of items.
        items: Number of items in a comparison.
        simulations: Number of comparisons.
        seed: Seed of the draws.
    """
    random, found = np.random.default_rng(seed), []
    for number in range(simulations):
        sample = draw(random, items)
        change = statistics.paired(sample, CONFIDENCE, number, RESAMPLES).change
        is_loss = sample.kind == "per_token"
        found.append(Estimate(-change.value, -change.high, -change.low) if is_loss else change)
    return found


def smallest_gain(draw: Callable[[float], Draw], items: int, most: float, simulations: int) -> float:
    """The smallest gain that passes `improves` in four of five comparisons.

    Args:
        draw: For a gain, what draws the values of items.
        items: Number of items in a comparison.
        most: A gain that is large enough.
        simulations: Number of comparisons for each gain that is tried.
    """
    low, high = 0.0, most
    for step in range(7):
        middle = (low + high) / 2
        seen = sum(found.low > 0 for found in improvements(draw(middle), items, simulations, step))
        low, high = (low, middle) if seen >= POWER * simulations else (middle, high)
    return high


def smallest_margin(draw: Draw, items: int, simulations: int) -> float:
    """The smallest `within` at which an equal model passes `keeps` in four of five comparisons.

    Args:
        draw: Draws the values of items.
        items: Number of items in a comparison.
        simulations: Number of comparisons.
    """
    return float(np.quantile([-found.low for found in improvements(draw, items, simulations, 1)], POWER))


def percentile(changes: Values, seed: int) -> tuple[float, float]:
    """The percentile interval of a plain bootstrap of a mean.

    Args:
        changes: The change of each item.
        seed: Seed of the resamples.
    """
    drawn = np.random.default_rng(seed).integers(0, len(changes), (RESAMPLES, len(changes)))
    low, high = np.quantile(changes[drawn].mean(axis=1), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def corrected(changes: Values, seed: int) -> tuple[float, float]:
    """The BCa interval of a plain bootstrap of a mean.

    Args:
        changes: The change of each item.
        seed: Seed of the resamples.
    """
    from scipy.stats import bootstrap

    if np.ptp(changes) == 0:
        return float(changes[0]), float(changes[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = bootstrap((changes,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(seed))
    return float(made.confidence_interval.low), float(made.confidence_interval.high)


def ours(changes: Values, seed: int) -> tuple[float, float]:
    """The interval of the gate.

    Args:
        changes: The change of each item.
        seed: Seed of the resamples.
    """
    found = statistics.paired(Sample.of(np.zeros(len(changes)), changes), CONFIDENCE, seed, RESAMPLES).change
    return found.low, found.high


# By name, what the changes of items are drawn from, and their true mean.
_CHANGES: dict[str, tuple[Callable[[np.random.Generator, int], Values], float]] = {
    "right or wrong, 10 % change, none better": (lambda r, n: r.choice([1.0, -1, 0], n, p=[0.05, 0.05, 0.9]), 0.0),
    "right or wrong, 15 % gained, 5 % lost": (lambda r, n: r.choice([1.0, -1, 0], n, p=[0.15, 0.05, 0.8]), 0.1),
    "loss, even": (lambda r, n: r.normal(0.1, 1, n), 0.1),
    "loss, a few texts change most": (lambda r, n: r.exponential(1, n) ** 1.5 - 1.32934, 0.0),
}


def intervals(simulations: int) -> list[list[str]]:
    """How often each kind of interval lies wholly above or below the truth, and how long it is.

    Args:
        simulations: Number of samples for each number of items.
    """
    rows = []
    for name, (draw, truth) in _CHANGES.items():
        for items in (10, 30, 100, 300):
            row, random = [name, str(items)], np.random.default_rng(items)
            samples = [draw(random, items) for _ in range(simulations)]
            for made in (percentile, corrected, ours):
                ends = np.array([made(sample, number) for number, sample in enumerate(samples)])
                above, below = (ends[:, 0] > truth + 1e-9).mean(), (ends[:, 1] < truth - 1e-9).mean()
                row.append(f"{above:.1%}, {below:.1%} ({np.diff(ends).mean():.2f})")
            rows.append(row)
    return rows


def false_passes(simulations: int) -> list[list[str]]:
    """How often a model that is equal to the base passes `improves` with `by: 0`.

    Args:
        simulations: Number of comparisons.
    """
    rows = []
    for items in (20, *ITEMS):
        cells = [str(items)]
        for draw in (accuracy(0, 0.1), accuracy(0, 0.4), loss(0, 0.1)):
            found = improvements(draw, items, simulations, items)
            cells.append(f"{sum(one.low > 0 for one in found) / simulations:.1%}")
        rows.append(cells)
    return rows


def table(head: list[str], rows: list[list[str]]) -> str:
    """A table of Markdown.

    Args:
        head: Its head.
        rows: Its rows.
    """
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def gains(simulations: int) -> str:
    """The table of what can be seen of accuracy.

    Args:
        simulations: Number of comparisons for each gain that is tried.
    """
    rows = []
    for items in ITEMS:
        cells = [f"{items:,}"]
        for changed in CHANGED:
            found = smallest_gain(lambda gain, c=changed: accuracy(gain, c), items, 0.4, simulations)  # type: ignore[misc]
            margin = smallest_margin(accuracy(0, changed), items, simulations)
            cells.append(f"{100 * found:.1f}, {100 * margin:.1f}")
        rows.append(cells)
    return table(["Items", *(f"{changed:.0%} of the items change" for changed in CHANGED)], rows)


def loss_gains(simulations: int) -> str:
    """The table of what can be seen of loss.

    Args:
        simulations: Number of comparisons for each gain that is tried.
    """
    rows = []
    for items in ITEMS:
        cells = [f"{items:,}"]
        for spread in SPREADS:
            found = smallest_gain(lambda gain, s=spread: loss(gain, s), items, spread, simulations)  # type: ignore[misc]
            cells.append(f"{found:.3f}, {smallest_margin(loss(0, spread), items, simulations):.3f}")
        rows.append(cells)
    return table(["Items", *(f"spread {spread:g}" for spread in SPREADS)], rows)


def written(page: str, name: str, text: str) -> str:
    """A page with a table put between its marks.

    Args:
        page: The page.
        name: Name of the marks.
        text: The table.
    """
    start, end = f"<!-- {name}: written by scripts/gate_power.py -->\n", f"<!-- end of {name} -->"
    before, rest = page.split(start)
    return f"{before}{start}\n{text}\n{end}{rest.split(end)[1]}"


def main() -> None:
    """Simulate, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=400)
    count = parser.parse_args().simulations
    head = ["Change of an item", "Items", "percentile", "BCa", "ours"]
    tables = {
        "intervals": table(head, intervals(count)),
        "false passes": table(
            ["Items", "10 % change", "40 % change", "loss, spread 0.1"], false_passes(5 * count)
        ),
        "power": gains(count),
        "power of loss": loss_gains(count),
    }  # fmt: skip
    page = PAGE.read_text(encoding="utf-8")
    for name, text in tables.items():
        page = written(page, name, text)
    PAGE.write_text(page, encoding="utf-8")
    sys.stdout.write(f"The tables are in {PAGE}\n")


if __name__ == "__main__":
    main()
