"""How to go on with a local run that was interrupted, as the command to type."""

import shlex
import sys
from pathlib import Path

import yaml

from thriftune import artifacts
from thriftune.checkpoints import resume_from
from thriftune.config import RunConfig
from thriftune.errors import ThriftuneError
from thriftune.redaction import redacted


def command() -> str:
    """The command of this run."""
    return shlex.join(["pyflyte", *sys.argv[1:]])


def of(config: RunConfig | None, checkpoints: Path) -> str:
    """How to continue, in one line.

    Args:
        config: The run whose training was running, or ran last; None if none was.
        checkpoints: Directory of its checkpoints.
    """
    if config is None:
        return f"To start again: {command()}"
    step = _newest_step(checkpoints)
    if step is not None:
        return f"To resume from step {step}: {_command_from(config, checkpoints)}"
    if config.checkpoints.resume_from:  # its checkpoints are not checked again: the store may be far away
        return f"No checkpoint was saved yet. To resume from {config.checkpoints.resume_from} again: {command()}"
    return f"No checkpoint was saved yet. To start the training again: {command()}"


def _newest_step(checkpoints: Path) -> int | None:
    try:
        return resume_from.newest_whole(str(checkpoints)).step
    except (ThriftuneError, OSError):
        return None


def _command_from(config: RunConfig, checkpoints: Path) -> str:
    """The command that resumes the run, with a copy of the run file that names the checkpoints."""
    place, words = shown(checkpoints), ["pyflyte", *sys.argv[1:]]
    try:
        at = words.index("--config") + 1
        file = checkpoints.with_name("go-on.yaml")
        content = config.model_dump(mode="json", exclude_defaults=True)
        content.setdefault("checkpoints", {})["resume_from"] = place
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        if redacted(text) != text:
            raise ValueError("A copy would lack the signatures of the run's URLs.")
        artifacts.write_text(file, text)
    except (ValueError, OSError):  # that, or the run file was given in another way, or the disk is full
        return f"set checkpoints.resume_from: {place} in the run file, and: {command()}"
    words[at] = shown(file)
    return f"{shlex.join(words)}   (checkpoints.resume_from: {place})"


def shown(path: Path) -> str:
    """A path as a person would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
