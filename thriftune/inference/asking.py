"""Who answers which prompt: names of adapters, and questions in the order of their answers."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from thriftune.config import benchmark_run
from thriftune.errors import AdapterError, ConfigError, DataError, Problem
from thriftune.inference.prompts import Prompt
from thriftune.models.answering import Sampling

BASE = benchmark_run.BASE  # name for answers without any adapter
NAMES = "adapter_names"
_SHOWN = 20  # names in a message
_LARGEST_SEED = 2**32 - 1  # of numpy, which draws nothing here, but is seeded with torch


@dataclass(frozen=True)
class Question:
    """A prompt for one adapter.

    Attributes:
        prompt: Number of the prompt.
        text: What it asks.
        adapter: Who answers: the name of an adapter, or `BASE`.
    """

    prompt: int
    text: str
    adapter: str


def names_of(count: int, given: Sequence[str]) -> list[str]:
    """Names of adapters, in their order: those that a person gave, or adapter-1, adapter-2 ...

    Args:
        count: Number of adapters.
        given: Their names; none to number them.

    Raises:
        AdapterError: There are more names than adapters, or fewer; one is there twice, or is no name.
    """
    if not given:
        return [f"adapter-{number}" for number in range(1, count + 1)]
    if len(given) != count:
        remedy = "Give each adapter one name, in the order of --adapters; or none, to number them."
        raise AdapterError.single(NAMES, given, f"are {len(given)} names for {count} adapters.", remedy)
    for number, name in enumerate(given):
        if problem := benchmark_run.problem_of_name(name, f"{NAMES}.{number}", name):
            raise AdapterError([problem])
        if name in given[:number]:
            message = f"is the name of adapter {given.index(name) + 1} too."
            raise AdapterError.single(f"{NAMES}.{number}", name, message, "Give each adapter a name of its own.")
    return list(given)


def require_settings(sampling: Sampling, batch: int) -> None:
    """Refuse settings with which nothing can be answered, or of which each library makes something else.

    Args:
        sampling: How tokens are sampled.
        batch: Prompts per forward pass.

    Raises:
        ConfigError: Names each.
    """
    counts = {"max_new_tokens": sampling.max_new_tokens, "batch": batch}
    problems = [
        Problem(field, str(number), "is less than one.", "Use at least 1.")
        for field, number in counts.items()
        if number < 1
    ]
    if not 0 <= sampling.seed <= _LARGEST_SEED:
        problems.append(Problem("seed", str(sampling.seed), "is no seed.", f"Use 0 to {_LARGEST_SEED}."))
    if not 0 <= sampling.temperature < math.inf:
        remedy = "Use 0 for the likeliest tokens, or a number above it."
        problems.append(Problem("temperature", str(sampling.temperature), "is no temperature.", remedy))
    if problems:
        raise ConfigError(problems)


def questions_of(prompts: Sequence[Prompt], adapters: Sequence[str]) -> list[Question]:
    """What each adapter is asked.

    Args:
        prompts: The prompts.
        adapters: Names of the adapters; none if the model itself answers.

    Returns:
        Adapter by adapter; or in the order of the prompts, if one of them names who answers.

    Raises:
        DataError: A prompt names an adapter that there is not.
    """
    require_known(prompts, adapters)
    everybody = list(adapters) or [BASE]
    if any(prompt.adapter for prompt in prompts):
        return [
            Question(number, prompt.text, name)
            for number, prompt in enumerate(prompts)
            for name in ([prompt.adapter] if prompt.adapter else everybody)
        ]
    return [Question(number, prompt.text, name) for name in everybody for number, prompt in enumerate(prompts)]


def require_known(prompts: Iterable[Prompt], adapters: Sequence[str]) -> None:
    """Refuse a prompt that names an adapter that there is not.

    Args:
        prompts: The prompts.
        adapters: Names of the adapters.

    Raises:
        DataError: Names the first such prompt, and the adapters that there are.
    """
    for _ in known(prompts, adapters):
        pass


def known(prompts: Iterable[Prompt], adapters: Sequence[str]) -> Iterator[Prompt]:
    """Pass on prompts as long as those that name an adapter name one that there is.

    Args:
        prompts: The prompts.
        adapters: Names of the adapters.

    Yields:
        Each prompt.

    Raises:
        DataError: As `require_known`.
    """
    names = {*adapters, BASE}
    for number, prompt in enumerate(prompts):
        if prompt.adapter and prompt.adapter not in names:
            there = [*adapters[:_SHOWN], *(["..."] if len(adapters) > _SHOWN else []), BASE]
            field = prompt.place or f"prompts.{number}"
            message = "names an adapter that there is not."
            raise DataError.single(field, prompt.adapter[:80], message, f"The names are {', '.join(there)}.")
        yield prompt
