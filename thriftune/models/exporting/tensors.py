"""The weights of a model directory, each read when it is asked for: memory does not grow with the model."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from thriftune.models.weight_files import Folder, Shapes, weights_in

if TYPE_CHECKING:
    import torch

_OTHERS = ("consolidated", "adapter_model")  # safetensors that transformers does not read


class StoredTensors:
    """The tensors in a model's safetensors, mapped into memory. Used as a context manager."""

    def __init__(self, model_dir: Path) -> None:
        """Look at the headers of the files.

        Args:
            model_dir: Model directory.

        Raises:
            ModelSourceError: Files are missing or damaged.
        """
        weights = weights_in(Folder(model_dir), str(model_dir))
        found = sorted(model_dir.glob("*.safetensors"))
        self._files = [file for file in found if file.name not in weights.unread and not file.name.startswith(_OTHERS)]
        self.shapes: Shapes = weights.shapes
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

    def rows(self, name: str) -> Any:
        """A tensor of which only the rows that are asked for are read: `rows(name)[3:9]`.

        Args:
            name: Its name in the files.
        """
        return self._of[name].get_slice(name)
