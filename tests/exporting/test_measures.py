"""What is measured of an export: how, of how much, and by which limits."""

from dataclasses import replace

import pytest
import torch

from exporting.exported_models import bytes_tokenizer, save_model
from thriftune.inference.parity import checking, differences, llama_cpp, outputs, reference, rows
from thriftune.inference.parity.allowed import ALLOWED, fewest_stopping
from thriftune.models.exporting import exports
from thriftune.models.exporting.reading import opened
from thriftune.models.tokenizer import load_tokenizer


def reference_of(directory) -> reference.Reference:
    asked = rows.of_pairs([("What is it?", "Four.")], load_tokenizer(directory), "chat")
    return reference.of_directory(directory, asked)


@pytest.mark.parametrize(
    ("stopped", "lost", "fewest"),
    [(8, 0.0, 8), (8, 0.05, 6), (8, 0.25, 3), (8, 0.5, 1), (4, 0.25, 1), (3, 0.25, 0), (1, 0.05, 0), (0, 0.25, 0)],
)
def test_answers_fail_an_export_only_where_chance_would_rarely_do_it(stopped, lost, fewest):
    """A fall by three of eight failed a sound export about once in ten times, where half of the answers stop."""
    assert fewest_stopping(stopped, lost) == fewest


def test_a_long_prompt_is_not_answered_where_there_are_shorter_ones(model_of, monkeypatch):
    """Eight prompts of thousands of tokens took an hour, and memory that nobody asked for."""
    model = opened(model_of("qwen2")).load(None, torch.float32)
    trained = reference_of(model_of("qwen2"))
    asked = replace(trained.asked, prompts=("Why?", "What is it, then?" * 3))
    monkeypatch.setattr(reference, "LONGEST_ANSWER", 2)
    monkeypatch.setattr(reference, "_LONGEST_PROMPT", 1)
    assert reference.which_stop(model, load_tokenizer(model_of("qwen2")), asked) == [False, None]
    was = replace(trained, stopped=[False, True])
    assert checking._stopping(was, [False, None], ALLOWED["fp32"]).text == ("0", "at least 0")
    assert checking._stopping(was, [None, None], ALLOWED["fp32"]).text[0] == "not measured"


def test_weights_that_bitsandbytes_joins_are_no_silent_omission(model_of, tmp_path):
    experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
    directory = save_model(tmp_path / "model", "mixtral", bytes_tokenizer("gpt-2"), experts)
    was = reference_of(directory)
    (tmp_path / "export").mkdir()
    exports.write("int8", directory, tmp_path / "export", "m", 1.0)
    (remark,) = checking.check(was, tmp_path / "export", "int8").remarks
    assert remark.startswith("14 of 29 weights, such as model.layers.0.block_sparse_moe.experts.0.w1.weight, are held")


def test_the_error_of_a_weight_is_the_same_in_parts(monkeypatch):
    trained, found = torch.randn(7, 5), torch.randn(7, 5)
    whole = differences.relative_error(trained, found)
    monkeypatch.setattr(differences, "_PART", 4)
    assert differences.relative_error(trained, found) == pytest.approx(whole)
    assert whole == pytest.approx(float((found - trained).norm() / trained.norm()), rel=1e-5)
    assert differences.relative_error(torch.zeros(3), torch.ones(3)) == pytest.approx(3**0.5)


def test_of_a_long_row_the_first_tokens_are_compared(monkeypatch):
    """A packed row of 4,096 tokens took gigabytes beyond what the pod had."""
    monkeypatch.setattr(outputs, "_KEPT_BYTES", 4 * 100 * 3)
    long, short = rows.Row(tuple(range(9)), tuple(range(2, 9))), rows.Row((1, 2), (1,))
    assert outputs.first_tokens([long, short], 100) == [rows.Row((0, 1, 2, 3, 4), (2, 3, 4))]
    assert outputs.first_tokens([short, long], 100) == [short]


def test_no_numbers_are_made_before_the_first_compared_token(model_of):
    model, made = opened(model_of("qwen2")).load(None, torch.float32), []
    row = rows.Row((5, 6, 7, 8, 9), (3, 4))
    hook = model.lm_head.register_forward_hook(lambda _module, _given, found: made.append(found.shape[1]))
    (skipping,) = outputs.log_probabilities(model, [row])
    hook.remove()
    (whole,) = outputs.log_probabilities(Plain(model), [row])
    assert made == [3]
    torch.testing.assert_close(skipping, whole)


class Plain(torch.nn.Module):
    """A model that cannot be asked for a part of its numbers."""

    def __init__(self, model) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids):
        return self.model(input_ids=input_ids)


def test_a_model_in_16_bits_is_computed_in_32(model_of):
    """A bf16 result is compared without the noise of products in bf16."""
    directory = model_of("llama")
    tokenizer = load_tokenizer(directory)
    asked = rows.of_pairs([("What is two and two?", "Two and two are four.")], tokenizer, "chat")
    was = reference.of_directory(directory, asked)
    room = 1.25 * 3 * reference.parameters_in(directory) + (3 << 29)
    half = reference.of_directory(directory, asked, room=room)
    assert (was.dtype, half.dtype) == (torch.float32, torch.float16)
    assert half.likely is not None
    torch.testing.assert_close(half.likely[0], was.likely[0], atol=5e-3, rtol=0)


def test_an_export_of_which_no_number_was_compared_does_not_pass(model_of, tmp_path):
    directory = model_of("qwen2")
    tokenizer = load_tokenizer(directory)
    asked = rows.of_pairs([("What is two and two?", "Four.")], tokenizer, "chat")
    exports.write("nf4", directory, tmp_path, "m", 1.0)
    found = checking.check(reference.of_directory(directory, asked, room=1e6), tmp_path, "nf4")
    assert [difference.what for difference in found.differences] == ["weights"]
    assert "nothing of its numbers could be compared" in found.sentence
    untrained = replace(asked, rows=tuple(replace(row, trained=()) for row in asked.rows))
    found = checking.check(reference.of_directory(directory, untrained), tmp_path, "nf4")
    assert "outputs" in {difference.what for difference in found.differences}, "an agreement of no tokens"


def test_a_file_that_llama_cpp_cannot_read_is_a_difference(model_of, tmp_path):
    """Only where its Python package is installed, which is no dependency."""
    pytest.importorskip("llama_cpp")
    trained = reference_of(model_of("qwen2"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    found = llama_cpp.run(tmp_path / "model.gguf", trained.tokenizer, trained.asked, [], [], 1, 0.1)
    assert isinstance(found, differences.Difference)
    assert found.what == "llama.cpp"
