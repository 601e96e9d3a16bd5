"""The sums of a base model's weights and an adapter's parts, one weight at a time, by peft's own merging of a layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.errors import AdapterError
from thriftune.models.adapter_misfits import PREFIX
from thriftune.models.adapter_weights import WEIGHTS, attach, shapes_in
from thriftune.models.classifier import content_of
from thriftune.models.completeness import ADAPTER_CONFIG
from thriftune.models.weight_files import Folder

if TYPE_CHECKING:
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

# Parts of names that peft puts between a module and its parent.
_WRAPPERS = (".base_layer", ".token_adapter")
_PIECE = 2**24  # elements that are looked at together
_WHOLE = ".modules_to_save."  # in the names of what trains as a whole, and of the layers in it


@dataclass
class Sums:
    """A base model with an adapter on it, of which each weight's sum can be had alone.

    Attributes:
        adapted: The model with the adapter, in evaluation mode.
        layers: peft's layer that changes a weight, its name in `adapted`, and the weight's name in it; by the weight's.
        replaced: Weights of modules that were trained as a whole, in fp32.
        written: Weights of the base that the adapter's file has others for, such as biases; as the base has them.
        vectors: Sums that were made along with another one of the same layer.
    """

    adapted: Any
    layers: dict[str, "tuple[BaseTunerLayer, str, str]"] = field(default_factory=dict)
    replaced: dict[str, "torch.Tensor"] = field(default_factory=dict)
    written: dict[str, "torch.Tensor"] = field(default_factory=dict)
    vectors: dict[str, "torch.Tensor"] = field(default_factory=dict)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Have the model compute as the base model does."""
        own = {name: self._own(name) for name in self.written}
        trained = {name: parameter.data for name, parameter in own.items()}
        try:
            for name, parameter in own.items():
                parameter.data = self.written[name]
            with self.adapted.disable_adapter():
                yield
        finally:
            for name, parameter in own.items():
                parameter.data = trained[name]

    def _own(self, name: str) -> "torch.nn.Parameter":
        """A parameter of the base model, by its name there."""
        named: Iterator[tuple[str, torch.nn.Parameter]] = self.adapted.named_parameters(remove_duplicate=False)
        return next(parameter for path, parameter in named if _clean(path) == name)

    def changes(self, name: str) -> bool:
        """Whether the adapter changes a weight.

        Args:
            name: The weight's name in the base model.
        """
        return name in self.layers or name in self.replaced or name in self.written

    def of(self, name: str, base: "torch.Tensor") -> "torch.Tensor":
        """A weight with the adapter's part added, in fp32; as it is if the adapter leaves it alone.

        Args:
            name: The weight's name in the base model.
            base: The weight there.
        """
        if name in self.vectors:
            return self.vectors.pop(name)
        if name not in self.layers:
            return self.replaced.get(name, base)
        layer, _, key = self.layers[name]
        with _in_fp32(layer) as held:
            layer.merge()  # not `safe_merge`, which holds two more weights
            made = {other: parameter.data for other, parameter in held.items()}
        require_finite(made[key], name)
        stem = name.removesuffix(key)
        self.vectors.update({f"{stem}{other}": sum_ for other, sum_ in made.items() if other != key and sum_.ndim <= 1})
        return made[key]

    def rounding_name(self, name: str) -> str:
        """The name that the random numbers of a weight's rounding are drawn by.

        Args:
            name: The weight's name in the base model.
        """
        return f"{self.layers[name][1]}.{self.layers[name][2]}" if name in self.layers else name


def put_on(model: Any, adapter_dir: Path) -> Sums:
    """Put an adapter on a base model whose weights are in files that nothing may be written to.

    Args:
        model: The base model.
        adapter_dir: The adapter.

    Raises:
        AdapterError: It is incomplete, made for another model, or of a kind that cannot be merged.
    """
    import torch
    from peft.utils import load_peft_weights

    written = {name: model.get_parameter(name).data for name in _in_base(model, adapter_dir)}
    for name, weight in written.items():
        # What the adapter's file says takes its place, and not in the fewer bits of the base.
        model.get_parameter(name).data = weight.to(torch.float32, copy=True)
    adapted: Any = attach(model, adapter_dir).eval()
    require_mergeable(adapted, adapter_dir)
    sums = Sums(adapted, written=written)
    tensors = load_peft_weights(str(adapter_dir), device="cpu")
    for path, module in adapted.named_modules():
        _find(sums, path, module, tensors)
    return sums


def require_mergeable(adapted: Any, adapter_dir: Path) -> None:
    """Refuse an adapter that adds something else than numbers to weights.

    Args:
        adapted: The model with the adapter.
        adapter_dir: The adapter, for the message.

    Raises:
        AdapterError: It does.
    """
    if not hasattr(adapted.base_model, "merge_and_unload"):
        kind = str(adapted.peft_config["default"].peft_type.value)
        raise AdapterError.single(
            "adapter",
            adapter_dir,
            f"is of type {kind}, which cannot be merged: it adds to what the model computes, not to its weights.",
            "Use the adapter on its base model.",
        )


def is_of_single_weights(sums: Sums) -> bool:
    """Whether every layer that an adapter changes has weights of its own alone: no fused experts, no layer in another.

    Args:
        sums: The model with the adapter.
    """
    from peft.tuners.lora.layer import ParamWrapper
    from peft.tuners.tuners_utils import BaseTunerLayer

    found: set[str] = set()
    for path, module in sums.adapted.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        name, base = _clean(path), module.get_base_layer()
        if isinstance(module, ParamWrapper) or name in found or _WHOLE in path or any(base.children()):
            return False
        found.add(name)
    return True


def _find(sums: Sums, path: str, module: Any, tensors: "dict[str, torch.Tensor]") -> None:
    """Note what a module of the adapted model does to weights of the base."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import ModulesToSaveWrapper

    name = _clean(path)
    if isinstance(module, ModulesToSaveWrapper) and module.active_adapters:
        trained: Any = module.unload_and_optionally_merge_module(merge=False, safe_merge=True, adapter_names=None)
        for key, parameter in trained.named_parameters():
            stored = tensors.get(f"{PREFIX}{name}.{key}")
            if stored is not None:  # peft holds it in the type of the base
                parameter.data = stored.float()
            sums.replaced[f"{name}.{key}"] = parameter.data
    elif isinstance(module, BaseTunerLayer) and _WHOLE not in path:
        for key, parameter in module.get_base_layer().named_parameters(recurse=False):
            if parameter.is_floating_point():
                sums.layers[f"{name}.{key}"] = (module, path, key)


@contextmanager
def _in_fp32(layer: "BaseTunerLayer") -> Iterator[dict[str, "torch.nn.Parameter"]]:
    """Hold a layer's base weights in fp32; peft alone would round the adapter's part as well. Undoes the merging."""
    import torch

    base = layer.get_base_layer()
    held = {key: p for key, p in base.named_parameters(recurse=False) if p.is_floating_point()}
    stored = {key: parameter.data for key, parameter in held.items()}
    try:
        for parameter in held.values():
            parameter.data = parameter.data.to(torch.float32, copy=True)
        yield held
    finally:
        for key, parameter in held.items():
            parameter.data = stored[key]
        layer.merged_adapters.clear()


def require_finite(weight: "torch.Tensor", name: str) -> None:
    """Refuse a sum with numbers that are none, as peft's `safe_merge` does, or that became none in its type.

    Args:
        weight: The sum.
        name: Its name in the base model.

    Raises:
        AdapterError: It has such numbers.
    """
    import torch

    if not weight.is_floating_point():
        return
    pieces: list[torch.Tensor] = list(torch.split(weight.reshape(-1), _PIECE))
    if not all(torch.isfinite(piece).all() for piece in pieces):
        kind = str(weight.dtype).removeprefix("torch.")
        message = f"has numbers that are not finite in {kind} once it is merged."
        remedy = "Train the adapter again."
        if weight.dtype == torch.float16:
            remedy = (
                "Merge into a base in bf16 or fp32: the largest number in fp16 is 65504. Or train the adapter again."
            )
        raise AdapterError.single("adapter", name, message, remedy)


def _in_base(model: Any, adapter_dir: Path) -> set[str]:
    """Names of the base model's own weights that are in an adapter's file: peft copies these onto the base."""
    if not (adapter_dir / ADAPTER_CONFIG).is_file() or not (adapter_dir / WEIGHTS).is_file():
        return set()  # refused by name when it is put on, or not safetensors
    whole = content_of(adapter_dir, ADAPTER_CONFIG).get("modules_to_save") or ()
    names = {_clean(name) for name in shapes_in(Folder(adapter_dir), "adapter", adapter_dir)}
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return {name for name in known & names if not any(f".{module}." in f".{name}" for module in whole)}


def _clean(path: str) -> str:
    """The name in the base model of something in the model with an adapter."""
    name = path.removeprefix(PREFIX)
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name
