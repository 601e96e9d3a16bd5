"""What the fields of a run must say together. Every rule looks at the whole file and adds what it finds to one list."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from thriftune.batching import split_batch
from thriftune.config import data_rules, zero_file
from thriftune.config.data import places
from thriftune.errors import ConfigError, Problem
from thriftune.hardware import DEVICES, choose_precision
from thriftune.redaction import names_user

if TYPE_CHECKING:
    from thriftune.config.schema import RunConfig

# One training task is declared for each of these node counts (tasks/train_full.py); Flyte fixes it at declaration.
NODE_COUNTS = (1, 2, 3, 4, 6, 8)


def check(config: "RunConfig") -> list[Problem]:
    """Every problem of a run that can be seen from its file alone.

    Args:
        config: A run whose fields are valid one by one.

    Returns:
        The problems, empty when the run can be planned.
    """
    rules = (_places, _method, _nodes, _qlora_devices, _batch, _precision, _optimizer, _inline_zero)
    return [problem for rule in (data_rules.check, *rules) for problem in rule(config)]


def _places(config: "RunConfig") -> Iterator[Problem]:
    for field, place in places(config):
        yield from with_user(field, place)


def with_user(field: str, place: str) -> Iterator[Problem]:
    """Why a place cannot be used that has a user or a password in its URL.

    Args:
        field: What names it.
        place: Path or URL.
    """
    if names_user(place):
        yield Problem(
            field,
            place,
            "has a user or a password in its URL, which whoever sees the run would see.",
            "Take it out, and give the store its own credentials: in the environment (AWS_ACCESS_KEY_ID, "
            "GOOGLE_APPLICATION_CREDENTIALS, on a cluster from a secret), or in fsspec's configuration (docs/data.md).",
        )


def require_no_user(given: Iterable[tuple[str, str]]) -> None:
    """Refuse places with a user or a password in their URLs, which no run file names.

    Args:
        given: What names each, and the place.

    Raises:
        ConfigError: With each of them.
    """
    if problems := [problem for field, place in given for problem in with_user(field, place)]:
        raise ConfigError(problems)


def _method(config: "RunConfig") -> Iterator[Problem]:
    for section, method in (("zero", "full"), ("lora", "qlora")):
        if getattr(config, section) is not None and config.method != method:
            yield Problem(
                section,
                "given",
                f"belongs to method {method}, and this run has method {config.method}.",
                f"Remove the section, or set method: {method}.",
            )


def _nodes(config: "RunConfig") -> Iterator[Problem]:
    if config.hardware.nodes is not None and config.hardware.nodes not in NODE_COUNTS:
        yield Problem(
            "hardware.nodes",
            str(config.hardware.nodes),
            "no training task is declared for this number of nodes.",
            f"Use one of {', '.join(map(str, NODE_COUNTS))}.",
        )


def _qlora_devices(config: "RunConfig") -> Iterator[Problem]:
    if config.method != "qlora":
        return
    if config.hardware.nodes not in (None, 1):
        yield Problem(
            "hardware.nodes",
            str(config.hardware.nodes),
            "QLoRA is model-parallel over the GPUs of one node.",
            "Use nodes: 1, with more devices_per_node if the model needs them.",
        )
    if config.hardware.device == "CPU" and config.hardware.devices_per_node not in (None, 1):
        yield Problem(
            "hardware.devices_per_node",
            str(config.hardware.devices_per_node),
            "QLoRA on the CPU is one process.",
            "Use devices_per_node: 1.",
        )


def _batch(config: "RunConfig") -> Iterator[Problem]:
    """What the file fixes of the batch must divide; the planner chooses the rest so that it does."""
    hardware, training = config.hardware, config.training
    ranks = (hardware.nodes or 1) * (hardware.devices_per_node or 1) if config.method == "full" else 1
    yield from _raised(lambda: split_batch(training.global_batch, training.micro_batch or 1, ranks))


def _precision(config: "RunConfig") -> Iterator[Problem]:
    yield from _raised_by_precision(config)


def _raised_by_precision(config: "RunConfig") -> list[Problem]:
    device = config.hardware.device
    return _raised(lambda: choose_precision(config.training.precision, DEVICES[device])) if device else []


def _optimizer(config: "RunConfig") -> Iterator[Problem]:
    if config.method == "full" and config.training.optimizer != "adamw":
        yield Problem(
            "training.optimizer",
            config.training.optimizer,
            "ZeRO partitions AdamW's states itself; the 8-bit optimizers are for qlora.",
            "Use 'adamw'; to save memory use zero.config: zero3_offload.",
        )


def _inline_zero(config: "RunConfig") -> Iterator[Problem]:
    if config.zero and isinstance(config.zero.config, dict):
        yield from zero_file.check(config.zero.config, "zero.config")


def _raised(action: Callable[[], object]) -> list[Problem]:
    try:
        action()
    except ConfigError as error:
        return list(error.problems)
    return []
