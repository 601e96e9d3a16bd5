"""YAML that a person wrote, read with limits on its size, its depth, and what its aliases expand to.

A few lines of aliases of aliases expand to more than any memory holds: PyYAML reads them at once, as many references to
one object, and code that copies or writes the result never ends.
"""

from typing import IO, Any

import yaml

# Characters of a file. Run files have 2,000 to 50,000.
MOST_CHARACTERS = 1 << 20
# Levels of nested mappings and lists. Run files have 5.
MOST_LEVELS = 32
# Keys and values, with those behind an alias counted at each use. Run files have 100, catalogues 2,000.
MOST_NODES = 20_000
# Characters of a number. PyYAML reads 1:30:59 as base 60, and takes minutes for a megabyte of that.
MOST_DIGITS = 100

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class TooMuchYamlError(ValueError):
    """YAML over a limit; the message says which."""


class BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader that stops at the limits while it reads."""

    def __init__(self, stream: str | bytes | IO[str]) -> None:
        """Read a text up to the longest that is allowed.

        Args:
            stream: The text, or a file to read it from.

        Raises:
            TooMuchYamlError: The text is longer.
        """
        text = stream if isinstance(stream, str | bytes) else stream.read(MOST_CHARACTERS + 1)
        if len(text) > MOST_CHARACTERS:
            raise TooMuchYamlError(f"has more than {MOST_CHARACTERS:,} characters")
        super().__init__(text)
        self.name = str(getattr(stream, "name", self.name))
        self._levels = self._nodes = 0
        self._nodes_of: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, and count it and everything in it.

        Args:
            parent: The node that it is in; None for the document.
            index: Its key or number in the parent.

        Raises:
            TooMuchYamlError: It is too deep, contains itself, or expands to too much.
        """
        if self.check_event(yaml.AliasEvent):
            line = self.peek_event().start_mark.line + 1  # type: ignore[no-untyped-call]
            node = super().compose_node(parent, index)
            if id(node) not in self._nodes_of:
                raise TooMuchYamlError(f"has a value that contains itself, in line {line}")
            self._count(self._nodes_of[id(node)])
            return node
        self._levels += 1
        if self._levels > MOST_LEVELS:
            raise TooMuchYamlError(f"is nested more than {MOST_LEVELS} levels deep")
        before = self._nodes
        self._count(1)
        node = super().compose_node(parent, index)
        if isinstance(node, yaml.ScalarNode) and node.tag in _NUMBERS and len(node.value) > MOST_DIGITS:
            line = node.start_mark.line + 1
            raise TooMuchYamlError(f"has a number of more than {MOST_DIGITS} characters, in line {line}")
        self._nodes_of[id(node)] = self._nodes - before
        self._levels -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The Python object of a node.

        Args:
            node: The node.
            deep: Whether to build what is in it at once.

        Raises:
            yaml.YAMLError: Its tag does not match its content, for which PyYAML raises an IndexError or a KeyError.
        """
        try:
            return super().construct_object(node, deep)
        except (IndexError, KeyError) as error:
            what = f"this is not a valid {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from error

    def _count(self, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > MOST_NODES:
            raise TooMuchYamlError(f"expands to more than {MOST_NODES:,} keys and values, counting what aliases repeat")
