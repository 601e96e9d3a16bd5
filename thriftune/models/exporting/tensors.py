"""The weights of a model directory, each read when it is asked for: memory does not grow with the model."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from thriftune.models.weight_files import Folder, Shapes, files_to_read, weights_in

if TYPE_CHECKING:
    import torch


class StoredTensors:
    """The tensors in a model's safetensors, mapped into memory. Used as a context manager."""

    def __init__(self, model_dir: Path) -> None:
        """Look at the headers of the files.

        Args:
            model_dir: Model directory.

        Raises:
            ModelSourceError: Files are missing or damaged.
        """
        folder = Folder(model_dir)
        self.shapes: Shapes = weights_in(folder, str(model_dir)).shapes
        self._files = [model_dir / name for name in files_to_read(folder, str(model_dir))]
        self._stack = ExitStack()
        self._of: dict[str, Any] = {}

    def __enter__(self) -> Self:
        from safetensors import safe_open

        for file in self._files:
            content: Any = self._stack.enter_context(safe_open(file, framework="pt"))
            self._of |= dict.fromkeys(content.keys(), content)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __contains__(self, name: str) -> bool:
        return name in self._of

    def get(self, name: str) -> "torch.Tensor":
        """One tensor, as it is stored.

        Args:
            name: Its name in the files.
        """
        tensor: torch.Tensor = self._of[name].get_tensor(name)
        return tensor

    def dtype(self, name: str) -> "torch.dtype":
        """The type of a tensor.

        Args:
            name: Its name in the files.
        """
        # Of no rows, where it has any: nothing is read.
        part = self._of[name].get_slice(name)
        dtype: torch.dtype = (part[:0] if part.get_shape() else part[...]).dtype
        return dtype
