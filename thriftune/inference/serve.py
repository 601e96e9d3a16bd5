"""Serve a base model and adapters on it over HTTP, as OpenAI's clients ask: docs/serving-http.md.

python -m thriftune.inference.serve --base DIR --adapters NAME=DIR NAME=DIR
"""

import argparse
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from thriftune import hardware
from thriftune.config.benchmark_run import BASE
from thriftune.errors import ConfigError, Problem, UserError
from thriftune.inference.serving import checking
from thriftune.inference.serving.limits import Limits
from thriftune.models.loading import Placement, as_stored
from thriftune.models.quantization import FourBit

_USER_ERROR = 2  # exit status, as argparse's own
_PORT, _HOST = 8000, "127.0.0.1"
_ABOVE_ZERO = "Give another number, or leave it out."
_LIMITS = {
    "max_batch": "answers that are decoded at once",
    "max_queue": "answers that wait for a place; more get status 429",
    "max_prompt_tokens": "longest question, in tokens",
    "max_tokens": "longest answer, in tokens; also for a request that does not say",
    "max_body_bytes": "longest body of a request; a longer one gets status 413",
    "max_connections": "connections at once; more get status 503",
    "request_seconds": "a request's longest time; then it gets status 504",
    "head_seconds": "how long a connection may take to send its request",
    "stall_seconds": "how long a client may leave its answer unread; then it is cut off",
    "drain_seconds": "after SIGTERM, how long what was accepted is answered",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or Ctrl-C.

    Args:
        arguments: The command line; None for that of this process.

    Returns:
        The exit status: 0 after a signal, 2 for wrong input.
    """
    given = _parser().parse_args(arguments)
    try:
        return _serve(given)
    except UserError as error:
        for problem in error.problems:
            sys.stderr.write(f"error: {problem}\n")
        return _USER_ERROR


def _serve(given: argparse.Namespace) -> int:
    """Check everything, and serve.

    Args:
        given: The command line.

    Returns:
        The exit status.

    Raises:
        UserError: Something is wrong; nothing was loaded.
    """
    limits = _limits_of(given)
    _require_all_used(given)
    if given.threads is not None and given.threads < 1:
        raise ConfigError.single("--threads", given.threads, "is not above zero.", _ABOVE_ZERO)
    adapters = checking.adapters_of(given.adapters)
    if given.manifest:
        # Late, as below: a server does not plan.
        from thriftune.inference.serving import manifest_flags

        sys.stdout.write(manifest_flags.text_of(given, adapters, limits))
        return 0
    key = checking.key_in(given.api_key_file) if given.api_key_file else None
    with checking.listen(given.host, given.port, has_key=key is not None, is_open=given.no_api_key) as listening:
        base = given.base.expanduser()
        positions = checking.require_servable(base, adapters)
        placement = _placement(given.bits, base)
        # Late: what is wrong is said within seconds, and `--help` at once.
        from thriftune.inference.serving.questions import Questions, styles_of
        from thriftune.inference.serving.server import AdaptersServer
        from thriftune.inference.serving.worker import LOG_FORMAT, Served
        from thriftune.models.tokenizer import load_tokenizer

        logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
        logging.getLogger("litserve").setLevel(logging.WARNING)
        tokenizer = load_tokenizer(base, padding_side="left")
        questions = Questions(tokenizer, styles_of(base, adapters, tokenizer), limits, positions)
        served = Served(base, adapters, placement, limits.max_batch, given.threads)
        logging.getLogger(__name__).info("Listening on %s port %d", *listening.getsockname()[:2])
        return AdaptersServer(served, questions, key).serve(listening)


def _require_all_used(given: argparse.Namespace) -> None:
    """Refuse what only a manifest needs where a server is to start, and the reverse: it would change nothing.

    Args:
        given: The command line.

    Raises:
        ConfigError: Names each such option.
    """
    usual = argparse.ArgumentParser()
    add, message, remedy = _add_manifest, "is for --manifest alone.", "Add --manifest k8s, or leave it out."
    if given.manifest:
        add, message, remedy = _add_own, "is for a server that starts here.", "Leave it out, or --manifest."
    add(usual)
    idle = [name for name, one in vars(usual.parse_args([])).items() if getattr(given, name) != one]
    if idle:
        values = [(_flag(name), str(getattr(given, name))) for name in idle]
        raise ConfigError([Problem(name, value, message, remedy) for name, value in values])


def _placement(bits: int | None, base: Path) -> Placement:
    """How to hold the base model.

    Args:
        bits: 4, 8, 16 or 32; None for 16, or 32 where the device or the model asks for it.
        base: The base model.

    Raises:
        ConfigError: The device cannot.
    """
    device = hardware.detect_device()
    usual = hardware.choose_precision("auto", device)
    if bits == 4:
        return Placement(device, usual, FourBit())
    if bits == 8:
        return Placement(device, usual, eight_bit=True)
    if bits == 32:
        return Placement(device, "fp32")
    if bits == 16 and usual == "fp32":
        remedy = "Leave --bits out, or use 32."
        raise ConfigError.single("--bits", bits, f"{device.name} has no fast 16-bit arithmetic.", remedy)
    placement = Placement(device, usual)
    return placement if bits == 16 else as_stored(placement, base)


def _limits_of(given: argparse.Namespace) -> Limits:
    """The limits on a command line.

    Args:
        given: The command line.

    Raises:
        ConfigError: One is not above zero, or not finite.
    """
    chosen: dict[str, Any] = {name: getattr(given, name) for name in _LIMITS}
    for name, value in chosen.items():
        if not 0 < value < math.inf and not (name == "max_queue" and value == 0):
            raise ConfigError.single(_flag(name), value, "is no number above zero.", _ABOVE_ZERO)
    return Limits(**chosen)


def _parser() -> argparse.ArgumentParser:
    """What the command line may say."""
    parser = argparse.ArgumentParser(
        prog="python -m thriftune.inference.serve",
        description="Serve a base model and adapters on it over HTTP, as OpenAI's clients ask. The request's `model` "
        f"is the name of an adapter, or `{BASE}`.",
        epilog="docs/serving-http.md has the endpoints, the limits and the manifests.",
    )
    add = parser.add_argument
    add("--base", type=Path, required=True, metavar="DIR", help="the base model: safetensors with its tokenizer")
    add(
        "--adapters",
        nargs="*",
        action="extend",
        default=[],
        metavar="NAME=DIR",
        help="adapters on it, each under a name of its own",
    )
    add("--bits", type=int, choices=(4, 8, 16, 32), help="how the base is held; usual: as stored and as the device can")
    _add_own(parser)
    _add_manifest(parser.add_argument_group("a cluster's manifests, instead of serving"))
    limits = parser.add_argument_group("limits")
    for limit in fields(Limits):
        usual = limit.default
        kind = type(usual)
        shown = str(usual) if kind is int else f"{usual:g}"
        text = f"{_LIMITS[limit.name]} (default {shown})"
        limits.add_argument(_flag(limit.name), type=kind, default=usual, metavar="N", help=text)
    return parser


def _add_own(group: argparse._ActionsContainer) -> None:
    """What only a server on this machine needs to know.

    Args:
        group: Gets the options.
    """
    add = group.add_argument
    add("--host", default=_HOST, help=f"address to listen on (default {_HOST}: this machine alone)")
    add("--port", type=_port, default=_PORT, help=f"port to listen on (default {_PORT}; 0: any free one)")
    key = group.add_mutually_exclusive_group()
    key.add_argument("--api-key-file", type=Path, metavar="FILE", help="holds the key that clients have to send")
    key.add_argument("--no-api-key", action="store_true", help="everybody who reaches --host may ask")
    add("--threads", type=int, help="threads that compute on the CPU (default: torch's)")


def _add_manifest(group: argparse._ActionsContainer) -> None:
    """What `--manifest` needs to know beside what is served.

    Args:
        group: Gets the options.
    """
    add = group.add_argument
    add("--manifest", choices=("k8s",), help="write a Deployment and a Service to standard output, and end")
    add("--files", metavar="PLACE", help="where the pods find the files: claim:NAME, or the URL of a folder")
    add(
        "--folders",
        nargs="*",
        action="extend",
        default=[],
        metavar="NAME=PATH",
        help="folders there (default: base, and the names)",
    )
    add("--engine", choices=("vllm", "own"), default="vllm", help="vLLM in its own image (default), or this server")
    add("--image", default="", help="this project's image, for this server or to bring files from a URL")
    add("--device", help="kind of device, such as T4 (default: the cheapest that holds it)")
    add("--instance", help="node type, such as g4dn.xlarge")
    add("--name", default="adapters", help="name of the Deployment and the Service (default adapters)")
    add("--secret", default="thriftune-serving", help="Secret with the key `api-key` (default thriftune-serving)")
    add("--service-account", default="", help="account of the pods, by which a store knows them")
    add("--replicas", type=int, default=1, help="number of pods (default 1)")


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text} is no port: 0 to 65535")
    return int(text)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


if __name__ == "__main__":
    sys.exit(main())
