"""The metadata of a GGUF file, parsed once.

transformers (5.23) parses the file again, with every string of the vocabulary, for each thing that it is asked for:
three seconds each for configuration, tokenizer and weights. Here it is parsed once per process, and the result is given
to transformers whenever it asks.
"""

import copy
import functools
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Errors that a damaged file causes: the readers check little before they use it.
UNREADABLE = (ArithmeticError, LookupError, OSError, RecursionError, ValueError)
# Longer lists belong to the tokenizer, which transformers reads by itself; for 49,152 tokens they take 167 MB.
_LONGEST_LIST = 1000
# Values to read from a file, each a Python object: a vocabulary of 300,000 tokens and merges takes 2 million.
_MOST_VALUES = 10_000_000


@dataclass(frozen=True)
class _Parsed:
    """The metadata of a file.

    Attributes:
        config: Its configuration, as in a config.json.
        license: Its license; empty if it names none.
        reader: The reader with which transformers finds the weights.
    """

    config: dict[str, Any]
    license: str
    reader: Any


def config_of(file: Path) -> dict[str, Any]:
    """The configuration in a GGUF file, as in a config.json.

    Args:
        file: The file.

    Raises:
        ValueError: It is not a GGUF file, or its architecture is unknown. Any other error of `UNREADABLE` is possible.
    """
    return copy.deepcopy(_parsed(file).config)


def license_of(file: Path) -> str:
    """The license in a GGUF file; empty if it names none.

    Args:
        file: The file.
    """
    return _parsed(file).license


def save_tokenizer(file: Path, directory: Path) -> None:
    """Write the tokenizer in a GGUF file into a model directory.

    Args:
        file: The file.
        directory: Directory to write to.
    """
    from transformers import AutoTokenizer

    with alone(file) as link, known(file):
        AutoTokenizer.from_pretrained(link.parent, gguf_file=link.name).save_pretrained(directory)


def known(file: Path) -> AbstractContextManager[None]:
    """Make transformers use the parsed file.

    Args:
        file: The file.
    """
    return _reading_with(_parsed(file).reader)


@contextmanager
def alone(file: Path) -> Iterator[Path]:
    """Link the file into its own folder: transformers would read an adapter or a tokenizer that lie next to it.

    Args:
        file: The file.

    Yields:
        The link.
    """
    with tempfile.TemporaryDirectory() as scratch:
        link = Path(scratch) / file.name
        link.symlink_to(file.resolve())
        yield link


def _parsed(file: Path) -> _Parsed:
    status = file.stat()
    return _parse(file.resolve(), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _parse(file: Path, size: int, changed_ns: int) -> _Parsed:  # noqa: ARG001 - so that a changed file is parsed again
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    reader = _opened(file)
    with _reading_with(reader):
        config: dict[str, Any] = load_gguf_checkpoint(str(file), return_tensors=False)["config"]  # type: ignore[no-untyped-call]
    field = reader.fields.get("general.license")
    for name in [name for name, field in reader.fields.items() if len(field.data) > _LONGEST_LIST]:
        del reader.fields[name]
    return _Parsed(config, str(field.contents()) if field is not None else "", reader)


def _opened(file: Path) -> Any:
    """The reader of gguf (0.19), made to stop where a list is longer than the file: it would go on for ever."""
    from gguf import GGUFReader

    class Bounded(GGUFReader):
        read = 0

        def _get(self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
            self.read += 1
            if self.read > _MOST_VALUES:
                raise ValueError(f"it has more than {_MOST_VALUES:,} values of metadata")
            found = super()._get(offset, dtype, count, override_order)
            if len(found) < int(count):
                raise ValueError("it is truncated")
            return found

    return Bounded(file)


@contextmanager
def _reading_with(reader: Any) -> Iterator[None]:
    """Make transformers use this reader instead of its own, which it imports when it needs one.

    Also give it the names of tensors, which it would make again for every module: 10 s for a model of 30 layers.

    Remove when its reader that takes 0.03 s (transformers.integrations.gguf) knows every architecture.
    """
    import gguf

    opened, named = gguf.GGUFReader, gguf.get_tensor_name_map
    gguf.GGUFReader = lambda *_: reader  # type: ignore[misc,assignment]
    gguf.get_tensor_name_map = functools.cache(named)
    try:
        yield
    finally:
        gguf.GGUFReader, gguf.get_tensor_name_map = opened, named  # type: ignore[misc]
