"""Writing the sums into files laid out as the base model's: file by file, and weight by weight."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.models.merging.mapped import Mapped
from thriftune.models.merging.sums import Sums, require_finite
from thriftune.models.rounding import RoundingMode, rounded
from thriftune.models.weight_files import SINGLE
from thriftune.models.weight_writer import Entry, aligned, write_file, write_index
from thriftune.progress import bytes_progress

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Layout:
    """Which weights each file gets.

    Attributes:
        files: By the name of a file: the name of each weight in the model, by its name in the file.
        weights: The model's own weights, by their names in it.
    """

    files: dict[str, dict[str, str]]
    weights: "dict[str, torch.Tensor]"


def layout_of(mapped: Mapped) -> Layout | None:
    """The layout of a base model's files.

    Args:
        mapped: The base model.

    Returns:
        The layout, with weights that the files lack (a classifier's new head) in the last of them; None if transformers
        joins or divides weights while it loads them, so that no weight of the model is one of a file.
    """
    from safetensors import safe_open

    state, joined = mapped.model.state_dict(), _Names(mapped.model)
    files: dict[str, dict[str, str]] = {}
    for file in mapped.files:
        with safe_open(file, framework="pt") as opened:
            names = {name: joined.in_model(name, state) for name in opened.keys()}  # noqa: SIM118 - no mapping
        if None in names.values():
            return None
        files[file.name] = {name: str(place) for name, place in names.items() if place in state}
    if len(files) == 1:  # config.json may name it something else, which is not passed on
        files = {SINGLE: next(iter(files.values()))}
    there = {state[place].data_ptr() for placed in files.values() for place in placed.values()}
    last = files[list(files)[-1]]
    last.update({name: name for name, tensor in state.items() if tensor.data_ptr() not in there})
    weights: dict[str, torch.Tensor] = dict(mapped.model.named_parameters(remove_duplicate=False))
    return Layout(files, {**{name: b for name, b in mapped.model.named_buffers() if name in state}, **weights})


def is_converted(model: Any) -> bool:
    """Whether transformers joins or divides weights of files while it loads a model, as those of many experts.

    Args:
        model: The model; it may be on the meta device.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, apply_converters

    found: list[Any] = get_model_conversion_mapping(model)
    converters: list[Any] = [each.reverse_transform() for each in found if isinstance(each, WeightConverter)]
    return any(apply_converters(name, converters)[1] is not None for name, _ in model.named_parameters())


class InShards:
    """Writes a base model's weights with an adapter's parts, of which one is in memory at a time.

    Args:
        mapped: The base model, whose weights are in its files.
        sums: The same with the adapter.
        layout: The layout of its files.
        target: Type of the written weights.
        seed: Seed of stochastic rounding.
    """

    def __init__(self, mapped: Mapped, sums: Sums, layout: Layout, target: "torch.dtype", seed: int) -> None:
        self.target, self.opened = target, (mapped, sums)
        self._mapped, self._sums, self._layout, self._seed = mapped, sums, layout, seed
        self._untie()

    @property
    def size(self) -> int:
        """Bytes of the merged model."""
        return sum(entry.size for names in self._layout.files.values() for entry in self._entries(names).values())

    def write(self, directory: Path, mode: RoundingMode) -> None:
        """Write the merged model, without its tokenizer.

        Args:
            directory: The directory of the new model.
            mode: How to round the weights that the adapter changes.
        """
        _save_settings(self._mapped.model, self.target, directory)
        files = {file: self._entries(names) for file, names in self._layout.files.items()}
        with bytes_progress(self.size, "Merging") as bar:
            for file, entries in files.items():
                places = self._layout.files[file]
                write_file(directory / file, entries, partial(self._made, places, mode), bar.update)
        if list(files) != [SINGLE]:
            write_index(directory, files)

    def _untie(self) -> None:
        """Write each of the weights that are tied in the base model and no longer equal.

        A model that is still tied would compute with the first of them in all places.
        """
        config, files = self._mapped.model.config, self._layout.files
        placed = {place for places in files.values() for place in places.values()}
        for group in self._tied():
            if any(self._sums.changes(name) for name in group) and not self._are_equal(group):
                files[list(files)[-1]].update({name: name for name in group if name not in placed})
                for part in (config, config.get_text_config()):
                    part.tie_word_embeddings = False

    def _tied(self) -> list[list[str]]:
        same: dict[int, list[str]] = {}
        for name, tensor in self._layout.weights.items():
            same.setdefault(id(tensor), []).append(name)
        return [names for names in same.values() if len(names) > 1]

    def _are_equal(self, group: list[str]) -> bool:
        import torch

        first = self._sums.of(group[0], self._layout.weights[group[0]].data)
        return all(
            torch.equal(first, self._sums.of(name, self._layout.weights[name].data).to(first.dtype))
            for name in group[1:]
        )

    def _entries(self, names: dict[str, str]) -> dict[str, Entry]:
        weights = self._layout.weights
        return aligned({n: Entry(self._type_of(place), tuple(weights[place].shape)) for n, place in names.items()})

    def _type_of(self, place: str) -> "torch.dtype":
        """The type to write a weight in: its own if transformers keeps it in fp32, or if it holds whole numbers."""
        base = self._layout.weights[place]
        is_kept = base.dtype != self._mapped.stored and place not in self._sums.written
        return base.dtype if is_kept or not base.is_floating_point() else self.target

    def _made(self, places: dict[str, str], mode: RoundingMode, name: str) -> "torch.Tensor":
        place = places[name]
        base, dtype = self._layout.weights[place].data, self._type_of(place)
        made = self._sums.of(place, base)
        if self._sums.changes(place):
            made = rounded(made.float(), dtype, mode, self._sums.rounding_name(place), self._seed)
        else:
            made = made.to(dtype, copy=True)
        if self._sums.changes(place) or dtype != base.dtype:
            require_finite(made, place)
        self._mapped.release(base)
        return made


class _Names:
    """The names that weights of files have in a model, as transformers finds them while it loads."""

    def __init__(self, model: Any) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming

        found: list[Any] = get_model_conversion_mapping(model)
        self._renamings = [each for each in found if isinstance(each, WeightRenaming)]
        self._converters = [each for each in found if isinstance(each, WeightConverter)]
        self._prefix = model.base_model_prefix

    def in_model(self, name: str, state: "dict[str, torch.Tensor]") -> str | None:
        """The name in the model; None if the weight becomes a part of another one, or several."""
        from transformers.core_model_loading import rename_source_key

        found, converter = rename_source_key(name, self._renamings, self._converters, self._prefix, state)
        if found not in state and name in state:
            return name
        return None if converter is not None and found in state else found


def _save_settings(model: Any, dtype: "torch.dtype", directory: Path) -> None:
    """Write what `save_pretrained` writes beside weights."""
    from transformers.dynamic_module_utils import custom_object_save

    config = model.config
    config.dtype = str(dtype).removeprefix("torch.")
    config.architectures = [type(model).__name__]
    if model.is_remote_code():
        custom_object_save(model, directory, config=config)
    config.save_pretrained(directory)
    if model.can_generate():
        model.generation_config.save_pretrained(directory)
