"""The notice that a process gets before its node goes away: SIGTERM, from a spot market or from a drained node."""

import logging
import signal
import threading
from types import FrameType
from typing import Any, Self

logger = logging.getLogger(__name__)


class Notice:
    """Remembers that a SIGTERM came; the training checks it at the end of each step.

    Attributes:
        was_given: Whether a SIGTERM came.
    """

    was_given: bool

    def __init__(self) -> None:
        self.was_given = False
        self._before: Any = None

    @classmethod
    def listen_for_sigterm(cls) -> Self:
        """Start to listen for SIGTERM, which then no longer ends the process. Only works in the main thread."""
        notice = cls()
        if threading.current_thread() is threading.main_thread():
            notice._before = signal.signal(signal.SIGTERM, notice._hear)
        return notice

    def stop(self) -> None:
        """Stop listening: after the training a SIGTERM ends the process at once again."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self.was_given:
            logger.warning(
                "Told to stop (the node is going away, or the run was interrupted): saving a checkpoint after this step"
            )
        self.was_given = True
