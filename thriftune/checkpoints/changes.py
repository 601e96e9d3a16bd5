"""What a training changed about itself; the file lies beside its checkpoints, and every attempt reads it."""

import json
import logging
from typing import Any

from thriftune.checkpoints import restoring
from thriftune.stores.store import Store

logger = logging.getLogger(__name__)

_NAME = "adjustments.json"
_BY = "written_by"


def read(store: Store, execution: str) -> dict[str, Any]:
    """The changes that hold for an attempt of an execution.

    Those of another execution hold as long as a checkpoint of the training is there. Without one it begins anew, and
    what once was too little memory may be mended.

    Args:
        store: Prefix of the training's checkpoints.
        execution: The execution; empty in a local run.

    Raises:
        TransientError: The store does not answer.
    """
    found: dict[str, Any] = json.loads(store.get_bytes(_NAME) or b"{}")
    by = found.pop(_BY, "")
    if not found or by == execution:
        return found
    if not restoring.complete([store]):
        return {}
    logger.info("Execution %s changed this training, which stays so: %s", by, found)
    return found


def write(store: Store, execution: str, content: dict[str, Any]) -> None:
    """Write down what is changed from now on.

    Args:
        store: Prefix of the training's checkpoints.
        execution: The execution that changes it; empty in a local run.
        content: The changes, as values for JSON.

    Raises:
        TransientError: The store does not answer.
    """
    store.put_bytes(_NAME, json.dumps({**content, _BY: execution}, indent=1).encode())
