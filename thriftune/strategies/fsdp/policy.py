"""What FSDP decides before there is a model: types, what is gathered together, and which part of a weight is whose."""

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Self

from thriftune.config import AUTO, FsdpConfig
from thriftune.errors import ConfigError
from thriftune.hardware import Device, Precision, PrecisionChoice
from thriftune.models.architecture import layer_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_FIELD = "fsdp.param_dtype"


@dataclass(frozen=True)
class Settings:
    """The section `fsdp` of a run, as the plan holds it.

    Attributes:
        param_dtype: Type that gathered weights are computed with, or auto.
        reduce_dtype: Type that gradients are summed in, or auto.
        wrap: Classes of the modules whose weights are gathered together; None for the decoder layers.
        reshard_after_forward: Whether gathered weights are freed between the forward and the backward pass.
        cpu_offload: Whether shards and optimizer states are in host memory.
    """

    param_dtype: PrecisionChoice = "auto"
    reduce_dtype: PrecisionChoice = "auto"
    wrap: tuple[str, ...] | None = None
    reshard_after_forward: bool = True
    cpu_offload: bool = False

    @classmethod
    def of(cls, section: FsdpConfig) -> Self:
        """Those of a run file.

        Args:
            section: Its section.
        """
        return cls(**dict(section))

    @classmethod
    def read(cls, text: str) -> Self:
        """Those of a plan.

        Args:
            text: What `write` made; settings by default if it is empty.
        """
        content: dict[str, Any] = json.loads(text or "{}")
        wrap = content.pop("wrap", None)
        return cls(**content, wrap=None if wrap is None else tuple(wrap))

    def write(self) -> str:
        """Them as the text that a plan holds."""
        return json.dumps(asdict(self), sort_keys=True)

    def offloaded(self) -> Self:
        """The same with shards in host memory."""
        return replace(self, cpu_offload=True)

    def offloads(self, device: Device) -> bool:
        """Whether shards are in another memory than the device's.

        Args:
            device: Kind of device.
        """
        return self.cpu_offload and device.is_gpu

    def require_types(self, precision: Precision, device: Device) -> None:
        """Refuse types that a device computes slowly in, or that do not go with loss scaling.

        Args:
            precision: Precision of the training.
            device: Kind of device.

        Raises:
            ConfigError: Names the key.
        """
        self.computes_in(precision)
        types = {_FIELD: self.param_dtype, "fsdp.reduce_dtype": self.reduce_dtype}
        for field, asked in types.items():
            if asked == "bf16" and device.is_gpu and not device.has_bf16:
                message = f"{device.name} has no bfloat16; torch would emulate it slowly."
                raise ConfigError.single(field, asked, message, "Leave it out.", code="plan-does-not-fit")
        if self.reduce_dtype == "fp16" and precision != "fp16":
            message = f"has too small a range for gradients that are not scaled, as in {precision}."
            raise ConfigError.single(
                "fsdp.reduce_dtype", "fp16", message, "Leave it out: they are summed in fp32.", code="plan-does-not-fit"
            )

    def computes_in(self, precision: Precision) -> Precision:
        """The type of gathered weights.

        Args:
            precision: Precision of the training.

        Raises:
            ConfigError: The two types do not go together.
        """
        asked: Precision = precision if self.param_dtype == AUTO else self.param_dtype
        if asked == precision or "fp16" not in (asked, precision):
            return asked
        why = "fp16 needs loss scaling, which training.precision decides"
        if precision == "fp16":
            why = "the passes of a training in fp16 compute in fp16"
        raise ConfigError.single(
            _FIELD,
            asked,
            f"does not go with training in {precision}: {why}.",
            f"Leave it out, or set training.precision: {asked}.",
            code="plan-does-not-fit",
        )

    @property
    def reduces_in(self) -> Precision:
        """The type that gradients are summed in."""
        return "fp32" if self.reduce_dtype == AUTO else self.reduce_dtype


def unit_names(model: "PreTrainedModel", wrap: tuple[str, ...] | None) -> tuple[str, ...]:
    """Names of the modules whose weights are gathered together: the decoder layers, or those of the named classes.

    Args:
        model: The model. Adapters replace modules without parts, none of which is a unit.
        wrap: Names of classes; None for the decoder layers.

    Raises:
        ConfigError: The model has no module of a class, or one that cannot be a unit.
    """
    layers = tuple(dict.fromkeys(layer for name, _ in model.named_parameters() if (layer := layer_of(name))))
    if wrap is None:
        return layers
    classes = {name: type(module).__name__ for name, module in model.named_modules()}
    if absent := [name for name in wrap if name not in classes.values()]:
        raise ConfigError.single(
            "fsdp.wrap",
            ", ".join(absent),
            f"{type(model).__name__} has no module of this class.",
            f"Name one that it has, such as {classes[layers[0]]}, or leave fsdp.wrap out.",
        )
    found = tuple(name for name, kind in classes.items() if kind in wrap)
    for name in found:
        if not layer_of(name) or not any(True for _ in model.get_submodule(name).children()):
            message = f"is the class of {name}, which is neither a decoder layer nor a part of one with modules in it."
            remedy = f"Name {classes[layers[0]]}, a class of modules inside it, or leave fsdp.wrap out."
            raise ConfigError.single("fsdp.wrap", classes[name], message, remedy)
    return found


def rows_of(rank: int, ranks: int, rows: int) -> slice:
    """The rows of a weight that a rank holds, as `fully_shard` cuts it: equal parts, the last ones shorter or empty.

    Args:
        rank: The rank.
        ranks: Number of ranks.
        rows: Size of the weight's first dimension.
    """
    each = -(-rows // ranks)
    return slice(min(rank * each, rows), min((rank + 1) * each, rows))


def held_as(parameter: "torch.nn.Parameter", computes_in: "torch.dtype") -> "torch.dtype":
    """The type that a rank holds its part of a weight in: what trains in fp32, as master weights.

    What is frozen is held as it is computed with. It is not saved from here: the base model's files have it.

    Args:
        parameter: The weight, as its files hold it.
        computes_in: Type of gathered weights, in which 4-bit numbers are stored too.
    """
    import torch

    return torch.float32 if parameter.requires_grad else computes_in
