"""Make flytekit's description of each of our types only once.

flytekit 1.16 makes the JSON schema of a section, and of every section in it, again for each input and output of each
task: 160 times each with pydantic and mashumaro, which takes 1.5 s of every `--help`, registration, pod and worker.
"""

import dataclasses
import functools
from typing import Any

from flytekit.core.type_engine import TypeEngine
from flytekit.models.types import LiteralType
from pydantic import BaseModel

_described = functools.cache(TypeEngine.to_literal_type)


def _to_literal_type(_: type[TypeEngine], python_type: Any) -> LiteralType:
    is_ours = isinstance(python_type, type) and (
        issubclass(python_type, BaseModel) or dataclasses.is_dataclass(python_type)
    )
    # The description of other types may change when more of flytekit's transformers are registered.
    return _described(python_type) if is_ours else _described.__wrapped__(python_type)


def remember() -> None:
    """Make flytekit describe each section or dataclass only once in this process."""
    TypeEngine.to_literal_type = classmethod(_to_literal_type)
