"""YAML that a person wrote, read with an end to its size, its depth, and what its aliases stand for.

A few lines of aliases of aliases stand for more than any memory holds: PyYAML reads them in no time, as the same object
many times, and whoever copies or writes what it gives never ends.
"""

from typing import IO, Any

import yaml

# Characters of a file. Run files have 2,000 to 50,000.
MOST_CHARACTERS = 1 << 20
# Levels of mappings and lists in each other. Run files have 5.
MOST_LEVELS = 32
# Keys and values, with those that aliases stand for counted each time. Run files have 100, catalogues 2,000.
MOST_NODES = 20_000
# Characters of a number. PyYAML reads 1:30:59 as sixtieths, and a megabyte of them for minutes.
MOST_DIGITS = 100

_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class TooMuchYamlError(ValueError):
    """YAML over a limit; the message says which."""


class BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which stops at the limits while it reads."""

    def __init__(self, stream: str | bytes | IO[str]) -> None:
        """Read a text no further than it may be long.

        Args:
            stream: The text, or a file that it is read from.

        Raises:
            TooMuchYamlError: It is longer.
        """
        text = stream if isinstance(stream, str | bytes) else stream.read(MOST_CHARACTERS + 1)
        if len(text) > MOST_CHARACTERS:
            raise TooMuchYamlError(f"has more than {MOST_CHARACTERS:,} characters")
        super().__init__(text)
        self.name = str(getattr(stream, "name", self.name))
        self._levels = self._nodes = 0
        self._nodes_of: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, and count it with everything in it.

        Raises:
            TooMuchYamlError: It is too deep, contains itself, or stands for too much.
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
        """What a node stands for.

        Raises:
            yaml.YAMLError: It is tagged as what it is not, which PyYAML ends with an IndexError or a KeyError.
        """
        try:
            return super().construct_object(node, deep)
        except (IndexError, KeyError) as error:
            what = f"this is no {node.tag.rpartition(':')[2]}"
            raise yaml.constructor.ConstructorError(None, None, what, node.start_mark) from error

    def _count(self, nodes: int) -> None:
        self._nodes += nodes
        if self._nodes > MOST_NODES:
            raise TooMuchYamlError(f"stands for more than {MOST_NODES:,} keys and values, what aliases repeat included")
