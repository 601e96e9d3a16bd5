"""The notice that a process gets before its node goes away: SIGTERM, from a spot market or a drain."""

import logging
import signal
import threading
from types import FrameType
from typing import Any, Self

logger = logging.getLogger(__name__)


class Notice:
    """Hears SIGTERM and remembers it; the training looks at the end of each step.

    Attributes:
        was_given: Whether it came.
    """

    def __init__(self) -> None:
        self.was_given = False
        self._before: Any = None

    @classmethod
    def listen_for_sigterm(cls) -> Self:
        """Begin to listen, in place of ending at once. Only a main thread can; elsewhere nothing is heard."""
        notice = cls()
        if threading.current_thread() is threading.main_thread():
            notice._before = signal.signal(signal.SIGTERM, notice._hear)
        return notice

    def stop(self) -> None:
        """Listen no more: what follows a training ends at once, as before."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _hear(self, number: int, frame: FrameType | None) -> None:
        if not self.was_given:
            logger.warning(
                "Told to end (the node goes away, or the run was interrupted): after this step, with a last checkpoint"
            )
        self.was_given = True
