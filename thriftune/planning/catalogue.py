"""The node types that the planner chooses among, with their hardware and prices: catalogue.yaml, or a file like it.

Prices are set by the provider, so they are in a file that can be replaced, never in code.
"""

import datetime
import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator

from thriftune import urls
from thriftune.bounded_yaml import BoundedLoader, TooMuchYamlError
from thriftune.config import Section
from thriftune.config import messages as config_errors
from thriftune.devices import DeviceEntry, hint
from thriftune.errors import ConfigError, Problem
from thriftune.hardware import DEVICES, Device
from thriftune.planning.node_types import NodeProperties, NodeType, possible_rate
from thriftune.stores import failures, remote

_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_EXAMPLE = "thriftune/planning/catalogue.yaml is an example."
_DEVICE_EXAMPLE = "thriftune/devices.yaml is an example."
_NAMES = {
    "devices": "cannot be the name of a device.",
    "nodes": "cannot be the name of a node type: pods select nodes by it, as the value of a label.",
}

_Made = TypeVar("_Made")


class Catalogue(Section):
    """Node types of one provider and region, with their prices on one day."""

    currency: str = Field(pattern=r"^[A-Z]{3}$", description="Currency of the prices, such as USD.")
    region: str = Field(min_length=1, description="Where the prices apply, such as us-east-1.")
    as_of: datetime.date = Field(description="Day on which the prices were read, such as 2026-01-31.")
    source: str = Field(default="", description="Where the prices were read.")
    interruptions_per_month: float | None = Field(
        default=None,
        description="Interruptions of a node with GPUs in a month on the spot market: 0.22 where 20 % of the nodes are "
        "taken back in one. A node type may have its own.",
    )
    interruptions_source: str = Field(default="", description="Where that was read, or why it is assumed.")
    nodes: tuple[NodeType, ...] = Field(description="The node types: a mapping of names to their properties.")
    devices: dict[str, Device] = Field(
        default=DEVICES,
        description="Devices besides the shipped ones, or in place of these: a mapping of names to figures.",
    )

    @field_validator("interruptions_per_month")
    @classmethod
    def _is_a_rate(cls, rate: float | None) -> float | None:
        return possible_rate(rate)

    def get(self, name: str) -> NodeType:
        """Look up a node type by its name.

        Args:
            name: The provider's name for it, such as g4dn.12xlarge.

        Returns:
            The node type.

        Raises:
            ConfigError: No node type has that name; the remedy suggests similar names.
        """
        names = [node.name for node in self.nodes]
        if name in names:
            return self.nodes[names.index(name)]
        close = difflib.get_close_matches(name, names)
        remedy = f"Did you mean {' or '.join(close)}?" if close else f"The node types are {', '.join(names)}."
        raise ConfigError.single(
            "hardware.instance", name, "is not a node type of the catalogue.", remedy, code="plan-does-not-fit"
        )

    def device(self, name: str, field: str = "hardware.device") -> Device:
        """Look up a device by its name.

        Args:
            name: Its name, such as T4.
            field: The key that names it, for the error.

        Returns:
            The device.

        Raises:
            ConfigError: No device has that name, shipped or of this catalogue; the remedy suggests similar names.
        """
        if name in self.devices:
            return self.devices[name]
        remedy = hint(name, self.devices)
        raise ConfigError.single(field, name, "is no known device.", remedy, code="plan-does-not-fit")

    def for_device(self, device: str) -> tuple[NodeType, ...]:
        """The node types that have a device, cheapest first; none for a device that the catalogue does not offer.

        Args:
            device: Its name.
        """
        return tuple(sorted((n for n in self.nodes if n.device == device), key=lambda n: n.price_per_hour))


def load(place: str | None = None) -> Catalogue:
    """Read the catalogue from a file.

    Args:
        place: Path, s3:// or gs:// URL of a YAML file like catalogue.yaml; None for the shipped one.

    Returns:
        The catalogue.

    Raises:
        ConfigError: The file is missing, is not YAML, or has wrong content; all problems are named at once.
        TransientError: The store of a URL did not answer.
    """
    shipped = resources.files("thriftune.planning") / "catalogue.yaml"
    content = shipped.read_bytes() if place is None else _fetch(place)
    data, problems = _parse(content, place or str(shipped))
    own, of_devices = _devices(data)
    # The catalogue's own come first: they are what is meant where a GPU may be either.
    known = {**own, **{name: device for name, device in DEVICES.items() if name not in own}}
    nodes, of_nodes = _nodes(data, known)
    given = {"nodes": nodes} if "nodes" in data else {}
    try:
        catalogue = Catalogue.model_validate(data | given | {"devices": {n: d for n, d in known.items() if d}})
    except ValidationError as error:
        problems += _explain(error, Catalogue, "catalogue")
    if problems or of_devices or of_nodes:
        raise ConfigError([*problems, *of_devices, *of_nodes])
    return catalogue


def _fetch(place: str) -> bytes:
    """The bytes of a file or URL."""
    if urls.is_remote(place):
        with failures.explained("catalogue", place, ConfigError):
            return remote.content(place)
    try:
        return Path(place).expanduser().read_bytes()
    except FileNotFoundError as error:
        raise ConfigError.single("catalogue", place, "no such file.", "Check the path.") from error
    except PermissionError as error:
        raise ConfigError.single("catalogue", place, f"may not be read: {error}.", "Grant read access.") from error
    except OSError as error:
        raise ConfigError.single("catalogue", place, f"cannot be read: {error}.", "Give a file.") from error


def _parse(content: bytes, place: str) -> tuple[dict[str, Any], list[Problem]]:
    """The mapping in a YAML file, and problems for keys that occur twice.

    Args:
        content: Content of the file.
        place: Its name, for errors.

    Raises:
        ConfigError: It is not YAML, or not a mapping, so that nothing else can be checked.
    """
    try:
        loader = BoundedLoader(content)
        root = loader.get_single_node()
        data = loader.construct_document(root) if root else None
    except TooMuchYamlError as error:
        raise ConfigError.single("catalogue", place, f"{error}.", _EXAMPLE) from error
    except (yaml.YAMLError, ValueError) as error:  # a date such as 2026-02-30 is a plain ValueError
        text = " ".join(str(error).split())
        raise ConfigError.single("catalogue", place, f"is not YAML: {text}.", _EXAMPLE) from error
    if not isinstance(data, dict):
        found = "is empty." if data is None else "is not a mapping."
        raise ConfigError.single("catalogue", place, found, _EXAMPLE)
    return {str(key): value for key, value in data.items()}, list(_repeated_keys(root, "catalogue", set()))


def _repeated_keys(node: yaml.Node | None, field: str, seen: set[int]) -> Iterator[Problem]:
    """Problems for keys that occur twice in a mapping, of which PyYAML silently keeps the last one."""
    if not isinstance(node, yaml.MappingNode) or id(node) in seen:
        return
    seen.add(id(node))  # an anchor that is used again is the same object, which may contain itself
    lines: dict[str, int] = {}
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in lines:
            message = f"is written twice, in lines {lines[name]} and {line}."
            yield Problem(f"{field}.{name}", "", message, "Keep one of them.")
        lines[name] = line
        yield from _repeated_keys(value, f"{field}.{name}", seen)


def _devices(data: dict[str, Any]) -> tuple[dict[str, Device | None], list[Problem]]:
    """The devices of a file by name, None for those that are wrong, and the problems of these."""
    entries = data.get("devices") or {}
    if not isinstance(entries, dict):
        message = "is not a mapping of names to properties."
        return {}, [Problem("catalogue.devices", repr(entries)[:80], message, _DEVICE_EXAMPLE)]
    made, problems = _made(
        entries, "devices", DeviceEntry, lambda name, given: DeviceEntry.of(name, given).device(name)
    )
    return {str(name): made.get(str(name)) for name in entries}, problems


def _nodes(data: dict[str, Any], devices: Mapping[str, Device | None]) -> tuple[list[NodeType], list[Problem]]:
    """The valid node types of a file, and the problems of the others.

    Args:
        data: The file.
        devices: The devices that nodes may have; None for one that is wrong itself.
    """
    entries, problems = data.get("nodes", {}), []
    if "nodes" in data and not (isinstance(entries, dict) and entries):
        message = "lists no node type." if not entries else "is not a mapping of names to properties."
        problems.append(Problem("catalogue.nodes", "" if not entries else repr(entries)[:80], message, _EXAMPLE))
        entries = {}

    def checked(name: str, given: dict[str, Any]) -> NodeType:
        properties = NodeProperties.model_validate(given, context={"devices": devices})
        return NodeType.model_validate({**dict(properties), "name": name}, context={"devices": devices})

    made, of_entries = _made(entries, "nodes", NodeProperties, checked)
    return list(made.values()), [*problems, *of_entries]


def _made(
    entries: dict[Any, Any],
    section: str,
    model: type[BaseModel],
    make: Callable[[str, dict[str, Any]], _Made],
) -> tuple[dict[str, _Made], list[Problem]]:
    """What is made of the entries of a section, by name, and the problems of those of which nothing can be made."""
    made: dict[str, _Made] = {}
    problems: list[Problem] = []
    for name, properties in entries.items():
        field = f"catalogue.{section}.{name}"
        if not _LABEL_VALUE.fullmatch(str(name)):
            problems.append(Problem(field, "", _NAMES[section], "Use letters, digits, dots and dashes, at most 63."))
        elif not isinstance(properties, dict):
            remedy = f"Its keys are {', '.join(model.model_fields)}."
            problems.append(Problem(field, repr(properties)[:80], "is not a mapping.", remedy))
        else:
            try:
                made[str(name)] = make(str(name), {str(key): value for key, value in properties.items()})
            except ValidationError as error:
                problems += _explain(error, model, field)
    return made, problems


def _explain(error: ValidationError, model: type[BaseModel], field: str) -> list[Problem]:
    return [replace(problem, field=f"{field}.{problem.field}") for problem in config_errors.explain(error, model)]
