"""Promises made values, by the rules of Flyte's engine."""

import random
from collections.abc import Iterable, Mapping

import msgpack
from flyteidl.core.literals_pb2 import Binary, Binding, BindingData, Literal, LiteralMap, Scalar
from flyteidl.core.types_pb2 import PromiseAttribute

Values = Mapping[str, LiteralMap]
INPUTS = ""  # the node id under which a promise means an input of the workflow


def resolve(bindings: Iterable[Binding], values: Values) -> LiteralMap:
    """The values of bindings.

    Args:
        bindings: Of a node's inputs or a workflow's outputs.
        values: What each node that ran put out, and under INPUTS the workflow's inputs.
    """
    return LiteralMap(literals={binding.var: _literal(binding.binding, values) for binding in bindings})


def promised(bindings: Iterable[Binding]) -> set[str]:
    """The nodes whose outputs bindings need."""
    return {node for binding in bindings for node in _nodes(binding.binding)} - {INPUTS}


def _literal(data: BindingData, values: Values) -> Literal:
    kind = data.WhichOneof("value")
    if kind == "scalar":
        return Literal(scalar=data.scalar)
    if kind == "promise":
        literal = values[data.promise.node_id].literals[data.promise.var]
        return _attribute(literal, list(data.promise.attr_path))
    result = Literal()
    if kind == "collection":
        result.collection.SetInParent()
        result.collection.literals.extend(_literal(item, values) for item in data.collection.bindings)
    elif kind == "map":
        result.map.SetInParent()
        for key, item in data.map.bindings.items():
            result.map.literals[key].CopyFrom(_literal(item, values))
    else:
        raise NotImplementedError(f"a binding of kind {kind}")
    return result


def _nodes(data: BindingData) -> set[str]:
    kind = data.WhichOneof("value")
    if kind == "promise":
        return {data.promise.node_id}
    items = {"collection": list(data.collection.bindings), "map": list(data.map.bindings.values())}.get(kind or "", [])
    return {node for item in items for node in _nodes(item)}


def _attribute(literal: Literal, path: list[PromiseAttribute]) -> Literal:
    """`promise.a.b`, or an item of a list or dictionary.

    Source: flyteorg/flyte, flytepropeller/pkg/controller/nodes/attr_path_resolver.go.
    """
    while path and literal.WhichOneof("value") in ("map", "collection"):
        key = _step(path.pop(0))
        literal = literal.map.literals[key] if isinstance(key, str) else literal.collection.literals[key]
    if not path:
        return literal
    binary = literal.scalar.binary
    assert binary.tag == "msgpack", f"attributes of a {literal.scalar.WhichOneof('value')}"
    value = msgpack.unpackb(binary.value, strict_map_key=False)
    for step in path:
        value = value[_step(step)]
    return Literal(scalar=Scalar(binary=Binary(value=msgpack.packb(_shuffled(value)), tag="msgpack")))


def _step(attribute: PromiseAttribute) -> str | int:
    return attribute.string_value if attribute.WhichOneof("value") == "string_value" else attribute.int_value


def _shuffled(value: object) -> object:
    """A value with its keys in another order each time, as Go's maps have it when the engine writes an attribute.

    So a task that is cached by an attribute which is a mapping is hardly ever found in the cache: flyteorg/flyte#6517.
    """
    if isinstance(value, dict):
        items = [(key, _shuffled(item)) for key, item in value.items()]
        random.shuffle(items)
        return dict(items)
    return [_shuffled(item) for item in value] if isinstance(value, list) else value
