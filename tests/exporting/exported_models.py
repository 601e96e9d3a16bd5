"""Tiny models of every architecture that GGUF files are written of, with the tokenizers that such models have."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
INST = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)
TEXTS = [
    "The quick brown fox jumps over the lazy dog while the cat sleeps in the sun.",
    "What is the capital of France? The capital of France is Paris, on the river Seine.",
    "Two and two are four, and 4 and 4 are 8. In 2026 there were 365 days.",
    "What colour is the sky? On day 3, the sky is blue; the sea is green, an apple is red.",
] * 3
SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.1, "dtype": "float32",
}  # fmt: skip

LLAMA3_ROPE = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "smollm", {"tie_word_embeddings": True}),
    "llama3": ("llama", "llama-bpe", {"rope_parameters": LLAMA3_ROPE}),
    "linear": ("llama", "gpt-2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "mistral": ("mistral", "pieces", {"head_dim": 32, "sliding_window": None}),
    "qwen2": ("qwen2", "qwen2", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    "qwen3": ("qwen3", "qwen2", {"head_dim": 32, "tie_word_embeddings": True}),
}


def bytes_tokenizer(split: str, template: str = CHATML) -> Any:
    """A BPE over bytes as GPT-2's, with ChatML's tokens, which splits text in one of llama.cpp's ways."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from thriftune.models.exporting.gguf_vocabulary import split_of

    pre, is_whole = split_of(split)
    tokenizer = Tokenizer(models.BPE(ignore_merges=is_whole))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre, decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )


def pieces_tokenizer() -> Any:
    """A tokenizer of sentencepiece's kind, as Llama 2 and Mistral have it: bytes for what has no token, BOS first."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    byte_tokens = [f"<0x{number:02X}>" for number in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>", "</s>", *byte_tokens], show_progress=False, max_token_length=8
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    content = json.loads(tokenizer.to_str())
    bytes_are_text = set(byte_tokens)
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in bytes_are_text]
    tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        chat_template=INST,
        clean_up_tokenization_spaces=False,
    )


def save_model(directory: Path, kind: str, tokenizer: Any, changes: Mapping[str, Any] | None = None) -> Path:
    """Save a random model of an architecture, with a tokenizer and the stop tokens of its template."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from thriftune.models.stopping import save_tokenizer

    torch.set_num_threads(1)
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    content = {**SIZES, "vocab_size": len(tokenizer), **ids, **(changes or {})}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **content)).float()
        for name, weight in model.named_parameters():
            if "norm" in name or "bias" in name:  # ones and zeros would hide what is lost of them
                weight.data += 0.1 * torch.randn(weight.shape)
    model.save_pretrained(directory)
    save_tokenizer(tokenizer, directory)
    return directory
