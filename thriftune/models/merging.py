"""Merging an adapter into the unquantized base model: an ordinary model that loads without this package."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from thriftune import artifacts, damage
from thriftune.hardware import Precision, torch_dtype
from thriftune.models import saving
from thriftune.models.adapter_weights import attach
from thriftune.models.classifier import Classes
from thriftune.models.completeness import load_causal_lm
from thriftune.models.rounding import RoundingMode, rounded
from thriftune.models.saving import SaveDtype, SavedWeights
from thriftune.models.stopping import save_tokenizer
from thriftune.models.substitution import computing_with
from thriftune.models.tokenizer import load_tokenizer

logger = logging.getLogger(__name__)

# Tokens of one pass over the rows on which the merged model is compared: minutes on the four CPUs of a pod.
_COMPARED_OPERATIONS = 2e13


class HeldOutRows(Protocol):
    """Held-out rows, and the loss of a model on them (`thriftune.training.held_out`)."""

    def first_tokens(self, count: float) -> "HeldOutRows":
        """The first rows with at most `count` tokens in total, and at least one row."""

    def loss(self, model: Any) -> float:
        """Mean negative log-likelihood per trained token, in nats."""

    def __len__(self) -> int: ...


def merge(
    model_dir: Path,
    adapter_dir: Path,
    destination: Path,
    *,
    held_out: HeldOutRows | None = None,
    save_dtype: SaveDtype = "auto",
    seed: int = 0,
    trust_remote_code: bool = False,
    classes: Classes | None = None,
) -> SavedWeights | None:
    """Add an adapter's weights to those of the base model, and save the sum.

    The base is loaded unquantized: adding to dequantized NF4 weights would keep their rounding errors.

    Args:
        model_dir: Base model.
        adapter_dir: Adapter.
        destination: Model directory to create.
        held_out: Rows on which the sum is compared with the adapter on the same base; if None, the sum is rounded to
            the nearest numbers and not compared.
        save_dtype: Precision of the saved weights; `auto` keeps the base model's.
        seed: Seed of stochastic rounding.
        trust_remote_code: Run model code that the model ships.
        classes: Classes of the classifier that the adapter makes of it; None for a causal language model.

    Returns:
        What was measured on the held-out rows.

    Raises:
        ModelSourceError: Some weights of the base model are missing.
        AdapterError: The adapter is incomplete, or made for another model.
        UserError: The adapter is damaged.
    """
    damage.require_undamaged(adapter_dir, "adapter", content=True)
    dtype: Any = "auto" if save_dtype == "auto" else torch_dtype(save_dtype)

    def load() -> Any:
        base = load_causal_lm(model_dir, trust_remote_code=trust_remote_code, classes=classes, dtype=dtype)
        logger.info("Merging %s into %s (%s)", adapter_dir, model_dir, base.dtype)
        return attach(base, adapter_dir).eval()

    sums = _Sums(load, seed)
    compared = _compare(sums, held_out) if held_out is not None else None
    merged = sums.rounded(compared.rounding if compared else "nearest")
    size = sum(parameter.numel() * parameter.element_size() for parameter in merged.parameters())
    with artifacts.writing(destination, "saving the merged model", size) as directory:
        merged.save_pretrained(directory)
        save_tokenizer(load_tokenizer(model_dir, trust_remote_code=trust_remote_code), directory)
        # The whole record of the run that made the adapter, if this package made it.
        record = artifacts.read_content(adapter_dir) if artifacts.is_whole(adapter_dir) else {}
        artifacts.write_manifest(directory, "model", {**record, "merged_from": "adapter"})
    return compared


class _Sums:
    """A base model with an adapter on it, then their sum in different roundings, with one model in memory at a time.

    Args:
        load: Loads the base model with the adapter on it.
        seed: Seed of stochastic rounding.
    """

    def __init__(self, load: Callable[[], Any], seed: int) -> None:
        self._load, self._seed = load, seed
        self._mode: RoundingMode | None = None
        self.model = load()

    def rounded(self, mode: RoundingMode) -> Any:
        """The sum, rounded to the type of the base model."""
        if self._mode not in (None, mode):
            del self.model
            self.model = self._load()
            self._mode = None
        if self._mode is None:
            self.model = _merged(self.model, mode, self._seed)
            self._mode = mode
        return self.model


def _merged(model: Any, mode: RoundingMode, seed: int) -> Any:
    """Merge layer by layer in fp32, and round each sum once; peft alone would round the adapter's part as well."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer):
            continue
        held = {key: p for key, p in layer.get_base_layer().named_parameters(recurse=False) if p.is_floating_point()}
        types = {key: parameter.dtype for key, parameter in held.items()}
        for parameter in held.values():
            parameter.data = parameter.data.float()
        layer.merge(safe_merge=True)
        for key, parameter in held.items():
            parameter.data = rounded(parameter.data, types[key], mode, f"{name}.{key}", seed)
    return model.unload()


def _compare(sums: _Sums, held_out: HeldOutRows) -> SavedWeights | None:
    """Measure the adapter on its base and their sum on the same rows, and choose how to round the sum.

    Args:
        sums: The models to compare.
        held_out: Rows to compare them on.

    Returns:
        The measured losses; None if the model's code multiplies by the weight of a module other than the running one,
        which is still in 16 bits (Jamba's convolutions).
    """
    adapted = sums.model
    rows = held_out.first_tokens(_COMPARED_OPERATIONS / (2 * sum(p.numel() for p in adapted.parameters())))

    def loss(model: Any) -> float:
        with _in_fp32(model):
            return rows.loss(model)

    with adapted.disable_adapter():
        try:
            base_loss = loss(adapted)
        except RuntimeError as error:
            logger.warning("The merged model cannot be compared with the adapter on its base: %s", error)
            return None
    names: dict[str, Precision] = {"torch.float32": "fp32", "torch.float16": "fp16", "torch.bfloat16": "bf16"}
    return saving.decide(
        names[str(adapted.dtype)],
        len(rows),
        base_loss,
        lambda: loss(adapted),
        lambda _, mode: loss(sums.rounded(mode)),
        or_fp32=False,
    )


@contextmanager
def _in_fp32(model: Any) -> Iterator[None]:
    """Compute in fp32, weight by weight: CPUs are fast in it, and it shows small differences.

    Not for parameters that peft wraps (fused experts): it replaces them while the module runs.
    """
    from peft.tuners.lora.layer import ParamWrapper

    if any(isinstance(module, ParamWrapper) for module in model.modules()):
        yield
        return
    with computing_with(model, lambda _, parameter: parameter.detach().float()):
        yield
