"""The model and the adapters that a server answers with, and which of them share a batch."""

import inspect
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.config.benchmark_run import BASE
from thriftune.errors import AdapterError
from thriftune.inference.serving.cache import require_growing
from thriftune.inference.serving.choosing import require_known
from thriftune.models.loading import Placement, attach_adapters, load_model
from thriftune.models.mixed_batch import NO_ADAPTER, sharing, unbatchable_on, whole_modules
from thriftune.models.stopping import stop_tokens
from thriftune.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Kind:
    """Whose rows a batch holds.

    Attributes:
        name: Name of the batch: `mixed`, or the one adapter's.
        is_mixed: Whether each row says its own adapter.
    """

    name: str
    is_mixed: bool


_MIXED = Kind("mixed", is_mixed=True)


@dataclass(frozen=True)
class Loaded:
    """A model with its adapters.

    Attributes:
        model: The base model, or a peft model with all adapters.
        tokenizer: Its tokenizer.
        stops: Tokens that end an answer.
        internal: Name of each adapter on the model by the name that it is served under.
        mixed: Those of the served names whose rows share a batch; `base` among them.
    """

    model: Any
    tokenizer: "PreTrainedTokenizerBase"
    stops: Collection[int]
    internal: Mapping[str, str]
    mixed: Collection[str]

    @property
    def device(self) -> "torch.device":
        """Where questions are put."""
        device: torch.device = next(self.model.parameters()).device
        return device

    @property
    def penalty(self) -> float:
        """The model's repetition penalty, which `generate` applies, too; 1 is none."""
        return float(self.model.generation_config.repetition_penalty or 1)

    @property
    def batches(self) -> list[Kind]:
        """The batches that there may be."""
        return [_MIXED, *(Kind(name, is_mixed=False) for name in (BASE, *self.internal) if name not in self.mixed)]

    def batch_of(self, name: str) -> Kind:
        """The batch of a served name.

        Args:
            name: The adapter's, or `base`.
        """
        return _MIXED if name in self.mixed else Kind(name, is_mixed=False)

    @contextmanager
    def answering(self, kind: Kind, names: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Have the right adapters active, and give the arguments that a forward pass needs for it.

        Args:
            kind: The batch.
            names: Served name of each row.

        Yields:
            More arguments of the forward pass.
        """
        options: dict[str, Any] = {"logits_to_keep": 1} if self._keeps_last else {}
        if not self.internal:
            yield options
        elif kind.is_mixed:
            with sharing(self._whole_modules):
                yield {**options, "adapter_names": [self.internal.get(name, NO_ADAPTER) for name in names]}
        elif kind.name == BASE:
            with self.model.disable_adapter():
                yield options
        else:
            self._activate(kind.name)
            yield options

    @cached_property
    def _whole_modules(self) -> list[Any]:
        return whole_modules(self.model)

    def _activate(self, name: str) -> None:
        if self.model.active_adapter != self.internal[name]:
            self.model.set_adapter(self.internal[name])

    @cached_property
    def _keeps_last(self) -> bool:
        """Whether the model can leave out the scores of all tokens but the last."""
        base = self.model.get_base_model() if self.internal else self.model
        return "logits_to_keep" in inspect.signature(base.forward).parameters

    def free_memory(self) -> None:
        """Give back what a failed forward pass has left behind."""
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def load(model_dir: Path, adapters: Mapping[str, Path], placement: Placement) -> Loaded:
    """Load a model and its adapters, and look once whether the server can decode with each.

    Args:
        model_dir: The base model.
        adapters: Adapter directories by the names that they are served under.
        placement: How to hold the model.

    Raises:
        UserError: The model or an adapter cannot be served.
    """
    tokenizer = load_tokenizer(model_dir, padding_side="left")
    internal = {name: f"adapter_{number}" for number, name in enumerate(adapters)}
    model = attach_adapters(load_model(model_dir, placement), {internal[n]: path for n, path in adapters.items()})
    model.eval()
    require_known(model.generation_config, model_dir)
    configs = getattr(model, "peft_config", {})
    for name, path in adapters.items():
        if configs[internal[name]].is_prompt_learning:
            message = "is a trained prefix, whose rows the server cannot decode beside others."
            raise AdapterError.single(f"--adapters {name}", path, message, "Answer with workflows/generate.py.")
    reasons = {name: unbatchable_on(model, internal[name]) for name in adapters}
    mixed = {name for name, reason in reasons.items() if not reason}
    if mixed or not adapters:
        mixed.add(BASE)
    for name in sorted({*adapters} - mixed):
        logger.info("%s is decoded apart from the others: %s", name, reasons[name])
    stops = frozenset(stop_tokens(tokenizer, model.generation_config.eos_token_id))
    loaded = Loaded(model, tokenizer, stops, internal, frozenset(mixed))
    _try(loaded, model_dir)
    return loaded


def _try(loaded: Loaded, model_dir: Path) -> None:
    """Read one token with each batch, so that what fails does so before the server is ready."""
    import torch
    from transformers import DynamicCache

    token = next(iter(loaded.stops), 0)
    for kind in loaded.batches:
        names = sorted(loaded.mixed) if kind.is_mixed else [kind.name]
        if not names:
            continue
        with torch.inference_mode(), loaded.answering(kind, names) as options:
            ids = torch.tensor([[token]] * len(names), device=loaded.device)
            output = loaded.model(input_ids=ids, past_key_values=DynamicCache(), use_cache=True, **options)
        require_growing(output.past_key_values, model_dir)
