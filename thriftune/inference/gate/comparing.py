"""From the results of two models to their comparison: which values each metric compares."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from thriftune.config.publishing import ANSWERS
from thriftune.errors import DataError
from thriftune.inference.benchmarks.results import LOSS, ItemResult, Results, TaskFacts
from thriftune.inference.gate import statistics
from thriftune.inference.gate.behaviour import BEHAVIOURS, Answer
from thriftune.inference.gate.comparison import Compared, Comparison
from thriftune.inference.gate.flips import OF_BEHAVIOUR, Flip, Question, flips_of, most_of
from thriftune.inference.gate.matching import Pair, pairs_of
from thriftune.inference.gate.statistics import Kind, Sample, Values
from thriftune.training.held_out import EvalReport

# What the answers to a run's own prompts are called among those of benchmarks.
_SAMPLES = "prompts"


def compare(
    base: Sequence[Results],
    tuned: Results,
    confidence: float = 0.95,
    seed: int = 0,
    samples: tuple[EvalReport, EvalReport] | None = None,
) -> Comparison:
    """Compare a result with its base on the same items.

    Args:
        base: The base, measured one time or several. The first counts; how far two lie apart is the noise floor.
        tuned: The result.
        confidence: Confidence of every interval.
        seed: Seed of the resamples.
        samples: Answers to a run's prompts before and after training, which are looked at beside those of benchmarks.

    Raises:
        DataError: They are not of the same items, or a metric is missing or no finite number; the message names it.
    """
    pairs = pairs_of(base, tuned)
    metrics = [*_of_tasks(tuned.tasks, pairs), *_of_answers([*_written(pairs), *_sampled(samples, len(base))])]
    compared = tuple(_compared(metric, confidence, seed) for metric in metrics)
    flips = tuple(flip for metric in metrics for flip in metric.flips())
    return Comparison(confidence, seed, len(base), tuned.tasks, compared, flips)


@dataclass(frozen=True)
class _Values:
    """A metric with the values of every item.

    Attributes:
        metric: Its name.
        kind: What is compared.
        higher_is_better: Whether a rise is better; None where neither is.
        samples: The result beside each measurement of the base.
        questions: The items; empty where their changes are not to be read.
        most: Largest number of them to keep of each direction.
    """

    metric: str
    kind: Kind
    higher_is_better: bool | None
    samples: tuple[Sample, ...]
    questions: tuple[Question, ...] = ()
    most: int = 0

    @property
    def improvements(self) -> Values:
        """By how much each item became better."""
        rises = self.samples[0].rises
        return -rises if self.higher_is_better is False else rises

    def flips(self) -> list[Flip]:
        """Items that changed, to read."""
        return flips_of(self.metric, self.questions, self.improvements, self.most) if self.questions else []


def _compared(values: _Values, confidence: float, seed: int) -> Compared:
    sample = values.samples[0]
    paired = statistics.paired(sample, confidence, seed)
    better, worse = int((values.improvements > 0).sum()), int((values.improvements < 0).sum())
    return Compared(
        metric=values.metric,
        kind=values.kind,
        items=len(sample.columns),
        base=paired.base,
        tuned=paired.tuned,
        change=paired.change,
        deviation=paired.deviation,
        higher_is_better=values.higher_is_better,
        better=better,
        worse=worse,
        p_value=statistics.mcnemar(better, worse) if sample.is_binary else None,
        floor=statistics.distance([repeat.base for repeat in values.samples], values.kind),
    )


def _of_tasks(tasks: Sequence[TaskFacts], pairs: Sequence[Pair]) -> Iterator[_Values]:
    """Every metric of every benchmark, over all of its items and over each of its groups."""
    for task in tasks:
        own = [pair for pair in pairs if pair.tuned.task == task.name]
        by_group = sorted((pair for pair in own if pair.tuned.group), key=lambda pair: pair.tuned.group)
        parts = [("", own), *((f"/{name}", list(of)) for name, of in groupby(by_group, lambda pair: pair.tuned.group))]
        for metric, higher_is_better in task.metrics.items():
            for group, found in parts:
                questions = tuple(map(_question, found)) if metric == task.main and not group else ()
                name = f"{task.name}{group}.{metric}"
                samples = _samples(name, metric, found)
                kind: Kind = "per_token" if metric == LOSS else "mean"
                yield _Values(name, kind, higher_is_better, samples, questions, most_of(len(tasks)))


def _samples(name: str, metric: str, pairs: Sequence[Pair]) -> tuple[Sample, ...]:
    """The values of a metric of some items.

    Raises:
        DataError: An item has no such score, or one that is no finite number; or there are no items, or no tokens.
    """
    tuned = [pair.tuned for pair in pairs]
    repeats = [[pair.base[number] for pair in pairs] for number in range(len(pairs[0].base) if pairs else 0)]
    for item in (item for items in (*repeats, tuned) for item in items):
        if not np.isfinite(item.scores.get(metric, np.nan)):
            value, message = item.scores.get(metric, "missing"), f"is what item {item.item} has as its {metric}."
            raise DataError.single(f"benchmarks.{name}", value, message, "Measure it again; a score is a number.")
    try:
        return tuple(_sample(items, tuned, metric) for items in repeats or [tuned])
    except ValueError as error:
        message = f"cannot be compared. {error}"
        raise DataError.single(f"benchmarks.{name}", f"{len(pairs)} items", message, "Give it items.") from error


def _sample(base: Sequence[ItemResult], tuned: Sequence[ItemResult], metric: str) -> Sample:
    before, after = (np.array([item.scores[metric] for item in items], dtype=float) for items in (base, tuned))
    if metric != LOSS:
        return Sample.of(before, after, is_same=[_did(item) for item in base] == [_did(item) for item in tuned])
    tokens = [np.array([item.tokens for item in items], dtype=float) for items in (base, tuned)]
    return Sample.of(before, after, "per_token", (tokens[0], tokens[1]))


def _did(item: ItemResult) -> tuple[object, ...]:
    """All that a model did with an item."""
    return item.answer, item.log_likelihoods, dict(item.scores)


@dataclass(frozen=True)
class _Written:
    """A question that both models answered in their own words: of each measurement of the base, and of the result."""

    question: Question
    base: tuple[Answer, ...]
    tuned: Answer


def _of_answers(written: Sequence[_Written]) -> Iterator[_Values]:
    """How both models answer, over all answers of which it is known."""
    is_same = all(answer == one.tuned for one in written for answer in one.base)
    for name, behaviour in BEHAVIOURS.items():
        measured = [(one.question, [behaviour.measure(answer) for answer in (*one.base, one.tuned)]) for one in written]
        known = [(question, values) for question, values in measured if None not in values]
        if not known:
            continue
        *base, tuned = np.array([values for _, values in known], dtype=float).T
        kind: Kind = "mean" if behaviour.higher_is_better is not None else "relative"
        questions = tuple(question for question, _ in known) if kind == "mean" else ()
        samples = tuple(Sample.of(values, tuned, kind, is_same=is_same) for values in base)
        yield _Values(f"{ANSWERS}.{name}", kind, behaviour.higher_is_better, samples, questions, OF_BEHAVIOUR)


def _written(pairs: Sequence[Pair]) -> Iterator[_Written]:
    for pair in pairs:
        if None not in [item.stopped for item in (*pair.base, pair.tuned)]:
            yield _Written(_question(pair), tuple(map(_answer, pair.base)), _answer(pair.tuned))


def _answer(item: ItemResult) -> Answer:
    length = None if LOSS in item.scores else item.tokens  # of a held-out row they are those of its loss
    return Answer(item.prompt, item.expected, item.answer, item.stopped, length)


def _sampled(samples: tuple[EvalReport, EvalReport] | None, repeats: int) -> Iterator[_Written]:
    """The answers to a run's prompts; none where both models were asked different ones."""
    if samples is None or samples[0].prompts != samples[1].prompts:
        return
    for number, (prompt, before, after) in enumerate(
        zip(samples[0].prompts, *(one.answers for one in samples), strict=False)
    ):
        question = Question(_SAMPLES, str(number), "", prompt, "", before, after)
        yield _Written(question, (Answer(prompt, "", before),) * repeats, Answer(prompt, "", after))


def _question(pair: Pair) -> Question:
    tuned = pair.tuned
    answers = (_said(pair.base[0]), _said(tuned))
    return Question(tuned.task, tuned.item, tuned.group, tuned.prompt, tuned.expected, *answers)


def _said(item: ItemResult) -> str:
    """What a model answered; of a text that it was only measured on, its loss."""
    if item.answer or LOSS not in item.scores or not item.tokens:
        return item.answer
    return f"{item.scores[LOSS] / item.tokens:.4f} nats per token"
