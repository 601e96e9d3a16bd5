"""Memory of a model that is served with adapters: what it needs, whether it fits, and on which node of the catalogue.

The base, k adapters, the keys and values of a number of sequences, and the pass that reads a question are counted; what
lies around tensors is `thriftune.overhead`'s. Two engines hold them differently: our own server, and vLLM.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from thriftune.config import HardwareConfig
from thriftune.errors import ConfigError
from thriftune.hardware import Device, Precision, PrecisionChoice, choose_precision
from thriftune.models.architecture import Architecture
from thriftune.models.quantization import FourBit, quantized_layers, weights_of
from thriftune.overhead import GIB, with_overhead
from thriftune.planned_node import EvaluationNode
from thriftune.planning import matching
from thriftune.planning.catalogue import Catalogue
from thriftune.planning.memory.validating import cache_of_row
from thriftune.planning.offers import Offer, node_on
from thriftune.planning.served_adapters import AdapterSize, slot_rank, slots_elements
from thriftune.planning.verdict import fits
from thriftune.strategies.memory.activations import StepShape, measure
from thriftune.strategies.memory.items import ACTIVATIONS, WEIGHTS

Engine = Literal["own", "vllm"]
Bits = Literal[4, 8, 16]

ADAPTERS, CACHE, COPY, LOGITS = "adapters", "keys and values", "their copy", "logits"
_LASTING = (WEIGHTS, ADAPTERS, CACHE)
_FULL = 4  # bytes of a number in fp32
# Share of a GPU that vLLM takes: its default for --gpu-memory-utilization. Its CUDA graphs are in the rest.
UTILIZATION = 0.9
# Tokens that vLLM computes at once at least: its default for --max-num-batched-tokens, where a question is no longer.
_VLLM_TOKENS = 2048
_CODE = "plan-does-not-fit"


@dataclass(frozen=True)
class Served:
    """What is served, and to how many at a time.

    Attributes:
        architecture: The base model.
        bits: How it is held: NF4, LLM.int8, or 16 for the precision of the device, which is fp32 on some CPUs.
        adapters: The adapters on it.
        sequences: Questions that are answered at a time.
        tokens: Tokens of the longest question with its answer.
        engine: Who serves.
        precision: Precision to compute in.
    """

    architecture: Architecture
    bits: Bits
    adapters: tuple[AdapterSize, ...]
    sequences: int
    tokens: int
    engine: Engine = "own"
    precision: PrecisionChoice = "auto"


@dataclass(frozen=True)
class ServingPlan:
    """A node that holds what is served.

    Attributes:
        node: The node.
        items: Bytes on each of its devices, by item.
        limit_gib: What the items may take of each device, in GiB.
    """

    node: EvaluationNode
    items: Mapping[str, int]
    limit_gib: float

    @property
    def needed_gib(self) -> float:
        """What each device holds, in GiB."""
        return sum(self.items.values()) / GIB

    @property
    def sentence(self) -> str:
        """The plan in a sentence."""
        return f"{self.needed_gib:.1f} of {self.limit_gib:.1f} GiB on {self.node.instance}: {in_words(self.items)}."


def base_bytes(architecture: Architecture, bits: Bits, precision: Precision) -> int:
    """Bytes of a base model that only answers.

    Args:
        architecture: The model.
        bits: How it is held.
        precision: Precision of what is not in 4 or 8 bits. Under adapters that train, that would be fp32.

    Source: bitsandbytes 0.50. In 8 bits each row of a layer has its largest value in fp32.
    """
    width = _FULL if precision == "fp32" else 2
    if bits == 16:
        return width * architecture.parameters
    weights = weights_of(architecture, architecture.shapes)
    rest = width * (weights.fused + weights.other)
    if bits == 4:
        return int(weights.quantized * (0.5 + FourBit().constants)) + rest
    rows = sum(architecture.shapes[f"{name}.weight"][0] for name in quantized_layers(architecture))
    return weights.quantized + _FULL * rows + rest


def adapter_bytes(served: Served, precision: Precision, devices: int = 1) -> int:
    """Bytes of the adapters on each device: peft holds them in fp32; vLLM has slots of one rank on every layer.

    Args:
        served: What is served.
        precision: Precision to compute in.
        devices: Number of devices, over which vLLM splits every layer.
    """
    if served.engine == "own":
        return _FULL * sum(adapter.elements for adapter in served.adapters)
    if not served.adapters:
        return 0
    width = _FULL if precision == "fp32" else 2
    return width * len(served.adapters) * slots_elements(served.architecture, slot_rank(served.adapters), devices)


def needed(served: Served, device: Device, devices: int = 1) -> dict[str, int]:
    """Bytes on each device, by item.

    Args:
        served: What is served.
        device: The kind of device.
        devices: Number of them, over which vLLM splits every layer.
    """
    architecture, precision = served.architecture, choose_precision(served.precision, device)
    width = _FULL if precision == "fp32" else 2
    # Our own server reads all waiting questions in one pass; vLLM some thousand tokens of them.
    rows, tokens = served.sequences, served.tokens
    if served.engine == "vllm":
        tokens = max(_VLLM_TOKENS, served.tokens)
        rows = -(-tokens // (architecture.longest_input or tokens))
    tokens = min(tokens, architecture.longest_input or tokens)
    # The layer being computed, as for a validation; traced with a backward pass, so rather too much.
    pass_ = measure(architecture, StepShape(1, tokens, gradient_checkpointing=True, precision=precision))
    row = cache_of_row(architecture, precision, served.tokens)
    items = {
        WEIGHTS: base_bytes(architecture, served.bits, precision) // devices,
        ADAPTERS: adapter_bytes(served, precision, devices),
        CACHE: served.sequences * row // devices,
        ACTIVATIONS: rows * pass_.one_layer.all,
        LOGITS: served.sequences * (width + _FULL) * architecture.outputs,
    }
    if served.engine == "own":
        # When rows join or leave, all keys and values are there twice; there is no pass of the model then.
        items[COPY] = max(0, items[CACHE] - items[ACTIVATIONS] - items[LOGITS])
    return with_overhead(items, device, lasting=_LASTING, processes=devices)


def plan(served: Served, hardware: HardwareConfig, catalogue: Catalogue) -> ServingPlan:
    """The cheapest node that holds what is served, on as few of its GPUs as can.

    Args:
        served: What is served.
        hardware: The kind of device, or the node type, that is asked for.
        catalogue: Node types to choose among.

    Raises:
        ConfigError: No node of the catalogue holds it; with what it needs, and what would fit.
    """
    _require_sense(served)
    offers = matching.for_one_model(hardware, served.precision, catalogue)
    found = cheapest(served, offers)
    if found is None:
        raise _refusal(served, offers, _larger(served, hardware, catalogue))
    return found


def plan_here(served: Served, here: Offer) -> ServingPlan:
    """What is served on this machine, on one device.

    Args:
        served: What is served.
        here: This machine.

    Raises:
        ConfigError: It does not fit.
    """
    _require_sense(served)
    found = cheapest(served, [here])
    if found is None:
        raise _refusal(served, [here], "")
    return found


def cheapest(served: Served, offers: Iterable[Offer]) -> ServingPlan | None:
    """The first machine that holds what is served, with as few of its GPUs as can; None if none does.

    Args:
        served: What is served.
        offers: The machines, cheapest first.
    """
    for offer in offers:
        for devices in _splits(served, offer):
            items, limit = needed(served, offer.device, devices), _limit_gib(served, offer)
            if fits(items, limit * GIB):
                precision = choose_precision(served.precision, offer.device)
                return ServingPlan(node_on(offer, devices, precision, served.architecture), items, limit)
    return None


def _splits(served: Served, offer: Offer) -> Iterator[int]:
    """Numbers of GPUs of a machine that may hold a model: those that its heads can be divided by, for vLLM."""
    yield 1
    if served.engine == "own" or served.bits == 4:
        return
    heads = served.architecture.shared_heads
    yield from (count for count in (2, 4, 8, 16) if count <= offer.gpus and heads % count == 0)


def _limit_gib(served: Served, offer: Offer) -> float:
    if not offer.device.is_gpu:
        return offer.host_gib
    return offer.gpu_gib * (UTILIZATION if served.engine == "vllm" else 1.0)


def _require_sense(served: Served) -> None:
    """Refuse numbers that cannot be served at all.

    Raises:
        ConfigError: With all reasons at once.
    """
    longest = served.architecture.longest_input
    for field, number in {"sequences": served.sequences, "tokens": served.tokens}.items():
        if number < 1:
            raise ConfigError.single(field, number, "is less than one.", "Use at least 1.", code=_CODE)
    if longest and served.tokens > longest:
        message = f"{served.architecture.name} was made for {longest:,} tokens."
        raise ConfigError.single("tokens", served.tokens, message, f"Use at most {longest}.", code=_CODE)
    if served.engine == "vllm" and served.bits == 8:
        message = "vLLM quantizes to 8 bits only what was quantized before it is loaded."
        raise ConfigError.single("bits", served.bits, message, "Use 4 or 16, or our own server.", code=_CODE)


def _refusal(served: Served, offers: list[Offer], larger: str) -> ConfigError:
    """Why nothing holds what is served, by the machine that is nearest to it, and what would fit there.

    Args:
        served: What is served.
        offers: The machines.
        larger: A machine that holds it; empty if there is none.
    """
    most = max(offers, key=lambda offer: _limit_gib(served, offer) * max(_splits(served, offer)))
    devices = max(_splits(served, most))
    items, limit = needed(served, most.device, devices), _limit_gib(served, most)
    each = f"each of {devices} x {most.device.name}" if devices > 1 else most.device.name
    message = (
        f"needs {sum(items.values()) / GIB:.1f} GiB where {each} of {most.name} has {limit:.1f} for it: "
        f"{in_words(items)}."
    )
    remedies = []
    if fewer := _most_sequences(served, most):
        remedies.append(f"answer at most {fewer} at a time")
    if served.bits != 4 and (four := cheapest(replace(served, bits=4), [most])):
        remedies.append(f"hold the base in 4 bits ({four.needed_gib:.1f} GiB)")
    if larger:
        remedies.append(f"use {larger}")
    said = ", or ".join(remedies) or "serve fewer tokens or adapters, or a smaller model"
    value = f"{served.sequences} x {served.tokens} tokens"
    return ConfigError.single("sequences", value, message, f"{said[0].upper()}{said[1:]}.", code=_CODE)


def _most_sequences(served: Served, offer: Offer) -> int:
    """Most sequences that a machine can answer at a time; 0 if not even one."""
    low, high = 0, served.sequences
    while high - low > 1:
        middle = (low + high) // 2
        if cheapest(replace(served, sequences=middle), [offer]):
            low = middle
        else:
            high = middle
    return low


def _larger(served: Served, hardware: HardwareConfig, catalogue: Catalogue) -> str:
    """The cheapest other node of the catalogue that holds what is served; empty if none does."""
    if hardware.instance is None and hardware.device is None:
        return ""
    found = cheapest(served, matching.for_one_model(HardwareConfig(), served.precision, catalogue))
    return found.node.instance if found else ""


def in_words(items: Mapping[str, int]) -> str:
    """Items of memory as text, in GiB.

    Args:
        items: Bytes by item.
    """
    return ", ".join(f"{item} {size / GIB:.2f}" for item, size in items.items())
