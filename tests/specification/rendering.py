"""Types, values and bindings of flyteidl as a person reads them."""

import hashlib
import json
from typing import Any

import msgpack
from flyteidl.core.interface_pb2 import TypedInterface, VariableMap
from flyteidl.core.literals_pb2 import BindingData, Literal, Primitive, Scalar
from flyteidl.core.types_pb2 import INTEGER, NONE, STRUCT, BlobType, LiteralType, SimpleType
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict

_SIMPLE = {INTEGER: "int", NONE: "none"}
# Of a type that was folded into its name.
Schemas = dict[str, dict[str, Any]]


def interface(typed: TypedInterface, schemas: Schemas) -> dict[str, dict[str, str]]:
    """Inputs and outputs, each with its type; types with a schema are added to `schemas`."""
    return {"inputs": variables(typed.inputs, schemas), "outputs": variables(typed.outputs, schemas)}


def variables(mapping: VariableMap, schemas: Schemas) -> dict[str, str]:
    """Names and types."""
    return {name: type_name(mapping.variables[name].type, schemas) for name in sorted(mapping.variables)}


def type_name(kind: LiteralType, schemas: Schemas | None = None) -> str:
    """A type in one or two words."""
    which = kind.WhichOneof("type")
    if which == "collection_type":
        return f"list[{type_name(kind.collection_type, schemas)}]"
    if which == "map_value_type":
        return f"dict[str, {type_name(kind.map_value_type, schemas)}]"
    if which == "union_type":
        return " | ".join(type_name(variant, schemas) for variant in kind.union_type.variants)
    if which == "simple" and kind.simple == STRUCT and kind.metadata:
        return _folded(MessageToDict(kind.metadata), schemas)
    return _plain(kind)


def _plain(kind: LiteralType) -> str:
    which = kind.WhichOneof("type")
    if which == "blob":
        return "directory" if kind.blob.dimensionality == BlobType.MULTIPART else "file"
    if which == "structured_dataset_type":
        return "table"
    assert which == "simple", f"a type of kind {which}"
    return _SIMPLE.get(kind.simple, SimpleType.Name(kind.simple).lower())


def _folded(schema: dict[str, Any], schemas: Schemas | None) -> str:
    """The name of a type with a JSON schema. Descriptions change nothing of what a task is, and are left out."""
    plain = _without_texts(schema)
    name = str(schema.get("title") or schema.get("$ref", "dict").rpartition("/")[2])
    own = schema.get("$defs", schema.get("definitions", {})).get(name, schema)
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]
    entry = {"fields": sorted(own.get("properties", {})), "digest": digest}
    if schemas is not None:
        assert schemas.setdefault(name, entry) == entry, f"two types are called {name}"
    return name


def _without_texts(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_without_texts(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    texts = [key for key in ("title", "description") if isinstance(schema.get(key), str)]
    return {key: _without_texts(value) for key, value in schema.items() if key not in texts}


def binding(data: BindingData, kind: LiteralType) -> Any:
    """What an input of a node comes from. Whole objects are folded into the name of their type."""
    which = data.WhichOneof("value")
    if which == "promise":
        steps = [str(getattr(step, step.WhichOneof("value"))) for step in data.promise.attr_path]
        return ".".join([data.promise.node_id or "inputs", data.promise.var, *steps])
    if which == "collection":
        return [binding(item, kind.collection_type) for item in data.collection.bindings]
    if which == "map":
        return {key: binding(item, kind.map_value_type) for key, item in sorted(data.map.bindings.items())}
    content = _scalar(data.scalar)
    return f"<{type_name(kind)}>" if isinstance(content, dict) else content


def literal(content: Literal) -> Any:
    """A value without what it leaves empty."""
    return pruned(value(content))


def value(content: Literal) -> Any:
    """A value, whole."""
    which = content.WhichOneof("value")
    if which == "collection":
        return [value(item) for item in content.collection.literals]
    if which == "map":
        return {key: value(item) for key, item in sorted(content.map.literals.items())}
    return _scalar(content.scalar) if which == "scalar" else None


def duration(limit: Duration) -> str:
    """Hours, or `none`."""
    return f"{limit.ToTimedelta().total_seconds() / 3600:g} h" if limit.ToNanoseconds() else "none"


def pruned(content: Any) -> Any:
    """Without entries that are empty. False and 0 are not."""
    if isinstance(content, dict):
        return {key: pruned(item) for key, item in sorted(content.items()) if item not in (None, "", [], {})}
    return [pruned(item) for item in content] if isinstance(content, list) else content


def _scalar(scalar: Scalar) -> Any:
    which = scalar.WhichOneof("value")
    if which == "primitive":
        return _primitive(scalar.primitive)
    if which == "union":
        return value(scalar.union.value)
    if which == "binary":
        return msgpack.unpackb(scalar.binary.value, strict_map_key=False)
    if which == "blob":
        return scalar.blob.uri
    if which == "generic":
        return MessageToDict(scalar.generic)
    assert which in (None, "none_type"), f"a value of kind {which}"
    return None


def _primitive(primitive: Primitive) -> Any:
    which = primitive.WhichOneof("value")
    content = getattr(primitive, which)
    return duration(content) if which == "duration" else content
