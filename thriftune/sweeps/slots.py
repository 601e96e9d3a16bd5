"""Which trial trains on which device of a node, and which waits."""

from collections import deque
from collections.abc import Sequence

from thriftune.errors import PodError

# Of a trial on a CPU.
NO_GPU = ""


def devices_for(visible: str | None, slots: int) -> list[str]:
    """The GPU that each trial at a time sees alone, as CUDA_VISIBLE_DEVICES.

    Args:
        visible: What that variable is for the whole node: numbers or ids of GPUs, separated by commas; None where
            nothing hides one.
        slots: Trials at a time.

    Returns:
        A GPU for each; fewer than asked for where the variable shows fewer.

    Raises:
        PodError: It hides all of them.
    """
    if visible is None:
        return [str(number) for number in range(slots)]
    shown: list[str] = []
    for part in visible.split(","):
        name = part.strip()
        if not name or name == "-1":  # CUDA shows what is named before it
            break
        shown.append(name)
    if not shown:
        message = f"{slots} planned, and CUDA_VISIBLE_DEVICES is {visible!r}."
        remedy = "Remove it from the environment of this machine, of the pod template or of the image."
        raise PodError.single("GPUs", 0, message, remedy, code="gpu-not-visible")
    return shown[:slots]


class Slots:
    """The devices of a node, the trials that have one, and those that wait for one, in their order.

    Args:
        trials: Numbers of the trials.
        devices: A name for each device.
        restarts: How often a trial is started again.
    """

    def __init__(self, trials: Sequence[int], devices: Sequence[str], restarts: int) -> None:
        self._waiting, self._free = deque(trials), deque(devices)
        self._held: dict[int, str] = {}
        self._restarts, self._restarted = restarts, dict.fromkeys(trials, 0)

    @property
    def waiting(self) -> tuple[int, ...]:
        """The trials that wait, in their order."""
        return tuple(self._waiting)

    def begin(self) -> tuple[int, str] | None:
        """The next trial, and its device from now on; None if no device is free, or no trial waits."""
        if not self._waiting or not self._free:
            return None
        number, device = self._waiting.popleft(), self._free.popleft()
        self._held[number] = device
        return number, device

    def leave(self, number: int) -> None:
        """Give the device of a trial to the next one.

        Args:
            number: The trial, which has ended.
        """
        self._free.appendleft(self._held.pop(number))

    def restart(self, number: int) -> bool:
        """Let a trial start again, before those that wait; not more often than it may.

        Args:
            number: The trial, which has left its device.

        Returns:
            Whether it may.
        """
        if self._restarted[number] >= self._restarts:
            return False
        self._restarted[number] += 1
        self._waiting.appendleft(number)
        return True
