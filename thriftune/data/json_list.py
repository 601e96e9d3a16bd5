"""The items of a JSON list one at a time, so that the file is never in memory as a whole."""

import json
from collections.abc import Iterator
from io import TextIOBase
from typing import Any

from thriftune.limits import ROW_BYTES, too_large

_CHARACTERS = 1 << 18  # read at once; more if an item is longer
_AT_THE_END = 64  # an error in the last characters read may come from the cut


def items_of_list(stream: TextIOBase) -> Iterator[Any]:
    """Read a JSON list item by item.

    ijson (3.6) is no alternative: it replaces half a surrogate pair by a question mark, and refuses NaN and long
    integers, all of which Python writes and `json.loads` reads.

    Args:
        stream: The file as text.

    Raises:
        ValueError: It is not a list, ends early, or has an item larger than a row may be (whose end only reading the
            whole list would find).
    """
    decode = json.JSONDecoder().raw_decode
    text = stream.read(_CHARACTERS).lstrip()[1:].lstrip()
    is_first = True
    while True:
        while not text and (more := stream.read(_CHARACTERS)):
            text = more.lstrip()
        if text[:1] == "]":
            _require_nothing(text[1:], stream)
            return
        if not is_first:
            text = text[1:].lstrip()  # the comma after the item before
        # Up to the comma or bracket after the item: a number could continue in the part that is not read yet.
        while True:
            rest = ""
            try:
                value, end = decode(text)
                rest = text[end:].lstrip()
            except json.JSONDecodeError as error:
                # Far from the end of what was read, so not caused by the cut: reading the whole file would not help.
                if error.pos + _AT_THE_END < len(text) and "Unterminated" not in error.msg:
                    raise ValueError(f"an item is not JSON ({error.msg})") from error
                end = -1
            if rest[:1] in {",", "]"}:
                break
            if len(text) > ROW_BYTES:
                raise ValueError(f"an item {too_large()}")
            more = stream.read(min(max(_CHARACTERS, len(text)), ROW_BYTES + 1 - len(text)))
            if not more and rest:
                raise ValueError(f"a comma is missing before {rest[:20]!r}")
            if not more:
                raise ValueError("the list is not closed" if end >= 0 or not text.strip() else "an item is not JSON")
            text = (text + more).lstrip()
        yield value
        text, is_first = rest, False


def _require_nothing(rest: str, stream: TextIOBase) -> None:
    """Refuse what follows the list."""
    while rest.isspace() or not rest:
        rest = stream.read(_CHARACTERS)
        if not rest:
            return
    raise ValueError("something follows the list")
