"""Measuring a task of lm-evaluation-harness, item by item, with the harness's own prompts, filters and metrics."""

import json
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

from thriftune import artifacts
from thriftune.inference.benchmarks.results import ItemResult

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from lm_eval.api.task import ConfigurableTask
    from transformers import PreTrainedTokenizerBase

    from thriftune.inference.benchmarks.harness_model import MeasuredModel

logger = logging.getLogger(__name__)

_LIKELIHOODS, _WRITTEN = "loglikelihood", "generate_until"


@dataclass(frozen=True)
class Scored:
    """What was measured of a task.

    Attributes:
        items: A result of each item.
        metrics: By metric, whether higher is better.
    """

    items: list[ItemResult] = field(default_factory=list)
    metrics: dict[str, bool] = field(default_factory=dict)


def measure(
    model: "MeasuredModel",
    task: "ConfigurableTask",
    name: str,
    group: str,
    wanted: Callable[[int], bool],
    limit: int | None,
) -> Scored:
    """Measure items of a task.

    The prompts of all items are made, and only those of the wanted ones are asked: examples are drawn from one stream
    of random numbers, and so every part shows those that the whole would.

    Args:
        model: The model.
        task: The task.
        name: Name of the benchmark.
        group: Name of the task within the benchmark; empty if it is the only one.
        wanted: Whether to measure the item with this number.
        limit: Use only the first items; None means all.
    """
    _make_prompts(task, model.apply_chat_template if model.tokenizer.chat_template else None, limit)
    requests = [request for request in task.instances if wanted(request.doc_id)]
    if not requests:
        return Scored()
    _ask(model, requests)
    task._instances = requests  # noqa: SLF001, the harness has no other way to filter a part
    task.apply_filters()
    by_item: dict[int, list[Instance]] = defaultdict(list)
    for request in requests:
        by_item[request.doc_id].append(request)
    scores = {number: _scores(task, asked) for number, asked in by_item.items()}
    metrics = _usable(task, name, scores.values())
    items = []
    for number, asked in by_item.items():
        kept = {metric: float(scores[number][metric]) for metric in metrics if metric in scores[number]}
        items.append(_result(model, task, name, group, number, sorted(asked, key=lambda r: r.idx), kept))
    return Scored(items, metrics)


def lengths(
    task: "ConfigurableTask", tokenizer: "PreTrainedTokenizerBase", limit: int | None, max_new_tokens: int
) -> Iterator[tuple[int, int]]:
    """How many positions each item of a task needs, without a model.

    Args:
        task: The task.
        tokenizer: The model's tokenizer.
        limit: Use only the first items; None means all.
        max_new_tokens: Longest written answer of a task that does not say.

    Yields:
        The number of an item, and tokens of its prompt with a choice, of which the last is never given to the model, or
        with the longest written answer.
    """

    def template(messages: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        rendered = tokenizer.apply_chat_template(
            messages,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return str(rendered)

    _make_prompts(task, template if tokenizer.chat_template else None, limit)
    for request in task.instances:
        written = request.request_type == _WRITTEN
        text = request.args[0] if written else "".join(request.args)
        more = int(request.args[1].get("max_gen_toks") or max_new_tokens) if written else -1
        opens = bool(tokenizer.bos_token) and text.startswith(str(tokenizer.bos_token))
        yield request.doc_id, len(tokenizer(text, add_special_tokens=not opens)["input_ids"]) + more


def _make_prompts(task: "ConfigurableTask", template: Callable[..., str] | None, limit: int | None) -> None:
    """Have the harness make the prompts of all items, in the chat template if there is one."""
    chat = template is not None
    task.build_all_requests(
        limit=limit, apply_chat_template=chat, fewshot_as_multiturn=chat, chat_template=template, tokenizer_name=""
    )


def _ask(model: "MeasuredModel", requests: Sequence["Instance"]) -> None:
    """Have the model answer, as often as the task says."""
    kinds: dict[str, list[Instance]] = defaultdict(list)
    for request in requests:
        kinds[request.request_type] += [request] * request.repeats
    for kind, asked in kinds.items():
        for request, answer in zip(asked, getattr(model, kind)(asked), strict=True):
            request.resps.append(answer)


def _scores(task: "ConfigurableTask", asked: Sequence["Instance"]) -> dict[str, Any]:
    """What the task's own metrics say of an item; with several filters, as metric,filter."""
    ordered = sorted(asked, key=lambda request: request.idx)
    filters = list(ordered[0].filtered_resps)
    found: dict[str, Any] = {}
    for each in filters:
        scores = task.process_results(ordered[0].doc, [request.filtered_resps[each] for request in ordered])
        found |= {metric if len(filters) == 1 else f"{metric},{each}": value for metric, value in scores.items()}
    return found


def _usable(task: "ConfigurableTask", name: str, scores: Iterable[Mapping[str, Any]]) -> dict[str, bool]:
    """The metrics that are the mean of a number per item, and whether more of them is better."""
    from lm_eval.api.metrics import mean

    better, aggregations = task.higher_is_better(), task.aggregation()
    usable, others = dict[str, bool](), dict[str, None]()
    for metric, value in (pair for item in scores for pair in item.items()):
        plain = metric.partition(",")[0]
        if isinstance(value, Real) and aggregations.get(plain, mean) is mean and not math.isnan(value):
            usable[metric] = bool(better.get(plain, True))
        else:
            others[metric] = None
    if others:
        logger.warning("%s: %s left out: not the mean of a number per item", name, ", ".join(others))
    return {metric: higher for metric, higher in usable.items() if metric not in others}


def _result(
    model: "MeasuredModel",
    task: "ConfigurableTask",
    name: str,
    group: str,
    number: int,
    asked: Sequence["Instance"],
    scores: Mapping[str, float],
) -> ItemResult:
    first, doc = asked[0], asked[0].doc
    written = first.request_type == _WRITTEN
    choices = [str(choice) for choice in task.doc_to_choice(doc)] if task.config.doc_to_choice is not None else []
    likelihoods = [request.resps[0][0] for request in asked] if first.request_type == _LIKELIHOODS else []
    likelihoods = likelihoods[: len(choices)] if choices else likelihoods
    answer = str(first.resps[0]) if written else ""
    if not written and len(choices) == len(likelihoods) > 1:
        answer = choices[likelihoods.index(max(likelihoods))]
    main = next(iter(scores.values()), None)
    said = [str(argument) for request in asked for argument in request.args]
    return ItemResult(
        task=name,
        item=f"{group}/{number:06}" if group else f"{number:06}",
        group=group,
        prompt=str(first.args[0]),
        prompt_hash=artifacts.key_of(*said),
        expected=_expected(task.doc_to_target(doc), choices),
        answer=answer,
        scores=scores,
        log_likelihoods=tuple(likelihoods),
        tokens=len(model.tokenizer(answer, add_special_tokens=False)["input_ids"]) if written else 0,
        correct=bool(main) if main in (0, 1) else None,
        stopped=model.stopped.get(model.tokens(first)) if written else None,
    )


def _expected(target: Any, choices: Sequence[str]) -> str:
    """The right answer as text: a target is an index of a choice, a text, or a list of texts."""
    if isinstance(target, int) and 0 <= target < len(choices):
        return choices[target]
    return target if isinstance(target, str) else json.dumps(target, ensure_ascii=False, default=str)
