"""An answer to a task of lm-evaluation-harness ends where the chat template ends a turn, and not only at EOS."""

import copy

import torch
from lm_eval.api.instance import Instance
from transformers import LlamaConfig, LlamaForCausalLM

from thriftune.inference.benchmarks.harness_model import MeasuredModel

TURN = "<|turn|>"
TEMPLATE = "{% for m in messages %}{{ m.content }}" + TURN + "{% endfor %}"


def says_a_and_ends_its_turn(size: int, a: int, end: int) -> LlamaForCausalLM:
    """A model of which the likeliest token after `a` is `end`, and after any other `a`."""
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=size, eos_token_id=2, max_position_embeddings=64, **shape)).eval()
    for name, weights in model.named_parameters():
        weights.data.fill_(1.0 if "norm" in name else 0.0)
    into, out = model.model.embed_tokens.weight.data, model.lm_head.weight.data
    into[:, 0], into[a] = 1.0, torch.eye(16)[1]
    out[a, 0], out[end, 1] = 1.0, 1.0
    return model


def test_an_answer_ends_with_its_turn(llama_tokenizer):
    """The base's generation_config lists EOS alone: every answer went on to its longest length, and never stopped."""
    tokenizer = copy.deepcopy(llama_tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [TURN]})
    tokenizer.chat_template = TEMPLATE
    model = says_a_and_ends_its_turn(len(tokenizer), *tokenizer.convert_tokens_to_ids(["a", TURN]))
    measured = MeasuredModel(model, tokenizer, batch=2, max_new_tokens=8, seed=0, positions=64)
    asked = {"until": ["\n"], "max_gen_toks": 8}
    requests = [Instance("generate_until", {}, (text, asked), 0) for text in ("One?", "Two, and three?")]
    assert measured.generate_until(requests) == ["a", "a"]
    assert list(measured.stopped.values()) == [True, True]
