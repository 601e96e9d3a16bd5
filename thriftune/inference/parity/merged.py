"""Whether a merged model is the adapter on its base: the same next tokens and answers, before anything is exported."""

from pathlib import Path
from typing import Any

from thriftune.data.questions import prompt_style
from thriftune.inference.parity import checking, reference, rows
from thriftune.inference.parity.allowed import ALLOWED
from thriftune.inference.parity.report import Parity
from thriftune.models.adapter_weights import attach
from thriftune.models.completeness import load_causal_lm
from thriftune.models.tokenizer import load_tokenizer

_KIND = "merged"


def check(base: Path, adapter: Path, merged: Path) -> Parity:
    """Compare a merged model with the adapter on its base, on the general questions.

    Args:
        base: The base model.
        adapter: The adapter.
        merged: Their sum.
    """
    room = reference.free_bytes()
    dtype, remark = reference.held_in(base, room)
    if dtype is None:
        return Parity(_KIND, [], remarks=[remark])
    tokenizer = load_tokenizer(base, padding_side="left")
    asked = rows.of_general(tokenizer, prompt_style(adapter, tokenizer))
    adapted: Any = attach(load_causal_lm(base, dtype=dtype), adapter)
    trained = reference.of_model(adapted.eval(), tokenizer, asked)
    del adapted  # one model is in memory at a time
    summed: Any = load_causal_lm(merged, dtype=dtype)
    return checking.run(trained, summed.eval(), tokenizer, ALLOWED[_KIND], Parity(_KIND, []))
