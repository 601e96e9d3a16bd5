"""What a GGUF file says of its model, parsed once.

transformers (5.23) parses the file anew, string by string of the vocabulary, for each thing that it is asked for: three
seconds for configuration, tokenizer and weights each. Here it is parsed once in a process, and what was found is given
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

# What a damaged file ends in: the readers look at little before they use it.
UNREADABLE = (ArithmeticError, LookupError, OSError, RecursionError, ValueError)
# Longer lists are of the tokenizer, which transformers reads by itself; of 49,152 tokens they take 167 MB.
_LONGEST_LIST = 1000
# Values that are read of a file, each an object of Python: a vocabulary of 300,000 tokens and merges takes 2 million.
_MOST_VALUES = 10_000_000


@dataclass(frozen=True)
class _Parsed:
    """What a file says of itself.

    Attributes:
        config: As that of a config.json.
        license: Empty where it says none.
        reader: For transformers, to find the weights with.
    """

    config: dict[str, Any]
    license: str
    reader: Any


def config_of(file: Path) -> dict[str, Any]:
    """The configuration in a GGUF file, as that of a config.json.

    Args:
        file: The file.

    Raises:
        ValueError: It is no GGUF file, or of an unknown architecture; or another of `UNREADABLE`.
    """
    return copy.deepcopy(_parsed(file).config)


def license_of(file: Path) -> str:
    """What a GGUF file says of its license; an empty text where it says nothing.

    Args:
        file: The file.
    """
    return _parsed(file).license


def save_tokenizer(file: Path, directory: Path) -> None:
    """Write the tokenizer in a GGUF file as that of a model directory.

    Args:
        file: The file.
        directory: Where to write to.
    """
    from transformers import AutoTokenizer

    with alone(file) as link, known(file):
        AutoTokenizer.from_pretrained(link.parent, gguf_file=link.name).save_pretrained(directory)


def known(file: Path) -> AbstractContextManager[None]:
    """Have transformers take a file as it was parsed.

    Args:
        file: The file.
    """
    return _reading_with(_parsed(file).reader)


@contextmanager
def alone(file: Path) -> Iterator[Path]:
    """The same file in a folder of its own: transformers would read an adapter or a tokenizer that lie beside it.

    Args:
        file: The file.
    """
    with tempfile.TemporaryDirectory() as scratch:
        link = Path(scratch) / file.name
        link.symlink_to(file.resolve())
        yield link


def _parsed(file: Path) -> _Parsed:
    status = file.stat()
    return _parse(file.resolve(), status.st_size, status.st_mtime_ns)


@functools.lru_cache(maxsize=1)
def _parse(file: Path, size: int, changed_ns: int) -> _Parsed:  # noqa: ARG001 - by which a changed file is another
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    reader = _opened(file)
    with _reading_with(reader):
        config: dict[str, Any] = load_gguf_checkpoint(str(file), return_tensors=False)["config"]  # type: ignore[no-untyped-call]
    field = reader.fields.get("general.license")
    for name in [name for name, field in reader.fields.items() if len(field.data) > _LONGEST_LIST]:
        del reader.fields[name]
    return _Parsed(config, str(field.contents()) if field is not None else "", reader)


def _opened(file: Path) -> Any:
    """The reader of gguf (0.19), which would go on for ever where a list is longer than the file."""
    from gguf import GGUFReader

    class Bounded(GGUFReader):
        read = 0

        def _get(self, offset: int, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
            self.read += 1
            if self.read > _MOST_VALUES:
                raise ValueError(f"it says more than {_MOST_VALUES:,} values of itself")
            found = super()._get(offset, dtype, count, override_order)
            if len(found) < int(count):
                raise ValueError("it is cut short")
            return found

    return Bounded(file)


@contextmanager
def _reading_with(reader: Any) -> Iterator[None]:
    """Have transformers find this in place of a reader of its own, which it imports when it needs one.

    And the names of tensors, which it has made anew for every module of the model: 10 s for one of 30 layers.

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
