"""Memory and work of one forward and backward pass, from running the model's own code on the meta device."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from thriftune.config import Section
from thriftune.errors import ConfigError, ModelSourceError, in_a_line
from thriftune.hardware import Precision, torch_dtype
from thriftune.methods import method_of
from thriftune.models.architecture import Architecture
from thriftune.models.classifier import head_of
from thriftune.models.quantization import FourBit
from thriftune.overhead import RETURNED_BLOCK
from thriftune.strategies.memory.on_meta import trainable
from thriftune.strategies.memory.work import NOTHING, PassWork, Work

if TYPE_CHECKING:
    import torch


_UNFOLLOWABLE = (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError, NotImplementedError)


@dataclass(frozen=True)
class StepShape:
    """What one forward and backward pass computes.

    Attributes:
        micro_batch: Rows.
        sequence: Tokens per row, at most.
        gradient_checkpointing: Whether layers keep only their input, and are computed again in the backward pass.
        precision: Precision of the matrix products.
        tuned: The section of the run file about what trains; None where every weight trains.
        four_bit: How the base under adapters is quantized to 4 bits; None if it is not.
        autocast: Whether weights that train are held in fp32 while products are computed in the precision. The Trainer
            does so where the model's own weights train in one process, and always with adapters.
        in_precision: Whether all weights but those in 4 bits are held in the precision, and nothing is computed in
            autocast, also with adapters. DeepSpeed does so.
        masked: Whether attention gets a mask [rows, 1, tokens, tokens], as it does for padded and for packed rows.
            Without it transformers also does not repeat keys and values for grouped queries.
        mixed: Whether adapters are computed in autocast, as the Trainer does; not so in the scripts of some others.
    """

    micro_batch: int
    sequence: int
    gradient_checkpointing: bool
    precision: Precision
    tuned: Section | None = None
    four_bit: FourBit | None = None
    autocast: bool = False
    in_precision: bool = False
    masked: bool = True
    mixed: bool = True


@dataclass(frozen=True)
class Peaks:
    """Bytes of tensors that are alive at the same time.

    Attributes:
        all: Every tensor.
        small: Tensors whose blocks malloc keeps when they are freed (see `thriftune.training.memory_watch`).
    """

    all: int
    small: int

    def __add__(self, other: "Peaks") -> "Peaks":
        return Peaks(self.all + other.all, self.small + other.small)

    def __sub__(self, other: "Peaks") -> "Peaks":
        return Peaks(self.all - other.all, self.small - other.small)

    def __rmul__(self, count: int) -> "Peaks":
        return Peaks(count * self.all, count * self.small)


@dataclass(frozen=True)
class Activations:
    """Memory and work of one pass, in parts that lie on different devices when a model is split by layers.

    Attributes:
        kept: What each decoder layer keeps for its backward pass, in order.
        one_layer: What the layer being computed needs for a moment, in addition to what it keeps.
        outside: The peak of everything else: logits, their fp32 copy and their gradient, or the layer being computed
            if that is more. It includes the embedding's output and the mask.
        work: What all layers and everything else compute.
    """

    kept: tuple[Peaks, ...]
    one_layer: Peaks
    outside: Peaks
    work: PassWork = NOTHING

    def of(self, layers: Iterable[int], *, has_head: bool) -> Peaks:
        """The memory on one device.

        Args:
            layers: Indices of the decoder layers it holds.
            has_head: Whether it holds the output head, and so computes the loss.
        """
        return sum((self.kept[layer] for layer in layers), self.outside if has_head else self.one_layer)

    def whole(self) -> Peaks:
        """The memory on a device that holds the whole model."""
        return self.of(range(len(self.kept)), has_head=True)


@lru_cache(maxsize=256)
def measure(architecture: Architecture, step_shape: StepShape) -> Activations:
    """Trace the first layers of a model, for each layer with what trains in it.

    Args:
        architecture: The model.
        step_shape: What one forward and backward pass computes.

    Returns:
        The bytes, without weights and without the gradients that stay until the optimizer step.

    Raises:
        ModelSourceError: The model's code cannot be traced without data.
        ConfigError: The model cannot compute rows of that length.
    """
    alike = method_of(step_shape.tuned).traced_as(step_shape.tuned, architecture)
    measured = {tuned: _measured(architecture, replace(step_shape, tuned=tuned)) for tuned in dict.fromkeys(alike)}
    one_layer, outside = Peaks(0, 0), Peaks(0, 0)
    for found in measured.values():
        one_layer = _larger(one_layer, found.activations.one_layer)
        outside = _larger(outside, found.activations.outside)
    kept = tuple(measured[tuned].activations.kept[i] for i, tuned in enumerate(alike))
    work = sum((measured[tuned].layers[i] for i, tuned in enumerate(alike)), measured[alike[0]].beside)
    return Activations(kept, one_layer, outside, work)


@dataclass(frozen=True)
class _Measured:
    """What was traced for a model in all of whose layers the same trains.

    Attributes:
        activations: Memory.
        layers: Work of each decoder layer.
        beside: Work of everything else.
    """

    activations: Activations
    layers: tuple[PassWork, ...]
    beside: PassWork

    def in_fp16(self) -> "_Measured":
        """The same with products in fp16 where they are in bf16, which has as many bytes."""
        layers = tuple(work.in_precision("bf16", "fp16") for work in self.layers)
        return _Measured(self.activations, layers, self.beside.in_precision("bf16", "fp16"))


@lru_cache(maxsize=256)
def _measured(architecture: Architecture, step_shape: StepShape) -> _Measured:
    """Trace the first layers of a model, each time one more, until every kind of layer was once the last one."""
    # Experts alone are computed in another way in fp16 (`stand_ins.grouped_product`). Without a second trace, a plan
    # that looks at GPUs with and without bf16 takes half the time.
    if step_shape.precision == "fp16" and not any(".experts" in name for name in architecture.shapes):
        return _measured(architecture, replace(step_shape, precision="bf16")).in_fp16()
    kinds = architecture.layer_kinds
    traces: dict[int, _Trace] = {}

    def trace(layers: int) -> _Trace:
        if layers not in traces:
            traces[layers] = _traced(architecture, step_shape, layers, with_head=True)
        return traces[layers]

    by_kind, work, outside, beside = {}, {}, Peaks(0, 0), Peaks(0, 0)
    for kind in dict.fromkeys(kinds):
        # The second layer of a model, not its first, for which the embedding's output is kept as well.
        last = next((i for i, other in enumerate(kinds) if i and other == kind), 0)
        by_kind[kind] = trace(last + 1).kept - trace(last).kept if last else trace(1).kept
        work[kind] = trace(last + 1).work - trace(last).work if last else NOTHING
    for kind in by_kind:
        first = kinds.index(kind)
        others = sum((by_kind[other] for other in kinds[: first + 1]), Peaks(0, 0))
        outside = _larger(outside, trace(first + 1).peak - others)
        bare = _traced(architecture, step_shape, first + 1, with_head=False)
        beside = _larger(beside, bare.peak - others)
    whole = Activations(tuple(by_kind[kind] for kind in kinds), beside, outside)
    # A kind that occurs in the first layer alone is counted with what is outside of the layers.
    return _Measured(whole, tuple(work[kind] for kind in kinds), trace(1).work - work[kinds[0]])


@dataclass(frozen=True)
class _Trace:
    """One traced pass: the highest sum of bytes, what the forward pass left for the backward pass, and the work."""

    peak: Peaks
    kept: Peaks
    work: PassWork


def _larger(first: Peaks, second: Peaks) -> Peaks:
    return Peaks(max(first.all, second.all), max(first.small, second.small))


def _traced(architecture: Architecture, step_shape: StepShape, layers: int, *, with_head: bool) -> _Trace:
    """Trace with the four-dimensional mask that most models accept, or else with a two-dimensional one."""
    attempts = (4, 2) if step_shape.masked else (0,)
    for dimensions in attempts:
        try:
            return _trace(architecture, step_shape, layers, dimensions, with_head=with_head)
        except _UNFOLLOWABLE as error:
            reason = error
    longest = architecture.longest_input
    if longest is not None and step_shape.sequence > longest:  # such as MPT, with a fixed attention bias
        raise ConfigError.single(
            "data.max_length",
            step_shape.sequence,
            f"{architecture.name} was made for {longest} positions, and cannot compute longer rows.",
            f"Use at most {longest}.",
            code="plan-does-not-fit",
        ) from reason
    raise ModelSourceError.single(
        "model.source",
        architecture.name,
        f"its forward pass cannot be followed without data, so its memory cannot be planned ({in_a_line(reason)}).",
        "Use another model, and please report this one.",
        code="model-config-invalid",
    ) from reason


def _trace(
    architecture: Architecture, step_shape: StepShape, layers: int, mask_dimensions: int, *, with_head: bool
) -> _Trace:
    import torch

    from thriftune.strategies.memory.tracing import LiveBytes, RealDevice, dequantized_on_meta, meta_autocast_ignored

    dtype = torch_dtype(step_shape.precision)
    # The Trainer's mixed precision; DeepSpeed computes in the weights' own type.
    is_mixed = step_shape.mixed and (step_shape.tuned or step_shape.autocast) and not step_shape.in_precision
    autocast = dtype if is_mixed and step_shape.precision != "fp32" else None
    device = RealDevice(autocast)
    with dequantized_on_meta(dtype):
        model = trainable(architecture, step_shape, layers, device)
    rows, tokens = step_shape.micro_batch, step_shape.sequence
    ids = torch.zeros(rows, tokens, dtype=torch.long, device="meta")
    shape = {0: (), 2: (rows, tokens), 4: (rows, 1, tokens, tokens)}[mask_dimensions]
    mask = torch.ones(shape, dtype=torch.bool if mask_dimensions == 4 else torch.long, device="meta") if shape else None
    counted = LiveBytes([*model.parameters(), *model.buffers()], small=RETURNED_BLOCK)
    with meta_autocast_ignored(), dequantized_on_meta(dtype), device, counted:
        if with_head:
            labels = ids[:, 0] if architecture.labels else ids  # of a classifier, one class a row
            loss = _loss(model, ids, labels, mask, upcast=autocast is not None)
        else:
            inner = model.get_base_model() if hasattr(model, "peft_config") else model
            loss = _decoder(inner)(input_ids=ids, attention_mask=mask).last_hidden_state.sum()
        device.leave_autocast()
        kept, forward = Peaks(counted.live, counted.small_live), Work.of(counted.operations)
        if loss.requires_grad:  # without the output head there may be nothing that trains
            loss.backward()
    # From the two-dimensional mask transformers would make the four-dimensional one.
    made = Peaks(rows * tokens**2 * dtype.itemsize if mask_dimensions == 2 else 0, 0)
    work = PassWork(forward, Work.of(counted.operations) - forward)
    return _Trace(Peaks(counted.peak, counted.small_peak) + made, kept, work)


def _decoder(model: Any) -> Any:
    """A model without its output head; Llama 4 (transformers 5.23) returns itself when it is asked for its decoder."""
    decoder, head = model.get_decoder(), head_of(model)
    return decoder if decoder is not model else next(part for part in model.children() if part is not head)


def _loss(model: Any, ids: "torch.Tensor", labels: "torch.Tensor", mask: "torch.Tensor | None", *, upcast: bool) -> Any:
    """The loss as the Trainer computes it: accelerate returns fp32 copies of what autocast made."""
    output = model(input_ids=ids, attention_mask=mask, labels=labels)
    if upcast:
        output.logits = output.logits.float()
    return output.loss
