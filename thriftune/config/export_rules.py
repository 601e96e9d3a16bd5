"""Rules over several fields about exports."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from thriftune.config.choices import METHODS
from thriftune.errors import Problem

if TYPE_CHECKING:
    from thriftune.config.schema import RunConfig

FORMATS = "export.formats"


def check(config: "RunConfig") -> Iterator[Problem]:
    """Every problem of the section `export` that the file alone shows."""
    if config.export is None:
        return
    yield from repeated(config.export.formats)
    facts = METHODS[config.method]
    if not facts.trains_weights and not config.merges:
        able = "its adapter is not merged" if facts.merges else f"what {config.method} trains cannot be merged"
        remedy = "Remove lora.merge: false." if facts.merges else "Use method lora or qlora, or remove export."
        yield Problem("export", "given", f"needs a model, and this run makes an adapter: {able}.", remedy)
    if config.labels:
        message = "are compared by the tokens that a model writes, and a classifier writes none."
        yield Problem(FORMATS, ", ".join(config.export.formats), message, "Remove export.")


def repeated(formats: tuple[str, ...], field: str = FORMATS) -> Iterator[Problem]:
    """Refuse a format that is named twice.

    Args:
        formats: The formats.
        field: The key or argument that names them.

    Yields:
        The problem, if there is one.
    """
    twice = sorted({name for name in formats if formats.count(name) > 1})
    if twice:
        yield Problem(field, ", ".join(twice), "is named twice.", "Name every format once.")
