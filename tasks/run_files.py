"""Read run files: a date in one is text, duplicate keys are errors, and its expanded size is limited."""

import json
import sys
from types import SimpleNamespace
from typing import IO, Any

import yaml

from thriftune.bounded_yaml import BoundedLoader, TooMuchYamlError
from thriftune.errors import ConfigError
from thriftune.limits import TOO_DEEP, is_too_deep

_CLICK_TYPES = "flytekit.interaction.click_types"
_RUN = "flytekit.clis.sdk_in_container.run"
_REMEDY = "Write out the values of one run; configs/ has examples."


class _Loader(BoundedLoader):
    """YAML in which a date is plain text: no key of a run is a date, and a name may look like one."""


def _text(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping without duplicate keys, of which YAML would silently take the last."""
    seen: dict[Any, int] = {}
    for key, _ in node.value:
        name, line = getattr(key, "value", None), key.start_mark.line + 1
        if isinstance(name, str) and name in seen and key.tag != "tag:yaml.org,2002:merge":
            raise ConfigError.single(name, f"line {line}", f"is in line {seen[name]} too.", "Remove one of them.")
        seen[name] = line
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:timestamp", _text)
_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)


def load(stream: str | IO[str]) -> Any:
    """Read a run file.

    Args:
        stream: The file, or its text.

    Raises:
        ConfigError: It is not UTF-8, not YAML, or expands to more than a run can hold.
    """
    place = str(getattr(stream, "name", "the run file"))
    try:
        return _Loader(stream).get_single_data()
    except UnicodeDecodeError as error:
        remedy = "Write it in UTF-8; from UTF-16: iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE."
        raise ConfigError.single("--config", place, "is not UTF-8.", remedy) from error
    except TooMuchYamlError as error:
        raise ConfigError.single("--config", place, f"{error}.", _REMEDY) from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError.single("--config", place, f"is not YAML: {error}.", "Repair it there.") from error


def _load_inputs(text: str) -> Any:
    """Read the file of `--inputs-file`, which pyflyte reads as JSON if this fails."""
    try:
        return BoundedLoader(text).get_single_data()
    except TooMuchYamlError as error:
        raise ConfigError.single("--inputs-file", "", f"{error}.", _REMEDY) from error


def _load_json(text: str) -> Any:
    """Read JSON that was given instead of a run file.

    Args:
        text: The JSON.

    Raises:
        ConfigError: It is nested too deep to be copied or compared.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        value = None
    else:
        if not is_too_deep(value):
            return value
    raise ConfigError.single("--config", f"{text[:40]}...", f"is {TOO_DEEP}.", _REMEDY)


def use_in_pyflyte() -> None:
    """Make `pyflyte run` read run files with this module, if it is the running program.

    flytekit 1.16 reads YAML and converts it to JSON before any other code sees it (JsonParamType): a date makes it fail
    with "Object of type date is not JSON serializable", and aliases of aliases fill the memory. Remove this when
    flytekit passes on what it reads unchanged, and has limits.
    """
    click_types, run = sys.modules.get(_CLICK_TYPES), sys.modules.get(_RUN)
    if click_types is not None:
        read_json = {"loads": _load_json, "load": lambda stream: _load_json(stream.read())}
        vars(click_types)["yaml"] = SimpleNamespace(safe_load=load)
        vars(click_types)["json"] = SimpleNamespace(**{**vars(json), **read_json})
    if run is not None:
        vars(run)["yaml"] = SimpleNamespace(safe_load=_load_inputs, YAMLError=yaml.YAMLError)
