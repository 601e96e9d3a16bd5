"""What rules need to know about data formats and sources: columns, file endings, and which names are hub ids."""

import os
import re
import string

from thriftune.urls import is_remote, path_of

# Required and optional columns of a source, by format; their meaning is in `thriftune.data.formats`.
COLUMNS = {
    "alpaca": ("instruction", "output"),
    "prompt_completion": ("prompt", "completion"),
    "chat": ("messages",),
    "sharegpt": ("conversations",),
    "text": ("text",),
    "quotes": ("quote", "author"),
    "grammar": ("sentence", "corrections"),
    "labelled": ("text", "label"),
}
OPTIONAL_COLUMNS = {
    "alpaca": ("input", "system", "history"),
    "chat": ("tools", "system"),
    "sharegpt": ("tools", "system"),
}

TABLE = "input:table"  # the table given to the workflow
_HUB_ID = re.compile(r"^[\w.-]+(/[\w.-]+)?$")
# File types, and whether they may be compressed; the code that reads them is in `thriftune.data.readers`.
_KINDS = {".jsonl": True, ".json": True, ".csv": True, ".tsv": True, ".txt": True, ".parquet": False}
_COMPRESSIONS = (".gz", ".zst")
ENDINGS = tuple(
    f"{ending}{compression}"
    for ending, may_be_compressed in _KINDS.items()
    for compression in ("", *_COMPRESSIONS)
    if not compression or may_be_compressed
)
ENDINGS_IN_WORDS = (
    f"{', '.join(ending for ending, may_be in _KINDS.items() if may_be)} (each also "
    f"{' or '.join(_COMPRESSIONS)}) or {', '.join(ending for ending, may_be in _KINDS.items() if not may_be)}"
)


def ending_of(path: str) -> str | None:
    """The ending of a path, glob or URL if it is in `ENDINGS`, else None.

    Args:
        path: The path as the run file has it.
    """
    name = path_of(path).lower().rstrip("*")
    return next((ending for ending in sorted(ENDINGS, key=len, reverse=True) if name.endswith(ending)), None)


def is_file_source(source: str) -> bool:
    """Whether a data source is a path, glob or URL of files, and not a hub id.

    Args:
        source: The source as the run file has it.
    """
    if source == TABLE:
        return False
    if is_remote(source) or source.startswith((".", "/", "~")) or not _HUB_ID.match(source):
        return True
    # Hub ids without an owner have no dot: a name with one is a file of an unknown type, or a missing one.
    is_named_as_file = "/" not in source and "." in source
    return is_named_as_file or ending_of(source) is not None or os.path.exists(source)


def is_hub_source(source: str) -> bool:
    """Whether a data source is the id of a hub dataset.

    Args:
        source: The source as the run file has it.
    """
    return source != TABLE and not is_file_source(source)


def template_fields(template: str) -> tuple[str, ...]:
    """The columns that a template names, in order, without repeats.

    Args:
        template: A text with columns in braces.

    Raises:
        ValueError: It names no column, has a field that is not a plain name, or leaves a brace open.
    """
    fields: dict[str, None] = {}
    for _literal, name, specification, conversion in string.Formatter().parse(template):
        if name is None:
            continue
        if not name or specification or conversion or not name.replace("-", "_").replace(" ", "_").isidentifier():
            raise ValueError(f"the field {{{name}}} is not a column name")
        fields[name] = None
    if not fields:
        raise ValueError("it names no column")
    return tuple(fields)
