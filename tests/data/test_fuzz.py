"""Generated rows and files: whatever is in them, each row is trained on, refused by its number, or counted as dropped."""

import copy
import json
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from thriftune.config import DataConfig
from thriftune.data.conversion import Batch, Converter
from thriftune.data.formats import FORMATS
from thriftune.data.readers import count_rows, read_file
from thriftune.data.sources import NumberedRow
from thriftune.data.tokenization import IGNORED

PLACE = "rows.jsonl"
# It writes everything that a conversation may have, so that rows with tools come through.
CHAT_TEMPLATE = (
    "{% if tools %}{{ '<s>tools\n' + (tools | tojson) + '</s>' }}{% endif %}"
    "{% for m in messages %}{{ '<s>' + m.role + '\n' + m.content }}"
    "{% for call in m.tool_calls %}{{ call.function.name + (call.function.arguments | tojson) }}{% endfor %}"
    "{{ '</s>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
CONFIGS = {
    **{name: {"format": name} for name in FORMATS},
    "template": {"format": "template", "template": "{a}\n{b} {a}{c}", "trained_fields": ("b", "c")},
    "text in blocks": {"format": "text", "packing": True},
    "alpaca renamed": {"format": "alpaca", "columns": {"instruction": "prompt", "output": "completion"}},
    "chat with special tokens": {"format": "chat", "special_tokens": "keep"},
    "all trained": {"format": "prompt_completion", "train_on_inputs": True, "special_tokens": "keep"},
}

# Texts: mostly such as people write, with all that must not pass strewn in.
ODDITIES = ("\0", "\ud83d", "\udcff", "😀", "é", "</s>", "<s>", "<pad>", "<", "{}", "{a}", "{{", "\u2028", "\ufeff", "\r\n", "\\")
texts = st.one_of(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=12),
    st.sampled_from(["hi", "What is it?", "yes. " * 30, "", " ", "\n\t\u3000", "1", '{"a": 1}', "[", "null"]),
    st.lists(st.one_of(st.sampled_from(ODDITIES), st.text(max_size=4)), min_size=1, max_size=4).map("".join),
)
plain = st.text(st.characters(min_codepoint=32, max_codepoint=0x17F, exclude_characters="<"), min_size=1, max_size=30)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts)
values = st.recursive(
    scalars, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)), max_leaves=6
)


def mostly(good):
    """What belongs there, three times out of four."""
    return st.one_of(good, good, good, values)


calls = st.lists(
    mostly(
        st.fixed_dictionaries(
            {"function": mostly(st.fixed_dictionaries({"name": mostly(plain)}, optional={"arguments": values}))},
            optional={"id": texts, "type": st.just("function")},
        )
    ),
    max_size=2,
)
messages = st.one_of(
    st.lists(
        mostly(
            st.fixed_dictionaries(
                {"role": st.sampled_from(["system", "user", "assistant", "tool", "human", ""]), "content": mostly(plain)},
                optional={"name": values, "tool_calls": mostly(calls), "tool_call_id": values, "other": values},
            )
        ),
        max_size=4,
    ),
    # In order, so that most are rendered.
    st.lists(st.tuples(mostly(plain), mostly(plain)), min_size=1, max_size=2).map(
        lambda pairs: [
            {"role": role, "content": content}
            for pair in pairs
            for role, content in zip(("user", "assistant"), pair, strict=True)
        ]
    ),
    st.tuples(plain, calls, mostly(plain), plain).map(
        lambda parts: [
            {"role": "user", "content": parts[0]},
            {"role": "assistant", "content": None, "tool_calls": parts[1]},
            {"role": "tool", "content": parts[2]},
            {"role": "assistant", "content": parts[3]},
        ]
    ),
)
conversations = st.lists(st.tuples(mostly(plain), mostly(plain)), min_size=1, max_size=2).map(
    lambda pairs: [turn for ask, say in pairs for turn in ({"from": "human", "value": ask}, {"from": "gpt", "value": say})]
)
columns = {
    **{name: mostly(plain) for name in ("instruction", "output", "prompt", "completion", "text", "quote", "author")},
    **{name: mostly(plain) for name in ("sentence", "a", "b", "c", "input")},
    "corrections": mostly(st.lists(mostly(plain), max_size=3)),
    "messages": mostly(messages),
    "conversations": mostly(conversations),
    "tools": st.one_of(st.none(), st.none(), values, st.lists(st.dictionaries(plain, values), max_size=2).map(json.dumps)),
}
