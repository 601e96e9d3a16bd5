"""Which trial trains on which device of a node, and which waits."""

import logging
from collections import Counter, deque
from collections.abc import Sequence

from thriftune.errors import PodError
from thriftune.sweeps.outcomes import Status

logger = logging.getLogger(__name__)

# Of a trial on a CPU.
NO_GPU = ""
# Deaths of a trial on one device after which it waits for another: the first may have been an accident.
_DEATHS = 2
# Trials that died so on a device in a row, after which it is out of use.
_SUSPICIONS = 2


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

    A process that dies does not say whether its trial or its device is at fault. So a trial that died twice on a device
    waits for another one, if there is another; and a device where two trials did, with none that came to an end in
    between, is out of use while another is in use: a faulty GPU would take one trial after the other.

    Args:
        trials: Numbers of the trials.
        devices: A name for each device; one name for all that are the same to a trial, as on a CPU.
        restarts: How often a trial is started again.
    """

    def __init__(self, trials: Sequence[int], devices: Sequence[str], restarts: int) -> None:
        self._waiting, self._free = deque(trials), deque(devices)
        self._held: dict[int, str] = {}
        self._restarts, self._restarted = restarts, dict.fromkeys(trials, 0)
        self._deaths: Counter[tuple[int, str]] = Counter()
        self._suspected_by: dict[str, set[int]] = {device: set() for device in devices}

    @property
    def waiting(self) -> tuple[int, ...]:
        """The trials that wait, in their order."""
        return tuple(self._waiting)

    def begin(self) -> tuple[int, str] | None:
        """The next trial, and its device from now on; None if no trial that waits has a free device."""
        for number in self._waiting:
            device = next((device for device in self._free if self._may_have(number, device)), None)
            if device is not None:
                self._waiting.remove(number)
                self._free.remove(device)
                self._held[number] = device
                return number, device
        return None

    def leave(self, number: int, status: Status | None) -> None:
        """Give the device of a trial to the next one.

        Args:
            number: The trial, whose process has ended.
            status: What came of the trial; None if its process died.
        """
        device = self._held.pop(number)
        self._free.appendleft(device)
        if status is None:
            self._deaths[number, device] += 1
            if self._deaths[number, device] == _DEATHS:
                self._suspect(number, device)
        elif status != "failed":  # an error in its run may come before it uses the device
            self._suspected_by[device].clear()

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

    def _suspect(self, number: int, device: str) -> None:
        suspected_by = self._suspected_by[device]
        suspected_by.add(number)
        if len(self._suspected_by) == 1:  # no other one to wait for
            return
        logger.warning(
            "Trial %d died %d times on GPU %s, and starts again on another one only", number, _DEATHS, device
        )
        if len(suspected_by) == _SUSPICIONS:
            logger.warning("GPU %s is out of use while another trains: %d trials died there", device, _SUSPICIONS)

    def _may_have(self, number: int, device: str) -> bool:
        """Whether a trial may have a device. Of all devices together, it may have at least one."""
        used = [one for one, suspected_by in self._suspected_by.items() if len(suspected_by) < _SUSPICIONS]
        used = used or list(self._suspected_by)
        deaths = {one: self._deaths[number, one] for one in used}
        return device in deaths and (deaths[device] < _DEATHS or deaths[device] == min(deaths.values()))
