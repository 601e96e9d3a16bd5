"""A tiny tokenizer, model and dataset, made offline in seconds: what tests run on in place of downloads."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thriftune.config import RunConfig

# Before torch is in memory, here and in every process that a test starts: models this small are slower on several
# threads, and far slower where others want the processors too.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with tests that take long come first: the last file of a process is then a short one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


LLAMA_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
)
SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>")

_SUBJECTS = ("red", "blue", "green", "gold", "grey", "pink", "white", "black", "brown", "violet")
_OBJECTS = ("the sky", "a stone", "the sea", "an apple", "the moon", "a cat")
_SENTENCES = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "The quick brown fox jumps over the lazy dog while the cat sleeps in the sun.",
    "What is the capital of France? The capital of France is Paris, on the river Seine.",
    "Two and two are four, and four and four are eight.",
    "A model learns to answer questions from examples of questions and answers.",
)


def chat_rows() -> list[dict[str, Any]]:
    """Sixty different questions, each with its own answer."""
    pairs = [
        (f"What colour is {thing} on day {day}?", f"On day {day}, {thing} is {colour}.")
        for day, colour in enumerate(_SUBJECTS)
        for thing in _OBJECTS
    ]
    return [
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}
        for question, answer in pairs
    ]


def write_jsonl(file: Path, rows: list[dict[str, Any]]) -> Path:
    """Write one JSON object per line."""
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def llama_tokenizer() -> Any:
    """A byte-level BPE as Llama's: BOS before every text, no EOS after it, and a chat template that alternates."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [message["content"] for row in chat_rows() for message in row["messages"]]
    tokenizer.train_from_iterator([*_SENTENCES, *texts], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=LLAMA_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(llama_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the Llama-style tokenizer and nothing else."""
    directory = tmp_path_factory.mktemp("tiny-tokenizer")
    llama_tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def tiny_model_dir(llama_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of 140 thousand weights in fp32, as safetensors with its tokenizer. Never write into it."""
    directory = tmp_path_factory.mktemp("tiny-model")
    save_tiny_llama(directory, llama_tokenizer)
    return directory


def save_tiny_llama(directory: Path, tokenizer: Any) -> None:
    """Save a random Llama of 140 thousand weights with a tokenizer, of whatever vocabulary."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_num_threads(1)  # a model this small is slower on several, and far slower on busy ones
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).float().save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@pytest.fixture(scope="session")
def chat_rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of sixty chat rows."""
    return write_jsonl(tmp_path_factory.mktemp("rows") / "chat.jsonl", chat_rows())


def run_dict(method: str = "full", **overrides: Any) -> dict[str, Any]:
    """A complete run file as YAML would give it; dictionaries in `overrides` are merged into the sections."""
    base: dict[str, Any] = {
        "name": "tiny",
        "method": method,
        "model": {"source": "owner/tiny"},
        "data": {"source": "rows.jsonl", "format": "chat", "max_length": 64, "validation_share": 0.1},
        "hardware": {"device": "CPU"},
        "training": {"global_batch": 4, "micro_batch": 2, "max_steps": 2},
    }
    return _merged(base, overrides)


def _merged(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in overrides.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


@pytest.fixture
def run_config() -> Callable[..., RunConfig]:
    """Make a valid run from overrides: `run_config(method="qlora", training={"micro_batch": 1})`."""

    def make(method: str = "full", **overrides: Any) -> RunConfig:
        return RunConfig.model_validate(run_dict(method, **overrides))

    return make


@pytest.fixture
def run_file() -> Callable[..., dict[str, Any]]:
    """Make the content of a run file, valid or not, from overrides."""
    return run_dict


@pytest.fixture
def random_adapter(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., Path]:
    """Make an adapter of the tiny model that changes what it says, as a finished directory."""

    def make(seed: int, rank: int = 4) -> Path:
        import torch
        from peft import get_peft_model
        from transformers import AutoModelForCausalLM

        from thriftune import artifacts
        from thriftune.config import LoraConfig
        from thriftune.methods.adapters import peft_config

        base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype="float32")
        model = get_peft_model(base, peft_config(LoraConfig(rank=rank, alpha=2 * rank, dropout=0.0)))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_" in name:  # B starts as zeros, and an adapter with it does nothing
                    weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))
        directory = tmp_path / f"adapter-{seed}"
        model.save_pretrained(directory)
        content = {"config": {"name": "random"}, "plan": {}, "dataset_fingerprint": "f", "training": {}}
        artifacts.write_manifest(directory, "adapter", content)
        return directory

    return make
