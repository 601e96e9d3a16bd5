"""Pod templates, made by factories: each call returns a new object, because flytekit changes the ones it is given."""

from pod_templates.shared_memory import with_shared_memory

__all__ = ["with_shared_memory"]
