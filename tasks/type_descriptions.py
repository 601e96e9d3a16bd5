"""Describe our types to Flyte: only once, and so that clients without our code can give and read values of them.

flytekit 1.16 makes the JSON schema of a section, and of every section in it, again for each input and output of each
task: 160 times each with pydantic and mashumaro, which takes 1.5 s of every `--help`, registration, pod and worker.

A client that has only the interface (`pyflyte run remote-launchplan`, FlyteRemote with a dict) guesses a Python type
from the schema. The guess fails where a schema says `additionalProperties: false`. Without that it is a dataclass that
requires every key, although a run file leaves most of them out, and that drops unknown keys without a word. So the
schema names the type to take, a dict: it is passed on as it is, and the first task checks it as it checks every run.
"""

import dataclasses
import functools
from typing import Any

from flytekit.core.type_engine import ProtobufTransformer, TypeEngine
from flytekit.models.types import LiteralType
from pydantic import BaseModel

_to_literal_type = TypeEngine.to_literal_type
# flytekit takes the class that a schema names here, before it makes one from the schema. Remove this when what it makes
# has defaults and refuses unknown keys.
_GUESS = {ProtobufTransformer.PB_FIELD_KEY: "builtins.dict"}


@functools.cache
def _described(python_type: Any) -> LiteralType:
    described = _to_literal_type(python_type)
    if described.metadata is None:  # a file or directory, which flytekit describes as such
        return described
    return LiteralType(
        simple=described.simple,
        metadata=_without_closed_objects(described.metadata) | _GUESS,
        structure=described.structure,
        annotation=described.annotation,
    )


def _without_closed_objects(schema: Any) -> Any:
    """A JSON schema that does not say whether an object may have other keys. Our classes refuse them all the same."""
    if isinstance(schema, list):
        return [_without_closed_objects(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: value for key, value in schema.items() if key != "additionalProperties" or not isinstance(value, bool)}
    return {key: _without_closed_objects(value) for key, value in kept.items()}


def _describe(_: type[TypeEngine], python_type: Any) -> LiteralType:
    if isinstance(python_type, type) and (issubclass(python_type, BaseModel) or dataclasses.is_dataclass(python_type)):
        return _described(python_type)
    # A DeepSpeed configuration is JSON. flytekit would have a pickled file for each of its values, and warns.
    # The description of other types may change when more of flytekit's transformers are registered.
    return _to_literal_type(dict if python_type == dict[str, Any] else python_type)


def remember() -> None:
    """Make flytekit describe each section or dataclass in this way, and only once in this process."""
    TypeEngine.to_literal_type = classmethod(_describe)
