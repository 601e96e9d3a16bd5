"""Remove checkpoints that newer complete ones have replaced."""

from collections.abc import Sequence

from thriftune.checkpoints import layout
from thriftune.stores.store import Store


def prune(store: Store, step: int, keep: int, best: Sequence[int] = ()) -> list[str]:
    """Remove the checkpoints that are no longer needed after one became complete.

    Later steps stay: another node may already be uploading the next one, and a damaged one is overwritten when the
    training reaches that step again.

    Args:
        store: The training's prefix.
        step: The step that has just become complete.
        keep: Number of complete checkpoints to keep.
        best: Steps by falling worth. The first of them that is complete is kept in addition, as saving a better one may
            have failed.

    Returns:
        The removed checkpoints, as prefix and folder.
    """
    names = store.names()
    steps = {found for name in names if (found := layout.step_of(name)) is not None and found <= step}
    complete = sorted((s for s in steps if layout.manifest_name(s) in names), reverse=True)
    stays = next((found for found in best if found in complete), None)
    return [_remove(store, old) for old in sorted(steps - {*complete[:keep], stays})]


def _remove(store: Store, step: int) -> str:
    store.remove(layout.manifest_name(step))  # first, so that a half removed checkpoint does not look complete
    store.remove(layout.checkpoint_name(step))
    return f"{store.prefix}/{layout.checkpoint_name(step)}"
