"""Tasks of lm-evaluation-harness: what a name stands for, and what cannot be measured."""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml

from thriftune.config.benchmarks import GENERAL_MINI, HELD_OUT, BenchmarkTask
from thriftune.errors import ConfigError, DataError, in_a_line

if TYPE_CHECKING:
    from lm_eval.tasks._index import Entry

UNKNOWN = "benchmark-unknown"
_CLOSE = 4  # names that a message suggests
REMEDY = "Name another task, or write your items as a .jsonl file with a format of thriftune."


@dataclass(frozen=True)
class Leaf:
    """One task of the harness, as a name or a group of names stands for it.

    Attributes:
        name: Its name in the harness.
        file: Its YAML file.
        overrides: What the group that it is a part of sets otherwise.
    """

    name: str
    file: Path
    overrides: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


def shipped() -> Path:
    """The directory of the tasks that the harness ships."""
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent


@cache
def registry() -> "Mapping[str, Entry]":
    """Every task, group and tag that the harness ships; reading them takes seconds."""
    from lm_eval.tasks._index import TaskIndex

    found: Mapping[str, Entry] = TaskIndex.build([shipped()])
    return found


def is_shipped(name: str) -> bool:
    """Whether the harness has a task, group or tag of a name; much faster than reading all of them.

    Args:
        name: Any name.
    """
    named = re.compile(rf"^(?:task|group|tag):\s*[\"']?{re.escape(name)}[\"']?\s*$".encode(), re.MULTILINE)
    return any(named.search(file.read_bytes()) for file in shipped().rglob("*.yaml"))


def leaves_of(task: BenchmarkTask, field_name: str, brought: Path | None = None, *, trust: bool = False) -> list[Leaf]:
    """The harness's tasks that a benchmark stands for.

    Args:
        task: The benchmark: a name of the harness, or a YAML file.
        field_name: Its key in the run file.
        brought: The YAML file on this disk.
        trust: Whether a YAML file of a person's own may run Python code.

    Raises:
        ConfigError: There is no such task, or it cannot be measured here.
    """
    if task.file is not None:
        assert brought is not None
        return [_leaf_of_file(brought, task.file, f"{field_name}.file", trust=trust)]
    if task.name not in registry():
        raise unknown(task.name, field_name)
    leaves = list(_expanded(task.name, {}, field_name, set()))
    if not leaves:
        raise ConfigError.single(field_name, task.name, "is a group without any task.", REMEDY, code=UNKNOWN)
    return leaves


def unknown(name: str, field_name: str) -> ConfigError:
    """The error for a name that no benchmark has, with the names close to it.

    Args:
        name: The name.
        field_name: Its key in the run file.
    """
    known = [GENERAL_MINI, HELD_OUT, *registry()]
    plain = {each.replace("-", "_").lower(): each for each in known}
    folded = name.replace("-", "_").lower()
    close = [plain[folded]] if folded in plain else [plain[n] for n in difflib.get_close_matches(folded, plain, _CLOSE)]
    meant = f"Did you mean {', '.join(close)}?" if close else "`lm_eval ls tasks` prints their names."
    message = "is no benchmark of thriftune, and no task of lm-evaluation-harness."
    return ConfigError.single(field_name, name, message, f"{meant} A file of your own needs `file`.", code=UNKNOWN)


def _expanded(name: str, overrides: Mapping[str, Any], field_name: str, above: set[str]) -> Iterator[Leaf]:
    """The tasks behind a name of the harness, as its own factory expands groups and tags."""
    from lm_eval.tasks._index import Kind

    entry = registry()[name]
    if entry.kind is Kind.PY_TASK:
        raise _refused(field_name, name, "is written in Python, and its data cannot be kept beside it")
    if entry.kind is Kind.TAG:
        for member in sorted(entry.tags):
            yield from _expanded(member, overrides, field_name, above)
    elif entry.kind is Kind.GROUP and name not in above:
        yield from _members(entry.cfg or {}, overrides, field_name, above | {name})
    elif entry.kind is Kind.TASK and entry.yaml_path is not None:
        yield Leaf(name, entry.yaml_path, MappingProxyType(dict(overrides)))


def _members(
    group: Mapping[str, Any], overrides: Mapping[str, Any], field_name: str, above: set[str]
) -> Iterator[Leaf]:
    from lm_eval.tasks._factory import GROUP_FIELD_NAMES

    inherited = {**{k: v for k, v in group.items() if k not in GROUP_FIELD_NAMES}, **overrides}
    listed = group.get("task") or ()
    for member in [listed] if isinstance(listed, str) else listed:
        own = {} if isinstance(member, str) else {k: v for k, v in member.items() if k not in ("task", "group")}
        name = member if isinstance(member, str) else member.get("group") or member.get("task")
        if isinstance(name, str) and name in registry():
            yield from _expanded(name, {**inherited, **own}, field_name, above)
        elif isinstance(member, Mapping) and "group" in member:
            yield from _members(member, inherited, field_name, above)
        else:
            raise _refused(field_name, str(name), "is defined inside its group, and has no file of its own")


def _leaf_of_file(file: Path, shown: str, field_name: str, *, trust: bool) -> Leaf:
    """A person's own YAML file, and everything it includes."""
    try:
        for each in files_of(file):
            if each.parent != file.resolve().parent:
                message = f"includes {each.name} of another folder, and only its own is kept."
                raise DataError.single(field_name, shown, message, "Put both into one folder.")
            if not trust and _runs_code(each):
                message = f"{each.name} names Python code (!function)."
                remedy = "Set model.trust_remote_code: true if you trust it, or write the task without."
                raise ConfigError.single(field_name, shown, message, remedy, code=UNKNOWN)
        config = _loaded(file, resolve=False)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError.single(field_name, shown, f"cannot be read: {in_a_line(error)}.", "Repair the file.") from error
    if not isinstance(config.get("task"), str) or "class" in config:
        message = "is no task of lm-evaluation-harness: it has no `task`, or a class in Python."
        raise DataError.single(field_name, shown, message, "Write `task: NAME`, and the keys of a task.")
    return Leaf(str(config["task"]), file)


def files_of(file: Path) -> list[Path]:
    """A YAML file of a person's own and the files that it includes.

    Args:
        file: The file.

    Raises:
        OSError: One of them cannot be read.
    """
    found: list[Path] = []
    pending = [file.resolve()]
    while pending:
        each = pending.pop()
        if each not in found:
            found.append(each)
            content = yaml.load(each.read_text(encoding="utf-8"), Loader=_WithoutCode)  # noqa: S506, a safe loader
            listed = content.get("include", ()) if isinstance(content, dict) else ()
            pending += [(each.parent / name).resolve() for name in ([listed] if isinstance(listed, str) else listed)]
    return found


class _WithoutCode(yaml.SafeLoader):
    """Reads `!function` as text."""


_WithoutCode.add_constructor("!function", lambda _loader, node: str(node.value))


def _runs_code(file: Path) -> bool:
    events = yaml.parse(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    return any(getattr(event, "tag", None) == "!function" for event in events)


def _loaded(file: Path, *, resolve: bool) -> dict[str, Any]:
    from lm_eval.tasks._yaml_loader import load_yaml

    return dict(load_yaml(file, resolve_func=resolve))


def config_of(leaf: Leaf, few_shot: int, field_name: str) -> dict[str, Any]:
    """The configuration of a task, with its functions.

    Args:
        leaf: The task.
        few_shot: Solved examples before each question.
        field_name: The benchmark's key in the run file.

    Raises:
        ConfigError: It cannot be measured here; says why.
    """
    plain = {**_loaded(leaf.file, resolve=False), **leaf.overrides}
    if reason := _reason(plain):  # before its modules are loaded: some fetch code from the hub
        raise _refused(field_name, leaf.name, f"cannot be measured here: {reason}")
    try:
        config = {**_loaded(leaf.file, resolve=True), **leaf.overrides, "task": leaf.name}
    except Exception as error:  # its functions come from modules, which are programs
        raise _refused(field_name, leaf.name, f"cannot be loaded ({in_a_line(error)})") from error
    if config.get("num_fewshot") == 0 and few_shot:
        message = "is made to be asked without examples: it sets num_fewshot to 0."
        raise ConfigError.single(f"{field_name}.few_shot", few_shot, f"{leaf.name} {message}", "Leave few_shot out.")
    return {**config, "num_fewshot": few_shot}


def _reason(config: Mapping[str, Any]) -> str:
    """Why a task cannot be measured here; empty if it can."""
    reasons = {
        "its data come from Python code (custom_dataset)": config.get("custom_dataset"),
        "it runs the code that a model writes (unsafe_code)": config.get("unsafe_code"),
        "it needs images or sound": config.get("doc_to_image") or config.get("doc_to_audio"),
        "it names no dataset": not config.get("dataset_path"),
        "its metrics are of a whole set of texts": config.get("output_type") == "loglikelihood_rolling",
        "it loads metrics from the hub (hf_evaluate)": any(
            isinstance(metric, dict) and metric.get("hf_evaluate") for metric in config.get("metric_list") or ()
        ),
    }
    return next((text for text, holds in reasons.items() if holds), "")


def _refused(field_name: str, name: str, reason: str) -> ConfigError:
    return ConfigError.single(field_name, name, f"{reason}.", REMEDY, code=UNKNOWN)
