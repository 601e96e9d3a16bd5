"""Waiting out the short failures of a store, a bounded number of times."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from thriftune.errors import TransientError, UserError
from thriftune.stores import failures
from thriftune.stores.meter import StoppedError

logger = logging.getLogger(__name__)
T = TypeVar("T")

# Seconds between the attempts at one operation: 5 attempts, 15 s of waiting.
PAUSES_S = (1.0, 2.0, 4.0, 8.0)


def retried(
    call: Callable[[], T],
    place: str,
    what: str,
    *,
    pauses: Sequence[float] = PAUSES_S,
    raise_definite: Callable[[Exception], None] = failures.raise_if_definite,
) -> T:
    """Call until it succeeds, or until trying again is of no use.

    Args:
        call: The operation.
        place: The store, for the message.
        what: What is asked of it, for the message.
        pauses: Seconds to wait between the attempts.
        raise_definite: Raises for an error that trying again would not resolve.

    Raises:
        TransientError: The last attempt failed too.
    """
    attempt = 0
    while True:
        try:
            return call()
        except (FileNotFoundError, ValueError, TypeError, UserError, StoppedError):
            raise  # asking again gives the same answer
        except Exception as error:
            raise_definite(error)
            if attempt == len(pauses):
                message = f"attempt {attempt + 1} at {what}: {failures.unreachable(place, error)}"
                raise TransientError(f"{place}, {message}") from error
            logger.info("%s: %s. Trying again in %g s.", place, failures.in_words(error), pauses[attempt])
        time.sleep(pauses[attempt])
        attempt += 1
