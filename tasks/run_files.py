"""Reading run files as they are written: a date in one is text."""

import sys
from types import SimpleNamespace
from typing import IO, Any

import yaml

from thriftune.errors import ConfigError

_CLICK_TYPES = "flytekit.interaction.click_types"


class _Loader(yaml.SafeLoader):
    """YAML in which a date is the text that stands there: no key of a run is a date, and a name may look like one."""


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping none of whose keys stands twice: YAML would take the last, without a word."""
    seen: dict[Any, int] = {}
    for key, _ in node.value:
        name, line = getattr(key, "value", None), key.start_mark.line + 1
        if isinstance(name, str) and name in seen and key.tag != "tag:yaml.org,2002:merge":
            raise ConfigError.single(name, f"line {line}", f"stands in line {seen[name]} too.", "Remove one of them.")
        seen[name] = line
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:timestamp", _text)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def load(stream: str | IO[str]) -> Any:
    """Read a run file.

    Args:
        stream: The file, or its text.

    Raises:
        ConfigError: It is no text in UTF-8, or not YAML.
    """
    place = str(getattr(stream, "name", "the run file"))
    try:
        return _Loader(stream).get_single_data()
    except UnicodeDecodeError as error:
        remedy = "Write it in UTF-8; of UTF-16: iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE."
        raise ConfigError.single("--config", place, "is not UTF-8.", remedy) from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError.single("--config", place, f"is not YAML: {error}.", "Repair it there.") from error


def use_in_pyflyte() -> None:
    """Have `pyflyte run` read run files like this, if it is what runs.

    flytekit 1.16 reads YAML and writes it as JSON before anybody else sees it (JsonParamType): a date ends it with
    "Object of type date is not JSON serializable". Remove this when it hands on what it reads as it is.
    """
    click_types = sys.modules.get(_CLICK_TYPES)
    if click_types is not None:
        vars(click_types)["yaml"] = SimpleNamespace(safe_load=load)
