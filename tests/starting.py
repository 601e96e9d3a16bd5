"""How tests start processes: each anew, or forked from one that has their libraries in memory (tests/warm.py)."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

_SCRIPT = Path(__file__).parent / "warm.py"
_POLL_SECONDS = 0.02
# pyarrow's allocator has a thread, which would be missing in forks.
_NO_THREADS = {"JE_ARROW_MALLOC_CONF": "background_thread:false"}


class WarmProcessEndedError(Exception):
    """The process that others are forked from is gone."""


class UnlikeError(Exception):
    """A process cannot be forked, as its environment asks for libraries in another state."""


class Process(Protocol):
    """A process, the first of a group of its own."""

    @property
    def pid(self) -> int:
        """Its id, and that of its group."""

    def poll(self) -> int | None:
        """Its exit status, negative for a signal; None while it runs."""

    def wait(self) -> int:
        """Its exit status, once it has ended."""

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""


class Fresh:
    """Starts every process anew."""

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], directory: Path, log: Path, then: str = ""
    ) -> Process:
        """Start a process in a session of its own, without input, whose output goes to a log.

        Args:
            command: The program, by its path, and its arguments.
            environment: All of its environment.
            directory: Where it works.
            log: The log, which is made or continued.
            then: A program that it starts in its turn; says only what may be prepared.
        """
        with log.open("ab") as out:
            return subprocess.Popen(
                command,
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def close(self) -> None:
        """Nothing is to be ended."""


class Warm:
    """Starts processes by forking one that has libraries in memory."""

    def __init__(
        self,
        python: Path,
        modules: Sequence[str],
        environment: Mapping[str, str],
        folder: Path,
        *,
        like_new: bool = True,
        may_differ: Sequence[str] = (),
    ) -> None:
        """Start that process; its imports go on meanwhile.

        Args:
            python: The interpreter.
            modules: What to import.
            environment: What libraries find when they are imported, without HOME and TMPDIR.
            folder: Of its own, which is made.
            like_new: Whether processes end, and find their libraries, as new ones do; else they end at once.
            may_differ: Variables that libraries read then, and that may differ all the same.
        """
        for part in ("home", "tmp", "work"):
            (folder / part).mkdir(parents=True)
        settings, self._log = folder / "settings.json", folder / "warm.log"
        unchecked = [*may_differ, *_NO_THREADS]
        settings.write_text(json.dumps({"modules": modules, "like_new": like_new, "may_differ": unchecked}))
        own = {"HOME": str(folder / "home"), "TMPDIR": str(folder / "tmp"), **_NO_THREADS}
        self._lock, pipe = threading.Lock(), subprocess.PIPE
        command, variables = [python, _SCRIPT, settings.absolute()], {**environment, **own}
        streams: dict[str, Any] = {"stdin": pipe, "stdout": pipe, "text": True, "bufsize": 1, "cwd": folder / "work"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, env=variables, stderr=log, start_new_session=True, **streams)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], directory: Path, log: Path, then: str = ""
    ) -> Process:
        """As `Fresh.start`.

        Args:
            command: The program, by its path, and its arguments.
            environment: All of its environment.
            directory: Where it works.
            log: The log, which is made or continued.
            then: A program that it starts in its turn, found by its name, and forked too.

        Raises:
            UnlikeError: A new process would not have the same in memory.
            WarmProcessEndedError: There is nothing to fork.
        """
        program = {"command": list(command), "environment": dict(environment), "directory": str(directory)}
        answer = self.ask({"start": {**program, "log": str(log), "then": then}})
        if isinstance(answer, list):
            raise UnlikeError(f"libraries in memory were imported with other values of {', '.join(answer)}")
        return _Forked(self, answer)

    def ask(self, request: Mapping[str, Any]) -> Any:
        """Send a request, and get its answer.

        Args:
            request: The request.

        Raises:
            WarmProcessEndedError: There is none.
        """
        with self._lock:
            answer = ""
            with suppress(BrokenPipeError, ValueError):  # ValueError: it was closed here
                self._requests.write(f"{json.dumps(request)}\n")
                answer = self._answers.readline()
        if not answer:
            said = self._log.read_text(errors="replace")[-3000:]
            raise WarmProcessEndedError(f"what others are forked from has ended, status {self._process.wait()}: {said}")
        return json.loads(answer)

    def close(self) -> None:
        """End that process and all that it started."""
        with self._lock:
            with suppress(BrokenPipeError):
                self._requests.close()
            self._process.wait()
            self._answers.close()


@dataclass(frozen=True)
class _Forked:
    """A process that the warm one started, and is the parent of."""

    warm: Warm
    pid: int
    ended: list[int] = field(default_factory=list)

    def poll(self) -> int | None:
        if not self.ended:
            status = self.warm.ask({"ask": self.pid})
            self.ended.extend([] if status is None else [status])
        return self.ended[0] if self.ended else None

    def wait(self) -> int:
        while (status := self.poll()) is None:
            time.sleep(_POLL_SECONDS)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)
