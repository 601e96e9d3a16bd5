"""The container of our own server in a manifest."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from thriftune.planning.serving import Served

PORT = 8000  # inside a pod; the Service has its own


@dataclass(frozen=True)
class Container:
    """What a container runs.

    Attributes:
        image: Its image.
        args: Arguments of its command.
        ready: Path that says whether it answers questions.
        command: The command; none for the image's own.
        env: Environment variables, as Kubernetes has them.
    """

    image: str
    args: list[str]
    ready: str
    command: list[str] = field(default_factory=list)
    env: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Budget:
    """How long answers may be, and how long a server that has to go still answers.

    Attributes:
        answer_tokens: Tokens of the longest answer.
        drain_seconds: Seconds after it was told to end.
        others: Flags of its other limits, where they are not the usual ones.
    """

    answer_tokens: int
    drain_seconds: int
    others: Mapping[str, float] = field(default_factory=dict)


def own(served: Served, image: str, base: str, adapters: Mapping[str, str], key_file: str, budget: Budget) -> Container:
    """The container of our own server.

    Args:
        served: What it serves.
        image: This project's image.
        base: Folder of the base model in the pod.
        adapters: Folders of the adapters there, by name.
        key_file: File with the key that clients have to send.
        budget: How long it may answer.
    """
    flags = {
        "--base": base,
        "--host": "0.0.0.0",  # noqa: S104 - a pod's only address; a key is asked for
        "--port": PORT,
        "--api-key-file": key_file,
        "--max-batch": served.sequences,
        "--max-prompt-tokens": served.tokens - budget.answer_tokens,
        "--max-tokens": budget.answer_tokens,
        "--drain-seconds": budget.drain_seconds,
        **{flag: f"{value:.15g}" for flag, value in budget.others.items()},
    }
    args = [text for flag, value in flags.items() for text in (flag, str(value))]
    if served.bits != 16:  # 16 is what the device computes in, which the server finds by itself
        args += ["--bits", str(served.bits)]
    if adapters:
        args += ["--adapters", *(f"{name}={path}" for name, path in adapters.items())]
    home = [{"name": "HOME", "value": "/tmp"}, {"name": "HF_HUB_OFFLINE", "value": "1"}]  # noqa: S108
    return Container(image, args, "/ready", ["python", "-m", "thriftune.inference.serve"], home)
