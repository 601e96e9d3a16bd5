"""An export as it will be read: its tokenizer, chat template, stop tokens, settings, weights, and the model itself."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from thriftune.models.chat_template import text_of
from thriftune.models.completeness import load_causal_lm
from thriftune.models.exporting import gguf_architectures, gguf_writing
from thriftune.models.exporting.gguf_reading import GgufFile
from thriftune.models.exporting.tensors import StoredTensors
from thriftune.models.stopping import stop_tokens
from thriftune.models.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


class Candidate(Protocol):
    """A model as files, to be compared with what was trained.

    Attributes:
        gguf: Its GGUF file; None if it is a directory of transformers.
    """

    gguf: Path | None

    @property
    def template(self) -> str:
        """Its chat template; empty if there is none."""

    @property
    def stops(self) -> tuple[int, ...]:
        """The tokens that end an answer."""

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its tokenizer."""

    def plain_text(self, tokens: Sequence[int]) -> list[int]:
        """Of some added tokens, those that are held as text like any other.

        Args:
            tokens: Token ids.
        """

    def config(self, like: "PretrainedConfig") -> "PretrainedConfig":
        """Its configuration.

        Args:
            like: Configuration of what was trained.
        """

    def load(self, like: "PretrainedConfig", dtype: "torch.dtype") -> Any:
        """The model, in evaluation mode.

        Args:
            like: Configuration of what was trained.
            dtype: Type to hold weights in that are not quantized.
        """

    def tensors(self, like: "PretrainedConfig", names: list[str]) -> "Iterator[tuple[str, torch.Tensor]]":
        """Its weights one by one, dequantized, by their names in what was trained; none of packed ones.

        One that is lost is there without values: what is compared by name must not be fewer without a word.

        Args:
            like: Configuration of what was trained.
            names: Names of the weights.
        """


def opened(directory: Path) -> Candidate:
    """An export.

    Args:
        directory: Its directory.
    """
    file = directory / gguf_writing.FILE
    return InGguf(file) if file.is_file() else InDirectory(directory)


class InGguf:
    """A model in a GGUF file."""

    def __init__(self, file: Path) -> None:
        """Read its metadata.

        Args:
            file: The file.
        """
        self.gguf: Path | None = file
        self._file = GgufFile(file)

    @property
    def template(self) -> str:
        """Its chat template; empty if there is none."""
        return self._file.template

    @property
    def stops(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return self._file.stops

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its tokenizer."""
        return self._file.tokenizer()

    def plain_text(self, tokens: Sequence[int]) -> list[int]:
        """Of some added tokens, those that are held as text like any other.

        Args:
            tokens: Token ids.
        """
        return self._file.plain_text(tokens)

    def config(self, like: "PretrainedConfig") -> "PretrainedConfig":
        """Its configuration.

        Args:
            like: Configuration of what was trained.
        """
        return self._file.config(like)

    def load(self, like: "PretrainedConfig", dtype: "torch.dtype") -> Any:
        """The model, in evaluation mode.

        Args:
            like: Configuration of what was trained.
            dtype: Type to hold its weights in.
        """
        model = self._file.load(like, dtype)
        model.generation_config.eos_token_id = list(self.stops)
        return model

    def tensors(self, like: "PretrainedConfig", names: list[str]) -> "Iterator[tuple[str, torch.Tensor]]":
        """Its weights one by one, dequantized.

        Args:
            like: Configuration of what was trained.
            names: Names of the weights there.
        """
        return self._file.tensors(gguf_architectures.tensor_names(like, names), like)


class InDirectory:
    """A model directory of transformers."""

    gguf: Path | None = None

    def __init__(self, directory: Path, *, trust_remote_code: bool = False) -> None:
        """Name it.

        Args:
            directory: The directory.
            trust_remote_code: Run code that its tokenizer and its configuration ship.
        """
        self.directory = directory
        self._trust = trust_remote_code

    @property
    def template(self) -> str:
        """Its chat template; empty if there is none."""
        return text_of(self.tokenizer())

    @property
    def stops(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        from transformers import GenerationConfig

        listed = None
        if (self.directory / "generation_config.json").is_file():
            listed = GenerationConfig.from_pretrained(self.directory).eos_token_id
        return tuple(stop_tokens(self.tokenizer(), listed))

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """Its tokenizer."""
        return load_tokenizer(self.directory, trust_remote_code=self._trust)

    def plain_text(self, tokens: Sequence[int]) -> list[int]:
        """None: what its tokenizer makes of each shows it.

        Args:
            tokens: Token ids.
        """
        return []

    def config(self, like: "PretrainedConfig") -> "PretrainedConfig":
        """Its configuration.

        Args:
            like: Configuration of what was trained.
        """
        return self.own_config()

    def own_config(self) -> "PretrainedConfig":
        """Its configuration, as its files have it."""
        from transformers import AutoConfig

        config: PretrainedConfig = AutoConfig.from_pretrained(
            self.directory, trust_remote_code=self._trust, local_files_only=True
        )
        return config

    def load(self, like: "PretrainedConfig", dtype: "torch.dtype") -> Any:
        """The model, in evaluation mode.

        Args:
            like: Configuration of what was trained.
            dtype: Type to hold weights in that are not quantized.
        """
        model: Any = load_causal_lm(self.directory, dtype=dtype)
        return model.eval()

    def tensors(self, like: "PretrainedConfig", names: list[str]) -> "Iterator[tuple[str, torch.Tensor]]":
        """Its weights one by one; none of a quantized model, whose files hold no values.

        Args:
            like: Configuration of what was trained.
            names: Names of the weights there.
        """
        if getattr(self.config(like), "quantization_config", None) is not None:
            return
        import torch

        with StoredTensors(self.directory) as stored:
            for name in names:
                if name in stored:
                    yield name, stored.get(name)
                elif not gguf_architectures.is_derived(name, like):
                    yield name, torch.empty(0)
