"""What came of a trial as text: in the index of results, beside its checkpoints, and in the local cache."""

import functools
import json
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter

from thriftune.redaction import redacted
from thriftune.sweeps.outcomes import Outcome


def to_json(outcome: Outcome) -> str:
    """What came of a trial as JSON, in which a number may be NaN or Infinity, and no error holds a secret.

    Args:
        outcome: What came of it.
    """
    return json.dumps({**asdict(outcome), "error": redacted(outcome.error)})


def from_json(text: str | bytes) -> Outcome | None:
    """What came of a trial; None where it cannot be read, as what another version wrote.

    Args:
        text: What `to_json` returned.
    """
    try:
        outcome: Outcome = _adapter().validate_python(json.loads(text))
    except ValueError:  # also pydantic's own error
        return None
    return outcome


@functools.cache
def _adapter() -> TypeAdapter[Any]:
    return TypeAdapter(Outcome)
