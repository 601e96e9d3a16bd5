"""DeepSpeed configurations by name, read as package data so that they are part of the image and the upload."""

import json
from importlib import resources
from typing import Any


def names() -> list[str]:
    """The names that `load` accepts."""
    files = resources.files(__name__).iterdir()
    return sorted(f.name.removesuffix(".json") for f in files if f.name.endswith(".json"))


def load(name: str) -> dict[str, Any]:
    """The configuration in `<name>.json`.

    Args:
        name: File name without its ending.

    Returns:
        The parsed file.

    Raises:
        FileNotFoundError: There is no such file; the message lists the names.
        ValueError: The file is not a JSON object; the message says where.
    """
    file = resources.files(__name__) / f"{name}.json"
    if not file.is_file():
        raise FileNotFoundError(f"deepspeed_configs/ has no {name}.json. The names are {', '.join(names())}.")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"deepspeed_configs/{name}.json is not valid JSON: {error}.") from error
    if not isinstance(config, dict):
        raise ValueError(f"deepspeed_configs/{name}.json holds a {type(config).__name__}, not an object.")
    return config
