"""Partial fine-tuning: chosen weights train, and new layers if wanted; an ordinary model directory comes out."""

import logging
import math
from pathlib import Path
from typing import Any

from thriftune.config import Method, PartialConfig, RunConfig, Section
from thriftune.config.methods import LastLayers
from thriftune.errors import ConfigError
from thriftune.methods import added_layers, selection
from thriftune.methods.full import Full
from thriftune.models.architecture import Architecture, layer_of

logger = logging.getLogger(__name__)


class LayersAlike(Section):
    """What trains in a model all of whose decoder layers train alike, to measure one layer of a run on a few of them.

    Attributes:
        inside: Names of the parameters that train in each layer, without the layer's own name.
        outside: Names of those that train outside the layers.
        is_reached: Whether gradients reach what the layers get.
    """

    inside: frozenset[str]
    outside: frozenset[str]
    is_reached: bool


class Partial(Full):
    """A part of the weights trains; everything else stays bit for bit as it is."""

    name: Method = "partial"

    def check(self, config: RunConfig, architecture: Architecture, start: Path | None = None) -> None:
        """Refuse names that match nothing, and new layers where they cannot be added."""
        section = config.partial_or_default
        names = selection.chosen(section.train, architecture)
        added_layers.grown(architecture, section.add_layers)
        if not architecture.new_head <= names:
            written = ", ".join(map(str, section.train)) or "new layers"
            message = "leaves out the new output head of the classifier, which would stay at random."
            raise ConfigError.single(selection.FIELD, written, message, "Add head to the list.")

    def remarks(self, config: RunConfig, architecture: Architecture) -> list[str]:
        """That head and embeddings train together, where one is the other."""
        names = trained_names(config.partial_or_default, architecture)
        if selection.ties_head(architecture) and architecture.head_name in names:
            return ["the output head of this model is its embedding table: both train."]
        return []

    def planned(self, config: RunConfig, architecture: Architecture) -> tuple[Section | None, Architecture]:
        """With new layers: the model that has them, and what trains in it."""
        section = config.partial_or_default
        if not section.add_layers:
            return section, architecture
        names = tuple(sorted(trained_names(section, architecture)))
        return PartialConfig(train=names), added_layers.grown(architecture, section.add_layers)

    def trained_parts(self, section: Section | None, architecture: Architecture) -> dict[str, int]:
        """The chosen parameters of each module, and those of new layers."""
        assert isinstance(section, PartialConfig)
        shapes = added_layers.grown(architecture, section.add_layers).shapes
        parts: dict[str, int] = {}
        for name in sorted(trained_names(section, architecture)):
            module = name.rpartition(".")[0]
            parts[module] = parts.get(module, 0) + math.prod(shapes[name])
        return parts

    def traced_as(self, section: Section | None, architecture: Architecture) -> tuple[Section | None, ...]:
        """For each layer, what trains in it, and whether gradients go on below it."""
        assert isinstance(section, PartialConfig)
        names = trained_names(section, architecture)
        outside = frozenset(name for name in names if not layer_of(name))
        is_reached = bool(outside & selection.embeddings(architecture))
        alike = []
        for inside in selection.in_layers(architecture, names):
            is_reached = is_reached or bool(inside)
            alike.append(LayersAlike(inside=inside, outside=outside, is_reached=is_reached))
        return tuple(alike)

    def put_on(self, model: Any, section: Section | None, architecture: Architecture) -> Any:
        """Freeze everything else, and add new layers."""
        return self._put_on(model, section, architecture, seed=0)

    def identity(self, config: RunConfig) -> dict[str, Any]:
        """What trains, as the run file names it."""
        section = config.partial_or_default
        train = [
            f"last_layers: {entry.last_layers}" if isinstance(entry, LastLayers) else entry for entry in section.train
        ]
        return {"partial.train": sorted(train), "partial.add_layers": section.add_layers}

    def prepare(self, model: Any, config: RunConfig, architecture: Architecture, start: Path | None) -> Any:
        """Freeze everything else, and add new layers."""
        section = config.partial_or_default
        for remark in self.remarks(config, architecture):
            logger.info("%s %s", selection.FIELD, remark)
        prepared = self._put_on(model, section, architecture, seed=config.seed)
        parts = self.trained_parts(section, architecture)
        total = added_layers.grown(architecture, section.add_layers).parameters
        logger.info("%.2f %% of the weights train", 100 * sum(parts.values()) / total)
        return prepared

    def _untrained(self, base: Any, config: RunConfig, architecture: Architecture) -> Any:
        """The base model with new layers, as they are before the first step."""
        return self._put_on(base, config.partial_or_default, architecture, seed=config.seed)

    def _put_on(self, model: Any, section: Section | None, architecture: Architecture, *, seed: int) -> Any:
        if isinstance(section, LayersAlike):
            return _freeze_alike(model, section)
        assert isinstance(section, PartialConfig)
        if section.add_layers:
            added_layers.add(model, section.add_layers, seed)
        names = trained_names(section, architecture)
        for name, parameter in model.named_parameters():
            parameter.requires_grad = name in names
        return model


def trained_names(section: PartialConfig, architecture: Architecture) -> frozenset[str]:
    """Names of the parameters that train, those of new layers included.

    Args:
        section: The section of the run file.
        architecture: The base model's.

    Raises:
        ConfigError: An entry names nothing, or layers cannot be added.
    """
    names = selection.chosen(section.train, architecture)
    if not section.add_layers:
        return names
    return names | added_layers.trained(added_layers.grown(architecture, section.add_layers), section.add_layers)


def _freeze_alike(model: Any, section: LayersAlike) -> Any:
    """Let every layer of a model train alike."""
    for name, parameter in model.named_parameters():
        layer = layer_of(name)
        inside = name.removeprefix(f"{layer}.") in section.inside
        parameter.requires_grad = inside if layer else name in section.outside
    if section.is_reached:
        model.enable_input_require_grads()
    return model
