"""What is wrong with the command line of a server, before a model is loaded: each with field, value and remedy."""

import errno
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from thriftune.config import ModelConfig
from thriftune.config.benchmark_run import problem_of_name
from thriftune.errors import AdapterError, ConfigError
from thriftune.inference.usable import require_usable
from thriftune.models import architecture as architectures
from thriftune.models import classifier, lineage
from thriftune.models import config_json as model_config
from thriftune.models.adapter_weights import config_of
from thriftune.models.completeness import ADAPTER_CONFIG
from thriftune.models.mixed_batch import alone, changes_base
from thriftune.models.positions import table_length

_PREFIXES = ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE")
_BASE, _ADAPTERS = "--base", "--adapters"
_LOCAL = ("127.0.0.1", "localhost", "::1")
_UNREAD_BYTES = 1 << 16  # what the kernel keeps for a client that does not read; else it would be megabytes
_SHORTEST_KEY = 16  # characters; a shorter one is guessed


def adapters_of(given: Sequence[str]) -> dict[str, Path]:
    """The adapters on a command line.

    Args:
        given: NAME=DIR each.

    Returns:
        Directories by name.

    Raises:
        AdapterError: One is not of that form, has no proper name, or is there twice.
    """
    found: dict[str, Path] = {}
    for entry in given:
        name, equals, place = entry.partition("=")
        if not equals or not place:
            raise AdapterError.single(_ADAPTERS, entry, "is not NAME=DIR.", "Write for example poems=/models/poems.")
        if problem := problem_of_name(name, _ADAPTERS, name):
            raise AdapterError([problem])
        if name in found:
            raise AdapterError.single(_ADAPTERS, name, "is there twice.", "Give each adapter a name of its own.")
        found[name] = Path(place).expanduser()
    return found


def require_servable(model_dir: Path, adapters: Mapping[str, Path]) -> int | None:
    """Refuse a base or an adapter that cannot be served. Reads no weights, except to compare checksums.

    Args:
        model_dir: The base model.
        adapters: Adapter directories by name.

    Returns:
        Length of the base's position table; None if it has none.

    Raises:
        UserError: It is damaged, a classifier, no model, or the adapter is of another base.
    """
    require_usable(model_dir, adapters, fields=(_BASE, _ADAPTERS))
    for name, place in adapters.items():  # again, as it also says where nothing tells
        lineage.require_lineage(place, model_dir, f"{_ADAPTERS} {name}")
    require_on_one_base(adapters)
    content = model_config.read(ModelConfig(source=str(model_dir)), token=None)
    return table_length(architectures.from_content(content, str(model_dir)).skeleton)


def require_on_one_base(adapters: Mapping[str, Path]) -> None:
    """Refuse adapters that this server cannot have on its one copy of the base.

    Args:
        adapters: Adapter directories by name.

    Raises:
        AdapterError: Names the adapter.
    """
    _require_one_type(adapters)
    _require_unchanged_base(adapters)


def _require_one_type(adapters: Mapping[str, Path]) -> None:
    """Refuse trained prefixes, which the decoder does not know, and adapters that peft cannot put on one model.

    Args:
        adapters: Adapter directories by name.

    Raises:
        AdapterError: Names the adapter.
    """
    types = {name: classifier.content_of(place, ADAPTER_CONFIG).get("peft_type") for name, place in adapters.items()}
    for name, kind in types.items():
        field, first = f"{_ADAPTERS} {name}", next(iter(types))
        if kind in _PREFIXES:
            message = f"is of type {kind}, whose trained prefix the server cannot decode beside others."
            raise AdapterError.single(field, adapters[name], message, "Answer with workflows/generate.py.")
        if kind != types[first]:
            message = f"is of type {kind}, and {first} of type {types[first]}: peft has one type on a model."
            raise AdapterError.single(field, adapters[name], message, "Start a server for each type.")


def _require_unchanged_base(adapters: Mapping[str, Path]) -> None:
    """Refuse adapters that change the base for the others on it, or for who asks the base: there is one copy of it.

    Args:
        adapters: Adapter directories by name.

    Raises:
        AdapterError: Names the adapter.
    """
    for name, place in adapters.items():
        field = f"{_ADAPTERS} {name}"
        config = config_of(place, field)
        reason = alone(config) if len(adapters) > 1 else changes_base(config)
        if reason:
            message = f"needs a copy of the base for itself: {reason}."
            remedy = "Merge it into the model and serve that, or answer with workflows/generate.py."
            raise AdapterError.single(field, place, message, remedy)


def listen(host: str, port: int, *, has_key: bool, is_open: bool) -> socket.socket:
    """Take the address of a server.

    Args:
        host: Address or name to listen on.
        port: The port; 0 for any free one.
        has_key: Whether clients need a key.
        is_open: Whether everybody may ask, as somebody has said.

    Returns:
        The bound socket.

    Raises:
        ConfigError: It is taken or there is none such, or others than this machine could ask without a key.
    """
    if host not in _LOCAL and not has_key and not is_open:
        message = "is reached from other machines, and there is no key."
        raise ConfigError.single("--host", host, message, "Add --api-key-file FILE, or --no-api-key if all may ask.")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except (OSError, UnicodeError) as error:
        raise ConfigError.single("--host", host, f"is no address ({error}).", "Name one of this machine.") from error
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNREAD_BYTES)  # connections inherit it
    try:
        listening.bind((host, port))
        listening.listen()  # what is bound, but does not listen, another server could still take
    except OSError as error:
        listening.close()
        field, value = "--port", str(port)
        remedy = "Choose another one, or end the program that has it."
        if error.errno == errno.EADDRNOTAVAIL:
            field, value, remedy = "--host", host, "Name an address of this machine."
        raise ConfigError.single(field, value, f"cannot be listened on ({error.strerror}).", remedy) from error
    return listening


def key_in(file: Path) -> bytes:
    """The key that clients have to send.

    Args:
        file: Holds it, and nothing else.

    Raises:
        ConfigError: The file cannot be read, or holds no proper key. The message does not show it.
    """
    field = "--api-key-file"
    try:
        key = file.read_bytes().strip()
    except OSError as error:
        raise ConfigError.single(field, file, f"cannot be read ({error.strerror}).", "Name a file.") from error
    if not key:
        raise ConfigError.single(field, file, "is empty: everybody would have that key.", "Write a key into it.")
    if len(key) < _SHORTEST_KEY or not all(33 <= byte <= 126 for byte in key):
        message = f"does not hold one line of at least {_SHORTEST_KEY} letters, digits and signs."
        raise ConfigError.single(
            field, file, message, "Make one: python -c 'import secrets; print(secrets.token_hex())'"
        )
    return key
