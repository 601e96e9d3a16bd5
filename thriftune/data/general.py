"""General questions that ship with the package: what a model may forget while it learns a task.

They are measured where no hub is reached, so they are part of the package. `scripts/general_check.py` checks them.
"""

import hashlib
import json
from functools import cache
from pathlib import Path

from thriftune.data.items import Item

_FILE = Path(__file__).with_name("general_mini.jsonl")


@cache
def general_items() -> tuple[Item, ...]:
    """The items of general-mini, in the order of the file: each with four choices, one of them right."""
    lines = map(json.loads, _FILE.read_text(encoding="utf-8").splitlines())
    return tuple(
        Item(
            id=line["id"],
            question=line["question"],
            choices=tuple(line["choices"]),
            answer=line["answer"],
            accepted=(line["choices"][line["answer"]],),
            group=line["group"],
        )
        for line in lines
    )


@cache
def general_digest() -> str:
    """A SHA-256 of the items' file: results of the same digest are of the same items."""
    return hashlib.sha256(_FILE.read_bytes()).hexdigest()
