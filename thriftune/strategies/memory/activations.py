"""Memory and work of one forward and backward pass, from running the model's own code on the meta device."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from thriftune.config import Section
from thriftune.errors import ConfigError, ModelSourceError, in_a_line
from thriftune.hardware import Precision, torch_dtype
from thriftune.methods import method_of
from thriftune.methods.adapters import prepare_four_bit
from thriftune.models.architecture import Architecture
from thriftune.models.classifier import head_of
from thriftune.models.quantization import FourBit, replace_layers
from thriftune.overhead import RETURNED_BLOCK
from thriftune.strategies.memory.work import NOTHING, PassWork, Work

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from thriftune.strategies.memory.tracing import RealDevice


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


@lru_cache(maxsize=256)
def _measured(architecture: Architecture, step_shape: StepShape) -> _Measured:
    """Trace the first layers of a model, each time one more, until every kind of layer was once the last one."""
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
        model = _trainable(architecture, step_shape, layers, device)
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


def _trainable(architecture: Architecture, step_shape: StepShape, layers: int, device: "RealDevice") -> Any:
    """The model as a training prepares it, on the meta device; each gradient of a weight is dropped at once."""
    import torch

    dtype = torch_dtype(step_shape.precision)
    held = torch.float32 if step_shape.autocast and step_shape.tuned is None else dtype
    model: Any = architecture.on_meta(held, layers)
    model.config.use_cache = False
    if step_shape.four_bit:
        _quantize(model, step_shape.four_bit, dtype)
        model = prepare_four_bit(model, gradient_checkpointing=False)
    model = method_of(step_shape.tuned).put_on(model, step_shape.tuned, architecture)
    if step_shape.in_precision:
        _convert(model, dtype)
    if step_shape.autocast:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    if step_shape.gradient_checkpointing:
        # torch leaves a function mode when the backward pass starts, so layers are computed again in a context of ours.
        contexts = partial(_recomputation, device.autocast)
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False, "context_fn": contexts}
        )
    model.train()
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
    return model


def _convert(model: Any, dtype: "torch.dtype") -> None:
    """Hold the adapters, and what `prepare_four_bit` turned into fp32, in a type."""
    for parameter in model.parameters():
        if type(parameter).__name__ != "Params4bit":
            parameter.data = parameter.data.to(dtype)


def _recomputation(autocast: "torch.dtype | None") -> tuple[Any, Any]:
    """The contexts for a layer's first computation and for its second."""
    from thriftune.strategies.memory.tracing import RealDevice

    return nullcontext(), RealDevice(autocast)


def _drop_gradient(parameter: "torch.Tensor") -> None:
    parameter.grad = None


def _quantize(model: "PreTrainedModel", four_bit: FourBit, dtype: "torch.dtype") -> None:
    """Put bitsandbytes' 4-bit layers into a model on the meta device, with a product that needs no data."""
    from bitsandbytes.nn.modules import Linear4bit

    from thriftune.strategies.memory.stand_ins import FourBitProduct

    replace_layers(model, dtype, four_bit)
    for module in model.modules():
        if isinstance(module, Linear4bit):
            replaced: Any = module
            replaced.forward = partial(_four_bit_forward, module, FourBitProduct, dtype)


def _four_bit_forward(module: Any, product: Any, dtype: "torch.dtype", inputs: "torch.Tensor") -> Any:
    """Like `bitsandbytes.nn.Linear4bit.forward`: convert inputs [..., in] to the compute type, and the result back."""
    result = product.apply(inputs.to(dtype), (module.out_features, module.in_features))
    if module.bias is not None:
        result = result + module.bias.to(dtype)
    return result.to(inputs.dtype)
