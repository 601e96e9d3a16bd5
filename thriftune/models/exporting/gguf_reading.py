"""Reading a GGUF file as llama.cpp would: configuration, tokenizer and tensors. Parity is measured with these.

transformers' own reader does it (`from_pretrained(gguf_file=...)`). What it leaves out of a file (5.23) is added here,
from what the file itself says: how text is split before BPE where it does not know the name, a space before a text of
sentencepiece's kind, the size of Qwen3's heads, and how positions are scaled.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from thriftune.models import gguf_file
from thriftune.models.completeness import load_checked
from thriftune.models.exporting import gguf_architectures as architectures
from thriftune.models.exporting.gguf_vocabulary import BYTES, NORMAL, split_of

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_SPACE = "\u2581"


class GgufFile:
    """A GGUF file, mapped into memory."""

    def __init__(self, file: Path) -> None:
        """Read its metadata.

        Args:
            file: The file.
        """
        from gguf import GGUFReader

        self._file = file
        self._reader = GGUFReader(file)
        self.architecture = str(self.value("general.architecture"))
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}

    def value(self, key: str, default: Any = None) -> Any:
        """What the file says under a key.

        Args:
            key: The key, whole.
            default: What is returned if there is no such key.
        """
        field = self._reader.fields.get(key)
        return default if field is None else field.contents()

    def setting(self, key: str, default: Any = None) -> Any:
        """What the file says under a key of its architecture.

        Args:
            key: The key, without the architecture.
            default: What is returned if there is no such key.
        """
        return self.value(f"{self.architecture}.{key}", default)

    @property
    def template(self) -> str:
        """Its chat template; empty if there is none."""
        return str(self.value("tokenizer.chat_template", ""))

    @property
    def stops(self) -> tuple[int, ...]:
        """The tokens that end an answer: EOS, and what ends a turn where that is another."""
        named = (self.value(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot"))
        return tuple(dict.fromkeys(int(number) for number in named if number is not None))

    def plain_text(self, tokens: Sequence[int]) -> list[int]:
        """Of some tokens, those that are neither control tokens nor a user's, but like any other.

        Args:
            tokens: Token ids.
        """
        kinds = self.value("tokenizer.ggml.token_type", [])
        return [token for token in tokens if kinds[token : token + 1] in ([], [NORMAL])]

    def config(self, like: "PretrainedConfig") -> "PretrainedConfig":
        """The configuration in the file, as transformers reads it, with what that leaves out.

        Args:
            like: The configuration of the model that it was made from; of it, only the scaling of Llama 3's positions
                is taken, and only where the file holds the factors that follow from it.
        """
        from transformers import AutoConfig

        content = gguf_file.config_of(self._file)
        if architectures.ARCHITECTURES[like.model_type].sized_heads:
            content["head_dim"] = int(self.setting("attention.key_length"))
        rope: dict[str, Any] = {"rope_theta": float(content.pop("rope_theta")), "rope_type": "default"}
        if self.setting("rope.scaling.type") == "linear":
            rope |= {"rope_type": "linear", "factor": float(self.setting("rope.scaling.factor"))}
        if self._has_factors_of(like):
            rope = {**dict(like.rope_parameters), "rope_theta": rope["rope_theta"]}
        return AutoConfig.for_model(**content, rope_parameters=rope)

    def _has_factors_of(self, like: "PretrainedConfig") -> bool:
        import numpy as np

        expected, found = architectures.rope_factors(like), self._tensors.get(architectures.ROPE_FACTORS)
        if expected is None or found is None:
            return False
        return found.data.shape == expected.shape and bool(np.allclose(found.data, expected, rtol=1e-5))

    def load(self, like: "PretrainedConfig", dtype: "torch.dtype") -> Any:
        """The model in the file, dequantized.

        Args:
            like: As in `config`.
            dtype: Type to hold it in.

        Raises:
            ModelSourceError: It lacks weights.
        """
        from transformers import AutoModelForCausalLM, GgufConfig

        with gguf_file.alone(self._file) as link, gguf_file.known(self._file):
            model, _ = load_checked(
                AutoModelForCausalLM,
                link.parent,
                self._file.name,
                gguf_file=link.name,
                config=self.config(like),
                quantization_config=GgufConfig(dequantize=True),
                dtype=dtype,
            )
        evaluated: Any = model
        return evaluated.eval()

    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The tokenizer in the file."""
        from tokenizers import normalizers
        from transformers import AutoTokenizer

        with gguf_file.alone(self._file) as link, gguf_file.known(self._file):
            tokenizer: Any = AutoTokenizer.from_pretrained(link.parent, gguf_file=link.name)
        backend = tokenizer.backend_tokenizer
        if self.value("tokenizer.ggml.model") == BYTES:
            backend.pre_tokenizer, backend.model.ignore_merges = split_of(self.value("tokenizer.ggml.pre"))
        else:
            # In llama.cpp a space is put before each text between special tokens, not before the first alone, and
            # before one that begins with a space too.
            marking = [normalizers.Replace(" ", _SPACE)]
            has_prefix = self.value("tokenizer.ggml.add_space_prefix", True)
            prefix = [normalizers.Prepend(_SPACE)] if has_prefix else []
            backend.normalizer, backend.pre_tokenizer = normalizers.Sequence([*prefix, *marking]), None
        return tokenizer  # type: ignore[no-any-return]

    def tensors(self, names: dict[str, str], config: "PretrainedConfig") -> Iterator[tuple[str, "torch.Tensor"]]:
        """The tensors in the file, dequantized one by one, with rows in the model's order.

        Args:
            names: The name in the file of each tensor of the model.
            config: The model's configuration.

        Yields:
            The model's name of each, and its values in 32 bits; none of one that is not there.
        """
        import numpy as np
        import torch
        from gguf import dequantize

        for name, known in names.items():
            found = self._tensors.get(known)
            if found is None:
                yield name, torch.empty(0)
                continue
            values = dequantize(found.data, found.tensor_type)
            order = architectures.row_order(known, values.shape[0], config)
            yield name, torch.from_numpy(np.copy(values if order is None else values[np.argsort(order)]))
