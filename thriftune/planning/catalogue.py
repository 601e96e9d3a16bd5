"""The node types that the planner chooses among, with their hardware and prices: catalogue.yaml, or a file like it.

Prices are set by the provider, so they are in a file that can be replaced, never in code.
"""

import datetime
import difflib
import re
from collections.abc import Iterator
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError

from thriftune import urls
from thriftune.bounded_yaml import BoundedLoader, TooMuchYamlError
from thriftune.config import Section
from thriftune.config import messages as config_errors
from thriftune.errors import ConfigError, Problem
from thriftune.planning.node_types import NodeProperties, NodeType
from thriftune.stores import failures, remote

_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_EXAMPLE = "thriftune/planning/catalogue.yaml is an example."


class Catalogue(Section):
    """Node types of one provider and region, with their prices on one day."""

    currency: str = Field(pattern=r"^[A-Z]{3}$", description="Currency of the prices, such as USD.")
    region: str = Field(min_length=1, description="Where the prices apply, such as us-east-1.")
    as_of: datetime.date = Field(description="Day on which the prices were read, such as 2026-01-31.")
    source: str = Field(default="", description="Where the prices were read.")
    nodes: tuple[NodeType, ...] = Field(description="The node types: a mapping of names to their properties.")

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

    def for_device(self, device: str) -> tuple[NodeType, ...]:
        """The node types that have a device, cheapest first; none for a device that the catalogue does not offer.

        Args:
            device: Key of `thriftune.hardware.DEVICES`.
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
    nodes, of_nodes = _nodes(data)
    try:
        catalogue = Catalogue.model_validate(data | ({"nodes": nodes} if "nodes" in data else {}))
    except ValidationError as error:
        problems += _explain(error, Catalogue, "catalogue")
    if problems or of_nodes:
        raise ConfigError([*problems, *of_nodes])
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


def _nodes(data: dict[str, Any]) -> tuple[list[NodeType], list[Problem]]:
    """The valid node types of a file, and the problems of the others."""
    nodes: list[NodeType] = []
    problems: list[Problem] = []
    entries = data.get("nodes", {})
    if "nodes" in data and not (isinstance(entries, dict) and entries):
        message = "lists no node type." if not entries else "is not a mapping of names to properties."
        problems.append(Problem("catalogue.nodes", "" if not entries else repr(entries)[:80], message, _EXAMPLE))
        entries = {}
    for name, properties in entries.items():
        field = f"catalogue.nodes.{name}"
        if not _LABEL_VALUE.fullmatch(str(name)):
            message = "cannot be the name of a node type: pods select nodes by it, as the value of a label."
            problems.append(Problem(field, "", message, "Use letters, digits, dots and dashes, at most 63."))
        elif not isinstance(properties, dict):
            remedy = f"Its keys are {', '.join(NodeProperties.model_fields)}."
            problems.append(Problem(field, repr(properties)[:80], "is not a mapping.", remedy))
        else:
            try:
                checked = NodeProperties.model_validate({str(key): value for key, value in properties.items()})
                nodes.append(NodeType(**dict(checked), name=str(name)))
            except ValidationError as error:
                problems += _explain(error, NodeProperties, field)
    return nodes, problems


def _explain(error: ValidationError, model: type[Section], field: str) -> list[Problem]:
    return [replace(problem, field=f"{field}.{problem.field}") for problem in config_errors.explain(error, model)]
