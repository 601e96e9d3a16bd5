"""The notice that a process gets before its node goes away: SIGTERM, from a spot market or a drain."""

import logging
import signal
import threading
from types import FrameType
from typing import Self

logger = logging.getLogger(__name__)


class Notice:
    """Hears SIGTERM and remembers it; the training looks at the end of each step.

    Attributes:
        was_given: Whether it came.
    """

    def __init__(self) -> None:
        self.was_given = False

    @classmethod
    def heard(cls) -> Self:
        """Begin to listen, in place of ending at once. Only a main thread can; elsewhere nothing is heard."""
        notice = cls()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, notice._hear)
        return notice

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self.was_given:
            logger.warning("This node is going away: finishing the step, then saving a last checkpoint")
        self.was_given = True
