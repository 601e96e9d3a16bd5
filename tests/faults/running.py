"""Starting attempts, watching what they do, ending them, and reading what came of it."""

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from faults.job import Job, Plant

ROOT = Path(__file__).parent.parent.parent
# No attempt takes longer, also where two processors are busy with other things.
LONGEST_SECONDS = 300.0


class Nursery:
    """The process that attempts are forked from."""

    def __init__(self, log: Path) -> None:
        self._begun: list[int] = []
        path = os.pathsep.join([str(ROOT / "tests"), str(ROOT)])
        # A node that does not come back is not waited for long.
        environment = {**os.environ, "PYTHONPATH": path, "THRIFTUNE_RENDEZVOUS_SECONDS": "20"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faults.nursery"],
            cwd=ROOT, env=environment, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log.open("w"),
        )  # fmt: skip
        while (line := self._process.stdout.readline()) != "ready\n":
            assert line, log.read_text()[-3000:]

    def fork(self, job_file: Path, log: Path, variables: dict[str, str]) -> int:
        """Begin an attempt; the id of its process and process group."""
        words = [str(job_file), str(log), *(f"{name}={value}" for name, value in variables.items())]
        self._process.stdin.write("\t".join(words) + "\n")
        self._begun.append(int(self._process.stdout.readline()))
        return self._begun[-1]

    def end_attempts(self) -> None:
        """End what is left of the attempts so far."""
        for group in self._begun:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        self._begun.clear()

    def close(self) -> None:
        """End it."""
        self._process.stdin.close()
        self._process.wait(60)  # it lets go of all libraries, also where two processors are busy


@dataclass(frozen=True)
class Outcome:
    """What an attempt did.

    Attributes:
        begins: Steps that its process groups began at, in order: several where workers were started again.
        last_step: Most steps that were done when it ended; -1 if it never began.
        losses: Loss of every step, the last one where a step was done twice.
        batches: Fingerprints of the rows of each step on rank 0.
        ended: finished, recoverable, user, error; empty for one that was killed.
        message: Why.
        log: All that its processes wrote.
        begun_at: Time of the first step's beginning in each process group.
        started_at: Time when it was started.
        events: All of them.
    """

    begins: list[int]
    last_step: int
    losses: dict[int, float]
    batches: dict[int, list[str]]
    ended: str
    message: str
    log: str
    begun_at: list[float]
    started_at: float
    events: list[dict[str, Any]] = field(repr=False)


class Attempt:
    """An attempt that runs: one process per node, and their workers."""

    def __init__(self, nursery: Nursery, job: Job, folder: Path) -> None:
        self.job, self._log = job, folder / "log"
        self._groups: list[int] = []
        port = _free_port()
        for node in range(job.nodes):
            file = job.write(folder / f"job-{node}.json")
            several = {"PET_NNODES": str(job.nodes), "PET_RDZV_ENDPOINT": f"127.0.0.1:{port}"} if job.nodes > 1 else {}
            self._groups.append(nursery.fork(file, self._log, several))
        self._statuses = [folder / f"job-{node}.json.status" for node in range(job.nodes)]

    def events(self, what: str = "") -> list[dict[str, Any]]:
        """What its processes wrote down so far."""
        file = Path(self.job.events)
        lines = file.read_text().splitlines() if file.exists() else []
        return [event for event in map(json.loads, lines) if what in ("", event["event"])]

    def until_step(self, step: int) -> dict[str, Any]:
        """Wait until a step is done; its event of rank 0."""
        return self.until(lambda: next((e for e in self.events("step") if e["rank"] == 0 and e["step"] >= step), None))

    def until(self, condition: Callable[[], Any], seconds: float = LONGEST_SECONDS) -> Any:
        """Wait for something that the attempt does."""
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert not self.has_ended, f"it ended before: {self.tail}"
            assert time.monotonic() < deadline, f"waited in vain: {self.tail}"
            time.sleep(0.01)
        return found

    def kill(self, number: int = signal.SIGKILL) -> Self:
        """Send a signal to every process of the attempt, as when its node is gone (SIGKILL)."""
        for group in self._groups:
            with suppress(ProcessLookupError):
                os.killpg(group, number)
        return self

    def kill_node(self, node: int) -> None:
        """End every process of one node at once, as when it is gone."""
        os.killpg(self._groups[node], signal.SIGKILL)

    def notify(self, node: int = 0) -> None:
        """Send SIGTERM to what a pod's first process is, as a drain does."""
        os.kill(self._groups[node], signal.SIGTERM)

    def wait(self) -> Outcome:
        """Wait until it has ended."""
        deadline = time.monotonic() + LONGEST_SECONDS
        while not self.has_ended:
            assert time.monotonic() < deadline, f"it does not end: {self.kill().tail}"
            time.sleep(0.01)
        self.kill()  # nobody of the group is left
        return self.outcome()

    @property
    def has_ended(self) -> bool:
        """Whether its processes have ended."""
        return all(status.exists() for status in self._statuses)

    @property
    def tail(self) -> str:
        """The end of what it wrote."""
        return self._log.read_text(errors="replace")[-6000:] if self._log.exists() else ""

    def outcome(self) -> Outcome:
        """What it did so far."""
        events = self.events()
        main = [event for event in events if event["rank"] == 0]
        begins = [event for event in main if event["event"] == "begin"]
        steps = [event for event in main if event["event"] == "step"]
        ends = [event for event in events if event["event"] == "end"]
        ends.sort(key=lambda event: event["outcome"] == "finished")  # of several nodes, one that is not counts
        return Outcome(
            begins=[event["step"] for event in begins],
            last_step=max((event["step"] for event in [*begins, *steps]), default=-1),
            losses={event["step"]: event["loss"] for event in main if event["event"] == "loss"},
            batches={event["step"]: event["batch"] for event in steps},
            ended=ends[0]["outcome"] if ends else "",
            message=ends[0]["message"] if ends else "",
            log=self._log.read_text(errors="replace"),
            begun_at=[event["time"] for event in begins],
            started_at=events[0]["time"] if events else 0.0,
            events=events,
        )


@dataclass
class Run:
    """A run of several attempts, each on a new machine: nothing of their disks is left but the store.

    Attributes:
        nursery: Where processes come from.
        folder: Everything of this run.
        base: What all attempts have in common.
        store: Where checkpoints go: a directory, or a URL.
    """

    nursery: Nursery
    folder: Path
    base: dict[str, Any]
    store: str = ""
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def output(self) -> Path:
        """What the training makes."""
        return self.folder / "outputs" / "result"

    @property
    def prefix(self) -> str:
        """Where the checkpoints of all attempts are."""
        return f"{self.store or self.folder / 'store'}/checkpoints"

    def start(self, plants: Sequence[Plant] = (), **changes: Any) -> Attempt:
        """Begin the next attempt."""
        number = len(self.attempts)
        folder = self.folder / f"attempt-{number}"
        folder.mkdir(parents=True)
        self.output.parent.mkdir(exist_ok=True)
        job = Job(
            **self.base, plants=tuple(plants), output=str(self.output), scratch=str(folder / "disk"),
            here=self.prefix, number=number, events=str(folder / "events.jsonl"),
        )  # fmt: skip
        attempt = Attempt(self.nursery, replace(job, **changes), folder)
        self.attempts.append(attempt)
        return attempt

    def finish(self, plants: Sequence[Plant] = (), **changes: Any) -> Outcome:
        """Make an attempt that nothing ends before it is done."""
        outcome = self.start(plants, **changes).wait()
        assert outcome.ended == "finished", (outcome.message, outcome.log[-6000:])
        return outcome

    @property
    def weights(self) -> str:
        """Checksum of the trained weights, every bit of them."""
        (file,) = self.output.glob("*.safetensors")
        return hashlib.sha256(file.read_bytes()).hexdigest()

    @property
    def held_out(self) -> dict[str, Any]:
        """What was measured on the held-out rows before, while and after it trained."""
        training = json.loads((self.output / "manifest.json").read_text(encoding="utf-8"))["training"]
        return {name: training[name] for name in ("before", "validations", "after", "kept_step")}

    @property
    def claims_to_be_finished(self) -> list[Path]:
        """Directories among the outputs that say they are whole."""
        return [file.parent for file in (self.folder / "outputs").rglob("manifest.json")]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
