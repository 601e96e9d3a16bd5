"""Which models have an end of positions: those that own a table of them, whatever they are called."""

import pytest
import torch
from test_architecture import SIZES, shape_of

from thriftune.errors import ConfigError
from thriftune.models import architecture
from thriftune.models.positions import answer_room, require_positions, table_length
from thriftune.preflight.base_model import BaseModel, check_length
from thriftune.strategies.memory.activations import StepShape, measure

END = 64
# With how many positions a model of each kind can be asked for END of them.
TABLES = {
    "gpt2": ({"n_positions": END}, END),  # learned
    "opt": ({}, END),  # learned, with two rows beside
    "gpt_neo": ({"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]}, END),
    "gpt_bigcode": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": END}, END),
    "roberta": ({"is_decoder": True, "pad_token_id": 1}, END - 2),  # learned, begins behind the pad token
    "gptj": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": END, "rotary_dim": 4}, END),  # sinuses, a buffer
    "llama": ({}, None),  # rotary
    "gpt_neox": ({}, None),  # rotary
    "bloom": ({}, None),  # ALiBi
    "xglm": ({"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64}, None),  # sinuses, made anew
}


def ending(kind: str) -> architecture.Architecture:
    own = {key: value for key, value in SIZES.items() if key != "max_position_embeddings"}
    changes = {"max_position_embeddings": END, "num_hidden_layers": 2, **TABLES[kind][0]}
    if kind in ("gpt2", "opt", "bloom", "llama"):
        return shape_of(kind, **changes)
    return architecture.from_content({"model_type": kind, **own, **changes}, kind)


@pytest.mark.parametrize("kind", TABLES)
def test_a_model_fails_where_its_table_is_said_to_end(kind):
    """Rows beyond GPT-2's table were a warning, and then an index error."""
    from transformers import AutoModelForCausalLM

    shape, length = ending(kind), TABLES[kind][1]
    assert table_length(shape.skeleton) == length
    model = AutoModelForCausalLM.from_config(shape.config())
    assert table_length(model) == length
    model(input_ids=torch.full((1, length or 2 * END), 5))
    if length is not None:
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, length + 1), 5))


def test_rows_beyond_the_table_are_an_error_and_beyond_rotary_positions_a_warning():
    for kind, code in (("gpt2", "max-length-beyond-table"), ("llama", "max-length-beyond-positions")):
        base = BaseModel(architecture=ending(kind))
        assert [found.code for found in check_length(base, END + 1)] == [code]
        assert list(check_length(base, END)) == []


def test_padding_counts_as_well():
    """A row of 61 tokens is padded to 64; RoBERTa has positions for 62."""
    with pytest.raises(ConfigError, match=r"data.max_length = 61: .*a table of 62.*Use at most 56"):
        require_positions(ending("roberta"), 61)
    require_positions(ending("roberta"), 56)


def test_a_bias_of_fixed_length_is_named_for_what_it_is():
    """MPT has no table and builds its bias for so many positions: its code was said not to be followable."""
    content = {"model_type": "mpt", "d_model": 32, "n_layers": 2, "n_heads": 4, "vocab_size": 96, "max_seq_len": END}
    shape = architecture.from_content(content, "mpt")
    assert measure(shape, StepShape(1, END, False, "fp32")).whole().all > 0
    with pytest.raises(ConfigError, match=f"data.max_length = {END + 8}: mpt was made for {END} positions"):
        measure(shape, StepShape(1, END + 8, False, "fp32"))


def test_an_answer_ends_where_the_table_does():
    model = ending("gpt2").skeleton
    assert answer_room(model, 10, 20) == 20
    assert answer_room(model, 60, 20) == 4
    assert answer_room(ending("llama").skeleton, 60, 20) == 20
    with pytest.raises(ConfigError, match="leaves no room for an answer"):
        answer_room(model, END, 20)
