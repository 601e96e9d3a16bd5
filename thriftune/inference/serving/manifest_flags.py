"""The command line's `--manifest`: what a cluster needs to serve the same, as YAML on standard output."""

import argparse
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from pathlib import Path

from thriftune.config import HardwareConfig
from thriftune.config.benchmark_run import BASE
from thriftune.errors import ConfigError, UserError
from thriftune.inference.serving.cluster import ClusterOptions, manifests_of
from thriftune.inference.serving.limits import Limits
from thriftune.planning import catalogue
from thriftune.planning.serving import Bits

_USUAL_BITS: Bits = 16
_PLANNED = ("max_batch", "max_prompt_tokens", "max_tokens", "drain_seconds")
# What a person types, by the field of an error of the planner or of the manifests.
_FLAGS = {
    "tokens": "--max-prompt-tokens and --max-tokens together",
    "sequences": "--max-batch",
    "answer_tokens": "--max-tokens",
    "hardware.device": "--device",
    "hardware.instance": "--instance",
    "drain_seconds": "--drain-seconds",
    "service_account": "--service-account",
    **{name: f"--{name}" for name in ("adapters", "bits", "files", "image", "name", "replicas", "secret")},
}


def text_of(given: argparse.Namespace, adapters: Mapping[str, Path], limits: Limits) -> str:
    """The manifests for a command line.

    Args:
        given: The command line.
        adapters: Its adapters by name.
        limits: Its limits: memory is planned for as many answers of that length.

    Returns:
        YAML.

    Raises:
        UserError: No node holds it, or something in the manifests cannot be.
    """
    if not given.files:
        message = "is where the pods find the model, and --manifest needs it."
        raise ConfigError.single("--files", "", message, "Name claim:NAME, or the URL of a folder like s3://...")
    if given.bits == 32:
        raise ConfigError.single("--bits", given.bits, "is not planned for a cluster.", "Use 4, 8 or 16.")
    folders = _folders_of(given.folders, adapters)
    options = ClusterOptions(
        files=given.files,
        base=folders.pop(BASE, BASE),
        folders=folders,
        engine=given.engine,
        bits=_USUAL_BITS if given.bits is None else given.bits,
        sequences=limits.max_batch,
        tokens=limits.max_prompt_tokens + limits.max_tokens,
        answer_tokens=limits.max_tokens,
        hardware=HardwareConfig(device=given.device, instance=given.instance),
        name=given.name,
        image=given.image,
        secret=given.secret,
        replicas=given.replicas,
        service_account=given.service_account,
        drain_seconds=math.ceil(limits.drain_seconds),
        limits={f"--{name.replace('_', '-')}": getattr(limits, name) for name in _others(limits)},
    )
    try:
        return manifests_of(given.base.expanduser(), adapters, options, catalogue.load())
    except UserError as error:
        problems = [replace(problem, field=_flag_of(problem.field)) for problem in error.problems]
        raise type(error)(problems) from error


def _flag_of(field: str) -> str:
    """What a person types for a field of the planner or of the manifests.

    Args:
        field: The field, such as `tokens` or `adapters.legal`.
    """
    name, _, of = field.partition(".")
    return _FLAGS.get(field) or (f"--{name} {of}" if name in ("adapters", "folders") else field)


def _others(limits: Limits) -> Iterator[str]:
    """Names of the limits that memory and pods are not planned by, where they are not the usual ones."""
    for limit in fields(Limits):
        if limit.name not in _PLANNED and getattr(limits, limit.name) != limit.default:
            yield limit.name


def _folders_of(given: list[str], adapters: Mapping[str, Path]) -> dict[str, str]:
    """Folders within `--files`, by the name of what is in them.

    Args:
        given: NAME=PATH each.
        adapters: The adapters by name.

    Raises:
        ConfigError: One is not of that form, of no such name, or there twice.
    """
    found = {}
    for entry in given:
        name, equals, place = entry.partition("=")
        if not equals or not place or name not in {BASE, *adapters}:
            remedy = f"The names are {', '.join([BASE, *adapters])}."
            raise ConfigError.single("--folders", entry, "is not NAME=PATH of what is served.", remedy)
        if name in found:
            raise ConfigError.single("--folders", entry, f"is a second folder of {name}.", "Give one for each name.")
        found[name] = place
    return found
