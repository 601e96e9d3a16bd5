"""What the cached steps of runs made, and whether it is still there: an index of results, in the blob store itself.

Flyte's cache gives the URL of a result and does not look whether a file is left there; buckets have rules that remove
old ones. So every cached step counts, beside what it depends on, a generation. While its result is whole that stays as
it is, and the cache serves it. When a result is found damaged the generation changes, and Flyte makes it anew.

Below the root lie, for each key, `<key>.json`, the claim, and `<key>/<generation>.json`, the record, which the step
writes once its result is uploaded. The claim has the generation to begin at, and whether that was made. Rules remove
old files in no order: without its claim a key gets a new generation, and a generation that was made and has no record
counts as damaged. A slow writer that puts an older claim back takes nothing back: a later generation follows from the
one before, its record is found, and the claim is mended.
"""

import json
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from thriftune import artifacts, damage
from thriftune.errors import UserError
from thriftune.stores.store import Store

logger = logging.getLogger(__name__)

_GENERATION, _MADE, _RESULTS, _FACTS = "generation", "made", "results", "facts"
_JSON = ".json"
_SHOWN = 3


@dataclass(frozen=True)
class Made:
    """A result that is whole in the store.

    Attributes:
        results: URLs of its directories.
        facts: What the step that made it said about it.
    """

    results: tuple[str, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Claim:
    """The generation of a key to begin at, and whether its step wrote down a result."""

    generation: str
    is_made: bool = False

    @property
    def content(self) -> bytes:
        return _content({_GENERATION: self.generation} | ({_MADE: True} if self.is_made else {}))


@dataclass(frozen=True)
class Entry:
    """A result as the index knows it.

    Attributes:
        generation: What Flyte's cache has to count.
        record: URL of the file that the step writes once it has a result.
        made: The result; None where there is none yet, or where it has to be made anew.
    """

    generation: str
    record: str
    made: Made | None = None


def look_up(root: str, key: str, what: str) -> Entry:
    """The present entry of a key, which is made if there is none. A result that cannot be served is said in the log.

    Two processes that ask at the same time get the same generation.

    Args:
        root: URL of the index.
        key: What the result is known by, as the name of a file.
        what: What it is, for the log.

    Raises:
        UserError: The store refuses access to the index. What it refuses of a result is a reason to make that anew.
        TransientError: The store does not answer.
    """
    store = Store(root)
    begun = _begun(store, key)
    generation, made = begun.generation, _recorded(store, key, begun.generation)
    if made is None and begun.is_made:
        made = Made(())
    while made and (found := _damages_of(made)):
        logger.warning(
            "%s is no longer whole in the store, or may not be read, and is made anew: %s", what, _in_a_line(found)
        )
        generation = artifacts.key_of(generation, "made anew")
        made = _recorded(store, key, generation)  # another run may have made it since
    if (present := _Claim(generation, made is not None)) != begun:
        store.put_bytes(_beginning(key), present.content)
    return Entry(generation, f"{store.prefix}/{_record(key, generation)}", made)


def remember(record: str, results: Sequence[str], facts: Mapping[str, Any]) -> None:
    """Write down a result, which is uploaded by now.

    Args:
        record: `Entry.record`.
        results: URLs of its directories.
        facts: What a later run has to know of it; values as in JSON.

    Raises:
        UserError: The store refuses access.
        TransientError: The store does not answer.
    """
    folder, _, name = record.rpartition("/")
    root, _, key = folder.rpartition("/")
    store, own = Store(root), _Claim(name.removesuffix(_JSON), is_made=True)
    store.put_bytes(f"{key}/{name}", _content({_RESULTS: list(results), _FACTS: dict(facts)}))
    known = _claimed(store, key)
    if known is None or known.generation == own.generation:  # else this one was given up meanwhile
        store.put_bytes(_beginning(key), own.content)


def made_by(record: str) -> Made | None:
    """The result that a record tells of; None if there is no such record yet, or if its result is no longer whole.

    Args:
        record: `Entry.record`.

    Raises:
        UserError: The store refuses access to the index.
        TransientError: The store does not answer.
    """
    folder, _, name = record.rpartition("/")
    root, _, key = folder.rpartition("/")
    made = _recorded(Store(root), key, name.removesuffix(_JSON))
    return made if made is not None and not _damages_of(made) else None


def damages(url: str) -> list[str]:
    """What a finished directory in a store lacks, by one listing and its manifest; empty if it is whole.

    Args:
        url: The directory.

    Raises:
        UserError: The store refuses access.
        TransientError: The store does not answer.
    """
    store = Store(url)
    manifest = store.get_bytes(artifacts.MANIFEST)
    return damage.damages_in_store(url, manifest, {} if manifest is None else store.sizes())


def _begun(store: Store, key: str) -> _Claim:
    """The claim of a key; a new one, of the first who asks, if there is none."""
    own = _Claim(uuid.uuid4().hex[:16])
    for _ in range(2):  # whoever is not the first to create it reads what that one wrote
        known = _claimed(store, key)
        if known:
            return known
        if store.create(_beginning(key), own.content):
            return own
    store.put_bytes(_beginning(key), own.content)  # what is there is damaged
    return own


def _claimed(store: Store, key: str) -> _Claim | None:
    """The claim of a key; None if there is none, or a damaged one."""
    known = _read(store.get_bytes(_beginning(key)))
    return _Claim(str(known[_GENERATION]), known.get(_MADE) is True) if known.get(_GENERATION) else None


def _recorded(store: Store, key: str, generation: str) -> Made | None:
    """The result of a generation, whole or not; None if its step has written none down."""
    content = store.get_bytes(_record(key, generation))
    if content is None:
        return None
    known = _read(content)
    results, facts = known.get(_RESULTS), known.get(_FACTS)
    if not isinstance(results, list) or not isinstance(facts, dict):
        return Made(())
    return Made(tuple(map(str, results)), facts)


def _damages_of(made: Made) -> list[str]:
    if not made.results:
        return ["its record is gone or damaged."]
    return [f"{url}: {found}" for url in made.results for found in _damages_or_refusal(url)]


def _damages_or_refusal(url: str) -> list[str]:
    """What a result lacks. One in a bucket that may no longer be read cannot be served either."""
    try:
        return damages(url)
    except UserError as error:
        return [error.problems[0].message]


def _in_a_line(found: Sequence[str]) -> str:
    more = f" ({len(found) - _SHOWN} more)" if len(found) > _SHOWN else ""
    return " ".join(found[:_SHOWN]) + more


def _beginning(key: str) -> str:
    return f"{key}{_JSON}"


def _record(key: str, generation: str) -> str:
    return f"{key}/{generation}{_JSON}"


def _content(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, sort_keys=True).encode()


def _read(content: bytes | None) -> dict[str, Any]:
    try:
        values = json.loads(content or b"{}")
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
