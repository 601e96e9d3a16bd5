"""The notice that a process gets before its node goes away: SIGTERM, from a spot market or from a drained node.

While steps are done it is remembered: the step is ended, and a checkpoint saved. Where there is nothing to save, while
a model is loaded or a result is written, which may take longer than the node has, the attempt ends at once.
"""

import logging
import signal
import threading
from types import FrameType
from typing import Any, Self

from thriftune.errors import EndedAtOnceError

logger = logging.getLogger(__name__)

_WHY = "Told to stop (the node is going away, or the run was interrupted)"


class Notice:
    """Remembers that a SIGTERM came, and ends the process if there is nothing to save.

    Attributes:
        was_given: Whether a SIGTERM came.
    """

    was_given: bool

    def __init__(self) -> None:
        self.was_given = False
        self._before: Any = None
        self._has_steps = False

    @classmethod
    def listen_for_sigterm(cls) -> Self:
        """Start to listen for SIGTERM, which then raises `EndedAtOnceError`. Only works in the main thread."""
        notice = cls()
        if threading.current_thread() is threading.main_thread():
            notice._before = signal.signal(signal.SIGTERM, notice._hear)
        return notice

    def wait_for_step(self) -> None:
        """From now on only remember a SIGTERM: a step has begun, at whose end a checkpoint is saved."""
        self._has_steps = True

    def end_at_once(self) -> None:
        """From now on raise `EndedAtOnceError` at a SIGTERM: all steps are done, and their checkpoint is written."""
        self._has_steps = False

    def stop(self) -> None:
        """Stop listening: from now on a SIGTERM does again what it did before."""
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
            self._before = None

    def _hear(self, number: int, frame: FrameType | None) -> None:
        is_first, self.was_given = not self.was_given, True
        if not is_first:
            return
        if self._has_steps:
            logger.warning("%s: saving a checkpoint after this step", _WHY)
            return
        logger.warning("%s: ending at once, as no step is under way", _WHY)
        raise EndedAtOnceError("The node is going away; no step was under way, so nothing but the checkpoints is kept.")
