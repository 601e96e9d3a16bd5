"""What a cached task is known by, as in Flyte's data catalogue.

Source: flyteorg/flyte, flytepropeller/pkg/controller/nodes/catalog/datacatalog/transformer.go and
flyteplugins/go/tasks/pluginmachinery/catalog/hashing.go.
"""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from flyteidl.core.literals_pb2 import Literal, LiteralMap
from flyteidl.core.tasks_pb2 import TaskTemplate
from google.protobuf.message import Message


class Cache:
    """Outputs of cached tasks, while the control plane lives."""

    def __init__(self) -> None:
        self._outputs: dict[str, LiteralMap] = {}
        self._reserved: dict[str, threading.Lock] = {}

    @contextmanager
    def reserving(self, task: TaskTemplate, inputs: LiteralMap, *, overwrites: bool) -> Iterator[None]:
        """Wait while another node makes the same, if the task says `serialize` and the execution uses the cache.

        Source: flyteorg/flyte, flytepropeller/pkg/controller/nodes/executor.go, handleQueuedOrRunningNode
        """
        if overwrites or not task.metadata.cache_serializable:
            yield
            return
        with self._reserved.setdefault(_key(task, inputs), threading.Lock()):
            yield

    def find(self, task: TaskTemplate, inputs: LiteralMap) -> LiteralMap | None:
        return self._outputs.get(_key(task, inputs))

    def keep(self, task: TaskTemplate, inputs: LiteralMap, outputs: LiteralMap) -> None:
        self._outputs[_key(task, inputs)] = outputs


def _key(task: TaskTemplate, inputs: LiteralMap) -> str:
    """Project, domain, name, cache version, interface and inputs; not the version it was registered as."""
    ignored = task.metadata.cache_ignore_input_vars
    counted = {name: _hashed(literal) for name, literal in inputs.literals.items() if name not in ignored}
    digest = hashlib.sha256()
    for part in (
        task.id.project,
        task.id.domain,
        task.id.name,
        task.metadata.discovery_version.strip(" "),
        task.interface,
        LiteralMap(literals=counted),
    ):
        content = part.SerializeToString(deterministic=True) if isinstance(part, Message) else part.encode()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()


def _hashed(literal: Literal) -> Literal:
    """A literal as it counts: where a task gave a hash with a value, the hash stands for the value."""
    if literal.hash:
        return Literal(hash=literal.hash)
    result = Literal()
    result.CopyFrom(literal)
    kind = literal.WhichOneof("value")
    if kind == "collection":
        del result.collection.literals[:]
        result.collection.literals.extend(_hashed(item) for item in literal.collection.literals)
    elif kind == "map":
        for key, item in literal.map.literals.items():
            result.map.literals[key].CopyFrom(_hashed(item))
    return result
