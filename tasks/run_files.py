"""Read run files: a date in one is text, duplicate keys are errors, and its expanded size is limited.

`pyflyte run` reads them with this module, and says what is wrong with one in our words and nothing else.
"""

import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, get_args, get_origin

import yaml

from thriftune.bounded_yaml import BoundedLoader, TooMuchYamlError
from thriftune.errors import ConfigError, Problem, UserError
from thriftune.limits import TOO_DEEP, is_too_deep
from thriftune.urls import is_remote

_CLICK_TYPES = "flytekit.interaction.click_types"
_COMMANDS = "flytekit.clis.sdk_in_container"
# What programs exit with that were called wrongly, also click's.
USAGE = 2
_REMEDY = "Write out the values of one run; configs/ has examples."
_LIST_REMEDY = """Write a JSON list such as '["..."]', or name a file with one."""
_LONGEST_SHOWN = 80


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
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        message = f"is not YAML{line}: {error.problem or error.context}."
        raise ConfigError.single("--config", place, message, "Repair it there.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError.single("--config", place, f"is not YAML: {error}.", "Repair it there.") from error


def _load_inputs(text: str) -> Any:
    """Read the file of `--inputs-file`, which pyflyte reads as JSON if this fails."""
    try:
        return BoundedLoader(text).get_single_data()
    except TooMuchYamlError as error:
        raise ConfigError.single("--inputs-file", "", f"{error}.", _REMEDY) from error


def read(given: str, option: str, *, is_list: bool = False) -> Any:
    """Read what a person gave to an option: a file, or JSON.

    Args:
        given: Path of a YAML or JSON file, or the JSON itself.
        option: The option, as it is typed.
        is_list: Whether the option takes a list.

    Raises:
        ConfigError: It is neither, cannot be read, or is a single value.
    """
    if _is_readable(given):
        try:
            with open(given, encoding="utf-8") as stream:
                is_yaml = given.endswith((".yaml", ".yml"))
                content = load(stream) if is_yaml else _from_json(stream.read(), option, given)
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
            remedy = "Name a text file that you may read."
            raise ConfigError.single(option, given, f"cannot be read: {why}.", remedy) from error
    elif given.lstrip().startswith(("{", "[")):
        content = _from_json(given, option, f"{given[:_LONGEST_SHOWN]}...")
    elif is_list:
        raise ConfigError.single(option, given[:_LONGEST_SHOWN], "is no JSON list, and no file.", _LIST_REMEDY)
    else:
        raise ConfigError.single(option, given, "is not a file.", "Check the path; it begins in the present folder.")
    if isinstance(content, dict | list):
        return content
    has_no = "items" if is_list else "keys"
    message = "is empty." if content is None else f"has no {has_no}; all of it is {str(content)[:_LONGEST_SHOWN]!r}."
    raise ConfigError.single(option, given, message, _LIST_REMEDY if is_list else _REMEDY)


def _is_readable(given: str) -> bool:
    """Whether it is a file, or a pipe: bash gives a command's output, `<(jq ...)`, as one."""
    return os.path.exists(given) and not Path(given).is_dir()


def _from_json(text: str, option: str, place: str) -> Any:
    try:
        value = json.loads(text)
    except RecursionError:
        value = None
    except ValueError as error:
        remedy = "Repair it there; a file with YAML is called .yaml or .yml."
        raise ConfigError.single(option, place, f"is not JSON: {error}.", remedy) from error
    else:
        if not is_too_deep(value):  # it could not be copied or compared
            return value
    raise ConfigError.single(option, place, f"is {TOO_DEEP}.", _REMEDY)


def use_in_pyflyte() -> None:
    """Make `pyflyte run` read run files with this module, if it is the running program, and refuse wrong ones shortly.

    flytekit 1.16 reads YAML and converts it to JSON before any other code sees it (JsonParamType): a date makes it fail
    with "Object of type date is not JSON serializable", and aliases of aliases fill the memory. Of an error it prints
    the lines of the library that raised it. Remove this when flytekit passes on what it reads unchanged, has limits,
    and prints no source of what a user did wrong.
    """
    click_types, run, utils = (
        sys.modules.get(name) for name in (_CLICK_TYPES, f"{_COMMANDS}.run", f"{_COMMANDS}.utils")
    )
    if click_types is not None and not hasattr(click_types.JsonParamType.convert, "__wrapped__"):
        click_types.JsonParamType.convert = _converting(click_types.JsonParamType.convert)
    if click_types is not None and not hasattr(click_types.UnionParamType.convert, "__wrapped__"):
        click_types.UnionParamType.convert = _choosing(click_types.UnionParamType.convert)
    if run is not None:
        vars(run)["yaml"] = SimpleNamespace(safe_load=_load_inputs, YAMLError=yaml.YAMLError)
    if utils is not None and not hasattr(utils.pretty_print_exception, "__wrapped__"):
        vars(utils)["pretty_print_exception"] = _printing(utils.pretty_print_exception)


def _converting(convert: Callable[..., Any]) -> Callable[..., Any]:
    """The conversion of an option to a section, a list or a mapping, with our reading."""

    @functools.wraps(convert)
    def converted(kind: Any, value: Any, param: Any, ctx: Any) -> Any:
        if not isinstance(value, str):
            return convert(kind, value, param, ctx)
        try:
            is_list = get_origin(kind._python_type) is list  # noqa: SLF001
            option = f"--{param.name}" if param else "--config"
            content = read(value, option, is_list=is_list)
            if is_list and any("FlyteDirectory" in str(item) for item in get_args(kind._python_type)):  # noqa: SLF001
                _require_places(option, content, is_folder=True)
            return convert(kind, content, param, ctx)
        except ConfigError as error:
            if _is_readable(value) and value not in str(error):
                error.add_note(f"The file is {value}.")
            raise

    return converted


def _choosing(convert: Callable[..., Any]) -> Callable[..., Any]:
    """The conversion of an option that may be left out.

    Of a path that there is not, flytekit makes a text, and fails at that with the lines of its source.
    """

    @functools.wraps(convert)
    def converted(kind: Any, value: Any, param: Any, ctx: Any) -> Any:
        kinds = {type(one).__name__ for one in kind._types}  # noqa: SLF001
        if isinstance(value, str) and kinds & {"FileParamType", "DirParamType"}:
            _require_places(f"--{param.name}", [value], is_folder="DirParamType" in kinds)
        return convert(kind, value, param, ctx)

    return converted


def _require_places(option: str, places: list[Any], *, is_folder: bool) -> None:
    """Refuse paths of this machine that lead to nothing, or to a file in place of a folder or the other way.

    Args:
        option: The option, as it is typed.
        places: Paths or URLs.
        is_folder: Whether each is to be a folder, and not a file.

    Raises:
        ConfigError: Names each.
    """
    problems = []
    for place in places:
        if not isinstance(place, str) or is_remote(place):
            continue
        if not Path(place).exists():
            remedy = "Check the path; it begins in the present folder."
            problems.append(Problem(option, place, "does not exist.", remedy))
        elif Path(place).is_dir() != is_folder:
            wanted = "a folder" if is_folder else "a file"
            problems.append(Problem(option, place, f"is not {wanted}.", f"Name {wanted}."))
    if problems:
        raise ConfigError(problems)


def _printing(print_error: Callable[..., None]) -> Callable[..., None]:
    """What pyflyte does about an error: of one that says what to do, it prints nothing else, unless asked with -v."""

    @functools.wraps(print_error)
    def printed(error: Exception, verbosity: int = 1) -> None:
        if not isinstance(error, UserError):
            print_error(error, verbosity)
            return
        if verbosity:
            print_error(error, verbosity)
        else:
            notes = getattr(error, "__notes__", ())
            sys.stderr.write("\n".join([f"{type(error).__name__}: {error}", *notes, ""]))
        sys.exit(USAGE)

    return printed
