"""The file of a run that only measures: a model, or a base and adapters on it."""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Self

from pydantic import Field, ModelWrapValidatorHandler, ValidationError, model_validator

from thriftune.config import benchmark_rules, messages
from thriftune.config.benchmarks import HELD_OUT
from thriftune.config.data import PATH_OR_URL, DataFormat, Section, places
from thriftune.config.publishing import GateConfig, PublishConfig
from thriftune.config.rules import with_user
from thriftune.config.schema import BenchmarksConfig, DataConfig, HardwareConfig, ModelConfig, RunConfig
from thriftune.errors import ConfigError, Problem
from thriftune.hardware import PrecisionChoice

BASE = "base"
_ADAPTER_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,39}")
OF_A_RUN = "publish."  # where a run that trains has its gate


def problem_of_name(name: str, field: str, value: str) -> Problem | None:
    """What is wrong with a name for an adapter; None if it is one.

    Args:
        name: The name.
        field: The key that names the adapter, for the message.
        value: What the message shows of it.
    """
    if name != BASE and _ADAPTER_NAME.fullmatch(name):
        return None
    remedy = f"Use letters, digits, dots and dashes, at most 40, and not {BASE}."
    return Problem(field, value, "is no name for an adapter.", remedy)


class BenchmarkRun(Section):
    """Benchmarks of a model, or of a base and adapters on it, without training."""

    name: str = Field(
        pattern=r"^[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?$",
        description="Name of the run: lower-case letters, digits and dashes, at most 40.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of drawn answers and of the statistics.")
    model: ModelConfig
    adapters: dict[str, Annotated[str, PATH_OR_URL]] = Field(
        default={},
        description="Adapters on the model, by a name for each: directories, local or at a URL. Each is compared with "
        "the model, and all are measured with one load of it.",
    )
    quantize: bool = Field(default=False, description="Hold the model in 4 bits.")
    precision: PrecisionChoice = Field(default="auto", description="As `training.precision` of a run that trains.")
    format: DataFormat | None = Field(
        default=None,
        description="How questions are put, as `data.format` of a run that trains. When left out: as the adapters, or "
        "else the model, were trained; chat where that is not known and there is a chat template, else text.",
    )
    hardware: HardwareConfig = Field(
        default=HardwareConfig(), description="Kind of device, or node type; the cheapest node that holds the model."
    )
    benchmarks: BenchmarksConfig
    gate: GateConfig | None = Field(
        default=None, description="What each adapter must show beside the model, as `publish.gate`; nothing is pushed."
    )

    @property
    def as_run(self) -> RunConfig:
        """A run that trains with the same benchmarks, for what looks at such runs; it is not valid as a whole."""
        publish = PublishConfig.model_construct(repository="", gate=self.gate) if self.gate else None
        data = DataConfig.model_construct(source="", format=self.format)
        given: dict[str, Any] = {"name": self.name, "method": "full", "seed": self.seed, "model": self.model}
        return RunConfig.model_construct(**given, data=data, benchmarks=self.benchmarks, publish=publish)

    @model_validator(mode="wrap")
    @classmethod
    def _collect_problems(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Report all problems at once.

        Args:
            data: The parsed file.
            handler: Pydantic's own validation.

        Raises:
            ConfigError: With every problem.
        """
        if isinstance(data, cls):
            return data
        try:
            config = handler(data)
        except ValidationError as error:
            raise ConfigError(messages.explain(error, cls)) from None
        if problems := list(_problems(config)):
            raise ConfigError(problems)
        return config


def _problems(config: BenchmarkRun) -> Iterator[Problem]:
    adapters = {f"adapters.{name}": place for name, place in config.adapters.items()}
    for field, place in (*places(config), *adapters.items()):
        yield from with_user(field, place)
    for name in config.adapters:
        if problem := problem_of_name(name, f"adapters.{name}", config.adapters[name]):
            yield problem
    if config.benchmarks.has_held_out:
        message = "are the rows that a training holds out, and this run has no data section."
        remedy = "Leave it out, or write the rows as a .jsonl file of your own (docs/evaluation.md)."
        yield Problem("benchmarks.tasks", HELD_OUT, message, remedy)
    for key in ("nodes", "devices_per_node"):
        if (value := getattr(config.hardware, key)) is not None:
            message = "is not for benchmarks: each pod has a part of one node, as many GPUs as the model needs."
            yield Problem(f"hardware.{key}", str(value), message, "Leave it out.")
    if config.gate is not None and not config.adapters:
        message = "compares adapters with the model, and there are none."
        yield Problem("gate", "given", message, "Name adapters, or leave the gate out.")
    for found in benchmark_rules.check(config.as_run):
        field = found.field.removeprefix(OF_A_RUN)
        yield Problem(field, found.value, found.message, found.remedy)
