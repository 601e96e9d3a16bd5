"""One attempt of a training, as the tests describe it and as the process that makes it reads it."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class Plant:
    """Something that goes wrong inside a process.

    Attributes:
        kind: stall, memory, nan, overflow (of all gradients), uphill (from this step on the training goes up the loss),
            kill (when `file` is opened for writing), or pause (when the part of an attempt that `file` names begins).
        step: Optimizer step during which it happens; 1 is the first.
        rank: Global rank that it happens to.
        size: Rows of a micro batch that are too many (memory).
        file: Part of the path of a file (kill), fingerprint of the batch (nan), or a key of `recording.PARTS` (pause).
        once: File that says that it has happened, so that it does not happen again; empty: it happens every time.
    """

    kind: str
    step: int = 0
    rank: int = 0
    size: int = 0
    file: str = ""
    once: str = ""


@dataclass(frozen=True)
class Job:
    """One attempt.

    Attributes:
        config: The run, as its YAML file would give it.
        nodes: Agents, each with as many processes as the run asks for.
        model: Directory of the base model.
        dataset: Directory of the prepared dataset.
        output: Directory that the training makes.
        here: Prefix of the checkpoints.
        number: Which attempt it is, from 0.
        scratch: Folder on this machine's disk; each node has one of its own in it.
        events: File that every process writes down what it does in.
        grace_seconds: Time that a process has after SIGTERM.
        pause: Seconds that every step takes longer, so that faults fall between steps and checkpoints are uploaded.
        start_method: How the agent makes its workers: fork is quick, spawn is what tasks do.
        precision: In place of the plan's: a run file cannot ask for fp16 on a CPU.
        plants: What goes wrong.
        environment: Variables for the processes.
    """

    config: dict[str, Any]
    model: str
    dataset: str
    output: str
    here: str
    number: int
    scratch: str
    events: str
    nodes: int = 1
    grace_seconds: float = 30
    pause: float = 0.2
    start_method: str = "fork"
    precision: str = ""
    plants: tuple[Plant, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)

    def write(self, file: Path) -> Path:
        """Write it down for another process."""
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return file

    @classmethod
    def read(cls, file: str | Path) -> Self:
        """Read what `write` wrote."""
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        return cls(**{**content, "plants": tuple(Plant(**plant) for plant in content["plants"])})
