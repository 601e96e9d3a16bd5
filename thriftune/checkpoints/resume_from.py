"""Another run's checkpoints, which `checkpoints.resume_from` names: whether one is whole, and why none is."""

from collections.abc import Sequence

from thriftune.checkpoints import layout, restoring
from thriftune.checkpoints.manifest import Manifest
from thriftune.checkpoints.store import Store
from thriftune.errors import ConfigError

RESUME_FROM = "checkpoints.resume_from"
# What can be done where they do not fit.
OR_ELSE = f"begin anew, without {RESUME_FROM}"


def newest_whole(prefix: str) -> Manifest:
    """The newest checkpoint whose files are all there, as far as the store's listing tells: nothing is fetched.

    Args:
        prefix: Where they are.

    Raises:
        ConfigError: There is none.
        TransientError: The store does not answer.
    """
    damages: list[str] = []
    for store, manifest in restoring.complete([Store(prefix)]):
        problems = restoring.wrong_sizes(store, manifest)
        if not problems:
            return manifest
        damages += problems
    raise none_whole(prefix, damages)


def none_whole(prefix: str, damages: Sequence[str] = ()) -> ConfigError:
    """Why a run cannot go on from another one's checkpoints: none of them is whole.

    Args:
        prefix: Where they are, as `checkpoints.resume_from` says.
        damages: What is wrong with those that have a manifest.

    Raises:
        TransientError: The store does not answer.
    """
    found = [*damages, *restoring.incomplete([Store(prefix)])]
    last = prefix.rstrip("/").rpartition("/")[2]
    remedy = "Name the prefix of a run's checkpoints, or leave it out to begin at the first step."
    if layout.step_of(last) is not None:
        remedy = f"Name the prefix without {last}: it holds all checkpoints of a run."
    message = f"holds no whole checkpoint{': ' if found else '.'}{' '.join(found)}"
    return ConfigError.single(RESUME_FROM, prefix, message, remedy, code="checkpoint-not-found")
