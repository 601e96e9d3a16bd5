"""Rules over several fields of a run. Every rule looks at the whole file and adds its problems to one list."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from thriftune.batching import split_batch
from thriftune.config import benchmark_rules, data_rules, export_rules, method_rules, task_rules, zero_file
from thriftune.config.choices import ADAMW, AUTO, METHODS, STRATEGIES, strategies_of
from thriftune.config.data import places
from thriftune.errors import ConfigError, Problem
from thriftune.redaction import names_user

if TYPE_CHECKING:
    from thriftune.config.schema import RunConfig

# One training task is declared for each of these node counts (tasks/train.py), because Flyte fixes it at declaration.
NODE_COUNTS = (1, 2, 3, 4, 6, 8)


def check(config: "RunConfig") -> list[Problem]:
    """Every problem of a run that its file alone shows.

    Args:
        config: A run whose single fields are valid.

    Returns:
        The problems; empty if the run can be planned.
    """
    rules = (
        _places,
        _sections,
        _one_strategy,
        _strategy,
        _nodes,
        _machines,
        _batch,
        _optimizer,
        _inline_zero,
    )
    of_parts = (data_rules.check, method_rules.check, task_rules.check, benchmark_rules.check, export_rules.check)
    return [problem for rule in (*of_parts, *rules) for problem in rule(config)]


def _places(config: "RunConfig") -> Iterator[Problem]:
    for field, place in places(config):
        yield from with_user(field, place)


def with_user(field: str, place: str) -> Iterator[Problem]:
    """Refuse a URL with a user or a password in it.

    Args:
        field: The key that names it.
        place: Path or URL.

    Yields:
        The problem, if there is one.
    """
    if names_user(place):
        yield Problem(
            field,
            place,
            "has a user or a password in its URL, visible to everybody who sees the run.",
            "Remove it, and give the store its own credentials: in the environment (AWS_ACCESS_KEY_ID, "
            "GOOGLE_APPLICATION_CREDENTIALS, on a cluster from a secret), or in fsspec's configuration (docs/data.md).",
        )


def require_no_user(given: Iterable[tuple[str, str]]) -> None:
    """Refuse URLs with a user or a password that come from outside a run file.

    Args:
        given: For each, the name of the argument or setting, and the path or URL.

    Raises:
        ConfigError: With a problem for each such URL.
    """
    if problems := [problem for field, place in given for problem in with_user(field, place)]:
        raise ConfigError(problems)


def _sections(config: "RunConfig") -> Iterator[Problem]:
    """Sections that belong to another method or strategy."""
    for section in dict.fromkeys(facts.section for facts in METHODS.values() if facts.section):
        owners = [name for name, facts in METHODS.items() if facts.section == section]
        if getattr(config, section) is not None and config.method not in owners:
            yield _misplaced(section, "method", owners, config.method)
    if config.lora and not config.lora.double_quantization and not METHODS[config.method].quantizes:
        quantizing = [name for name, facts in METHODS.items() if facts.quantizes]
        yield _misplaced("lora.double_quantization", "method", quantizing, config.method, "false")
    for section in dict.fromkeys(facts.section for facts in STRATEGIES.values() if facts.section):
        strategies = [name for name, facts in STRATEGIES.items() if facts.section == section]
        trained = [name for name in METHODS if any(name not in STRATEGIES[s].refuses for s in strategies)]
        if getattr(config, section) is None:
            continue
        if config.method not in trained:
            yield _misplaced(section, "method", trained, config.method)
        elif not set(strategies) & set(strategies_of(config)):
            yield _misplaced(section, "strategy", strategies, config.strategy)


def _one_strategy(config: "RunConfig") -> Iterator[Problem]:
    """Sections of several strategies: the one that is not chosen would be overlooked."""
    given = [facts.section for facts in STRATEGIES.values() if facts.section and getattr(config, facts.section)]
    if len(given) > 1 and config.strategy == AUTO:
        message = f"is one of the sections of two strategies: {' and '.join(given)}."
        yield Problem(given[1], "given", message, "Remove one of them.")


def _misplaced(field: str, kind: str, owners: Sequence[str], given: str, value: str = "given") -> Problem:
    message = f"belongs to {kind} {' or '.join(owners)}, but this run has {kind} {given}."
    return Problem(field, value, message, f"Remove it, or set {kind}: {owners[-1]}.")


def _strategy(config: "RunConfig") -> Iterator[Problem]:
    if config.strategy == AUTO:
        return
    why = STRATEGIES[config.strategy].refuses.get(config.method)
    if why is not None:
        fitting = [name for name, facts in STRATEGIES.items() if config.method not in facts.refuses]
        message = f"cannot train method {config.method}: {why}."
        yield Problem("strategy", config.strategy, message, f"Use auto, or one of {', '.join(fitting)}.")


def _nodes(config: "RunConfig") -> Iterator[Problem]:
    if config.hardware.nodes is not None and config.hardware.nodes not in NODE_COUNTS:
        yield Problem(
            "hardware.nodes",
            str(config.hardware.nodes),
            "no training task is declared for this number of nodes.",
            f"Use one of {', '.join(map(str, NODE_COUNTS))}.",
        )


def _machines(config: "RunConfig") -> Iterator[Problem]:
    """Hardware settings that none of the run's strategies can use."""
    hardware, strategies = config.hardware, [STRATEGIES[name] for name in strategies_of(config)]
    what = METHODS[config.method].title if config.strategy == AUTO else f"strategy {config.strategy}"
    if hardware.nodes not in (None, 1) and not any(facts.may_span_nodes for facts in strategies):
        more = "or another strategy" if all(f.most_devices == 1 for f in strategies) else "with more devices_per_node"
        remedy = f"Use nodes: 1, {more} if the model needs more memory."
        yield Problem("hardware.nodes", str(hardware.nodes), f"{what} runs on the GPUs of one node.", remedy)
    devices = hardware.devices_per_node
    if devices in (None, 1):
        return
    if hardware.device == "CPU" and not any(facts.is_distributed for facts in strategies):
        message, remedy = f"{what} on the CPU is one process.", "Use devices_per_node: 1."
        yield Problem("hardware.devices_per_node", str(devices), message, remedy)
    elif all(facts.most_devices == 1 for facts in strategies):
        message, remedy = f"{what} uses one device.", "Use devices_per_node: 1, or another strategy."
        yield Problem("hardware.devices_per_node", str(devices), message, remedy)


def _batch(config: "RunConfig") -> Iterator[Problem]:
    """The batch settings in the file must divide evenly; the planner chooses the others so that they do."""
    hardware, training = config.hardware, config.training
    is_distributed = all(STRATEGIES[name].is_distributed for name in strategies_of(config))
    ranks = (hardware.nodes or 1) * (hardware.devices_per_node or 1) if is_distributed else 1
    yield from _raised(lambda: split_batch(training.global_batch, training.micro_batch or 1, ranks))


def _optimizer(config: "RunConfig") -> Iterator[Problem]:
    reasons = [STRATEGIES[name].own_optimizer for name in strategies_of(config)]
    why = reasons[0]
    if config.training.optimizer != ADAMW and all(reasons):
        yield Problem(
            "training.optimizer",
            config.training.optimizer,
            f"{why}; the 8-bit optimizers are for other strategies.",
            f"Use '{ADAMW}', or strategy: {' or '.join(_with_any_optimizer(config))}.",
        )


def _with_any_optimizer(config: "RunConfig") -> list[str]:
    return [n for n, facts in STRATEGIES.items() if not facts.own_optimizer and config.method not in facts.refuses]


def _inline_zero(config: "RunConfig") -> Iterator[Problem]:
    if config.zero and isinstance(config.zero.config, dict):
        yield from zero_file.check(config.zero.config, "zero.config")


def _raised(action: Callable[[], object]) -> list[Problem]:
    try:
        action()
    except ConfigError as error:
        return list(error.problems)
    return []
