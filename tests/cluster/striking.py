"""Disturb a run while it is on its way: what happens on spot nodes, and what people do."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.control_plane import ControlPlane

# What a training logs when it begins, and when a checkpoint is complete.
BEGINS, SAVED = "Checkpoints go to", "Checkpoint of step"
_LOOK_SECONDS = 0.05


@contextmanager
def whenever(cluster: ControlPlane, said: str, *disturb: Callable[[str], None]) -> Iterator[None]:
    """Disturb the runs that begin in this block: one pod after the other that says something.

    Args:
        cluster: The cluster.
        said: What pods say.
        *disturb: Get the name of a pod, the first that says it, the next, and so on.
    """
    over, before = threading.Event(), set(cluster.runs)
    disturbed: set[str] = set()

    def that_say_it() -> list[str]:
        logs = [log for run in set(cluster.runs) - before for log in cluster.pods.logs.glob(f"{run}-*.log")]
        return sorted(log.stem for log in logs if log.stem not in disturbed and said.encode() in log.read_bytes())

    def look() -> None:
        waiting = list(disturb)
        while waiting and not over.wait(_LOOK_SECONDS):
            for pod in that_say_it()[:1]:
                disturbed.add(pod)
                waiting.pop(0)(pod)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def struck(cluster: ControlPlane, *signals: int) -> list[Callable[[str], None]]:
    """What to do to pods: send them these signals, one to each."""
    return [lambda pod, number=number: cluster.pods.strike(pod, number) for number in signals]
