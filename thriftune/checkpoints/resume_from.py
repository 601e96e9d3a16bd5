"""Another run's checkpoints, named by `checkpoints.resume_from`: whether one is complete, and if not, why."""

from collections.abc import Sequence

from thriftune.checkpoints import layout, restoring
from thriftune.checkpoints.manifest import Manifest
from thriftune.errors import ConfigError
from thriftune.stores.store import Store

RESUME_FROM = "checkpoints.resume_from"
# What a person can do if they do not fit.
OR_ELSE = f"start again without {RESUME_FROM}"


def newest_whole(prefix: str) -> Manifest:
    """The newest checkpoint whose files all exist according to the store's listing; nothing is downloaded.

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
    """The error that none of another run's checkpoints is complete, so that no run can resume from them.

    Args:
        prefix: Where they are: the value of `checkpoints.resume_from`.
        damages: Problems of those that have a manifest.

    Raises:
        TransientError: The store does not answer.
    """
    found = [*damages, *restoring.incomplete([Store(prefix)])]
    last = prefix.rstrip("/").rpartition("/")[2]
    remedy = "Name the prefix of a run's checkpoints, or leave it out to start at the first step."
    if layout.step_of(last) is not None:
        remedy = f"Name the prefix without {last}: a prefix holds all checkpoints of a run."
    message = f"holds no whole checkpoint{': ' if found else '.'}{' '.join(found)}"
    return ConfigError.single(RESUME_FROM, prefix, message, remedy, code="checkpoint-not-found")
