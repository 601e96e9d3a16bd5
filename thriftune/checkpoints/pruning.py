"""Remove checkpoints that newer complete ones have replaced."""

from collections.abc import Sequence

from thriftune.checkpoints import layout
from thriftune.stores.store import Store


def prune(store: Store, earlier: Sequence[Store], step: int, keep: int, best: Sequence[int] = ()) -> list[str]:
    """Remove the checkpoints that are no longer needed after one became complete.

    Later steps stay: another node may already be uploading the next one, and a damaged one is overwritten when the
    training reaches that step again.

    Args:
        store: The attempt's own prefix.
        earlier: Prefixes of earlier attempts. Their checkpoints are removed when this attempt has `keep` of its own.
        step: The step that has just become complete.
        keep: Number of complete checkpoints to keep.
        best: Steps by falling worth. The first of them that is complete, under any prefix, is kept in addition, as
            saving a better one may have failed.

    Returns:
        The removed checkpoints, as prefix and folder.
    """
    names = store.names()
    steps = {found for name in names if (found := layout.step_of(name)) is not None and found <= step}
    complete = sorted((s for s in steps if layout.manifest_name(s) in names), reverse=True)
    stays = next((found for found in best if found in complete or any(_holds(other, found) for other in earlier)), None)
    removed = [_remove(store, old) for old in sorted(steps - {*complete[:keep], stays})]
    if len(complete) >= keep:
        for other in earlier:
            found_steps = {found for name in other.names() if (found := layout.step_of(name)) is not None}
            removed += [_remove(other, old) for old in sorted(found_steps - {stays})]
    return removed


def _holds(store: Store, step: int) -> bool:
    return layout.manifest_name(step) in store.names()


def _remove(store: Store, step: int) -> str:
    store.remove(layout.manifest_name(step))  # first, so that a half removed checkpoint does not look complete
    store.remove(layout.checkpoint_name(step))
    return f"{store.prefix}/{layout.checkpoint_name(step)}"
