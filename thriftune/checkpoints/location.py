"""Where the checkpoints of a training are, and who trains."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Writer:
    """Who trains, as far as the store is concerned.

    Attributes:
        execution: The execution, as a person knows it.
        attempt: Number of the attempt, from 0.
        node: Which node of the execution it is, as the attempts of one node follow one another; empty if not known.
    """

    execution: str
    attempt: int = 0
    node: str = ""

    def __str__(self) -> str:
        return f"execution {self.execution} (attempt {self.attempt + 1})"

    @property
    def owner(self) -> str:
        """What all attempts of this node have in common, as the name of a folder."""
        return f"{self.execution}-{self.node}" if self.node else self.execution


@dataclass(frozen=True)
class CheckpointLocation:
    """Where the checkpoints of a training are.

    Attributes:
        here: Prefix in the blob store that the training reads and writes; a directory in a local run.
        scratch: Folder on this disk, the same for all processes of a node, also after they are started again.
        grace_seconds: Seconds that a process may still run after the notice that its node is going away.
        writer: Who trains, if others might write there too; None for a directory that one run has to itself.
    """

    here: str
    scratch: Path
    grace_seconds: float
    writer: Writer | None = None
