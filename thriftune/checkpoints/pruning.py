"""Removing checkpoints that newer complete ones have replaced."""

from collections.abc import Sequence

from thriftune.checkpoints import layout
from thriftune.checkpoints.store import Store


def prune(store: Store, earlier: Sequence[Store], step: int, keep: int, stays: int | None = None) -> list[str]:
    """Remove what is no longer needed after a checkpoint became complete.

    Later steps stay: another node may already be uploading the next one, and one that was found damaged is written
    over when the training comes by it again.

    Args:
        store: The attempt's own prefix.
        earlier: Prefixes of earlier attempts. Their checkpoints go when this attempt has `keep` of its own.
        step: The step that has just become complete.
        keep: How many complete ones to keep.
        stays: A step that is kept besides, in whichever prefix it is; None: there is none.

    Returns:
        What was removed: prefix and folder.
    """
    names = store.names()
    steps = {found for name in names if (found := layout.step_of(name)) is not None and found <= step}
    complete = sorted((s for s in steps if layout.manifest_name(s) in names), reverse=True)
    removed = [_remove(store, old) for old in sorted(steps - {*complete[:keep], stays})]
    if len(complete) >= keep:
        for other in earlier:
            found_steps = {found for name in other.names() if (found := layout.step_of(name)) is not None}
            removed += [_remove(other, old) for old in sorted(found_steps - {stays})]
    return removed


def _remove(store: Store, step: int) -> str:
    store.remove(layout.manifest_name(step))  # first: what is left of it must not look whole
    store.remove(layout.checkpoint_name(step))
    return f"{store.prefix}/{layout.checkpoint_name(step)}"
