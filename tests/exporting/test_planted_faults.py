"""Faults planted into exports: each fails by its name, and is not published."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from exporting.exported_models import CHATML
from thriftune.data.questions import prompt_style
from thriftune.inference.parity import checking, reference, rows
from thriftune.models.exporting import exports, gguf_architectures
from thriftune.models.exporting.reading import opened
from thriftune.models.tokenizer import load_tokenizer

WEIGHTS = "model.safetensors"
FORMATS = ("gguf-f16", "gguf-q4_0", "fp16", "nf4")


@pytest.fixture(scope="module")
def trained(model_of):
    """What was trained, asked once."""
    made = {}

    def of(name: str) -> reference.Reference:
        if name not in made:
            directory = model_of(name)
            tokenizer = load_tokenizer(directory)
            pairs = [("What is two and two?", "Two and two are four."), ("What colour is the sky?", "It is blue.")]
            asked = rows.of_pairs(pairs, tokenizer, prompt_style(directory, tokenizer))
            made[name] = reference.of_directory(directory, asked)
        return made[name]

    return of


def faulty(trained, model_of, folder: Path, name: str, fault: Callable[[Path], None], kind: str):
    """What parity finds of an export that was made of a model with a fault."""
    copy = shutil.copytree(model_of(name), folder / "model")
    fault(copy)
    made = folder / "export"
    made.mkdir()
    exports.write(kind, copy, made, name, 1.0)
    return checking.check(trained(name), made, kind)


def named(found) -> set[str]:
    assert not found.passes
    return {difference.what for difference in found.differences}


def change_json(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def change_weights(directory: Path, change) -> None:
    weights = load_file(directory / WEIGHTS)
    change(weights)
    save_file({k: v.contiguous() for k, v in weights.items()}, directory / WEIGHTS, metadata={"format": "pt"})


def broken_template(directory: Path) -> None:
    (directory / "chat_template.jinja").write_text(CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant"))


def lost_eos(directory: Path) -> None:
    change_json(directory / "tokenizer_config.json", eos_token="<|endoftext|>")
    change_json(directory / "generation_config.json", eos_token_id=0)


def added_bos(directory: Path) -> None:
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))


def other_merges(directory: Path) -> None:
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    del tokenizer["model"]["merges"][:20]
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))


def lost_token(directory: Path) -> None:
    """The last token is gone, as where a vocabulary is cut."""
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    last = max(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].__getitem__)
    del tokenizer["model"]["vocab"][last]
    merges = tokenizer["model"]["merges"]
    tokenizer["model"]["merges"] = [pair for pair in merges if "".join(pair) != last]
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))


def not_special(directory: Path) -> None:
    """A token that ends turns is text like any other."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = json.loads((directory / name).read_text())
        added = content.get("added_tokens", [])
        content["added_tokens"] = [token for token in added if token["content"] != "<|im_start|>"]
        if name == "tokenizer_config.json":
            content.pop("bos_token", None)
            content.pop("added_tokens_decoder", None)
            content.pop("added_tokens", None)
        (directory / name).write_text(json.dumps(content))


def swapped_layers(directory: Path) -> None:
    def swap(weights):
        first, second = "model.layers.0.", "model.layers.1."
        for name in [name for name in weights if name.startswith(first)]:
            other = name.replace(first, second)
            weights[name], weights[other] = weights[other], weights[name]

    change_weights(directory, swap)


def wrong_theta(directory: Path) -> None:
    change_json(directory / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 1234.0})


def wrong_epsilon(directory: Path) -> None:
    change_json(directory / "config.json", rms_norm_eps=1e-2)


def lost_bias(directory: Path) -> None:
    change_weights(directory, lambda weights: weights["model.layers.1.self_attn.k_proj.bias"].zero_())


def tripled_head(directory: Path) -> None:
    change_weights(directory, lambda weights: weights["lm_head.weight"].mul_(3.0))


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(
    ("fault", "name", "what"),
    [
        (broken_template, "llama", "template"),
        (lost_eos, "llama", "eos"),
        (added_bos, "llama", "bos"),
        (other_merges, "llama", "tokens"),
        (lost_token, "llama", "vocabulary"),
        (swapped_layers, "llama", "weights"),
        (wrong_theta, "qwen2", "settings"),
        (wrong_epsilon, "qwen2", "settings"),
        (lost_bias, "qwen2", "weights"),
        (tripled_head, "qwen2", "weights"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_fault_is_named(trained, model_of, tmp_path, fault, name, what, kind):
    assert what in named(faulty(trained, model_of, tmp_path, name, fault, kind))


def test_queries_and_keys_in_the_order_of_transformers_are_named(trained, model_of, tmp_path, monkeypatch):
    """The usual fault of a converter: rows of queries and keys as transformers has them."""
    real = gguf_architectures.row_order
    monkeypatch.setattr(gguf_architectures, "row_order", lambda *_: None)
    exports.write("gguf-f16", model_of("llama3"), tmp_path, "m", 1.0)
    monkeypatch.setattr(gguf_architectures, "row_order", real)
    found = checking.check(trained("llama3"), tmp_path, "gguf-f16")
    assert {"weights", "outputs"} <= named(found)
    (weights,) = [difference.detail for difference in found.differences if difference.what == "weights"]
    assert weights.startswith("4 of 21 tensors differ")
    assert "self_attn.k_proj.weight" in weights


def test_wrongly_quantized_weights_are_named(trained, model_of, tmp_path):
    from gguf import GGUFReader

    exports.write("gguf-q8_0", model_of("qwen2"), tmp_path, "m", 1.0)
    reader = GGUFReader(tmp_path / "model.gguf", "r+")
    (tensor,) = [tensor for tensor in reader.tensors if tensor.name == "blk.0.ffn_up.weight"]
    tensor.data[:, 2:34] = 255 - tensor.data[:, 2:34]  # the numbers of each row's first block, with another sign
    reader.data.flush()
    found = checking.check(trained("qwen2"), tmp_path, "gguf-q8_0")
    (weights,) = [difference.detail for difference in found.differences if difference.what == "weights"]
    assert "1 of 27 tensors differ" in weights
    assert "layers.0.mlp.up_proj.weight" in weights


def test_a_token_that_is_cut_into_pieces_is_named(trained, model_of, tmp_path):
    assert "special-tokens" in named(faulty(trained, model_of, tmp_path, "llama", not_special, "fp16"))


def test_a_wrong_order_in_writer_and_reader_alike_shows_in_the_outputs(trained, model_of, tmp_path, monkeypatch):
    """Our own reader would undo a fault that it shares with the writer; transformers' reader does not."""
    monkeypatch.setattr(gguf_architectures, "row_order", lambda *_: None)
    exports.write("gguf-f16", model_of("llama3"), tmp_path, "m", 1.0)
    found = checking.check(trained("llama3"), tmp_path, "gguf-f16")
    assert named(found) == {"outputs"}
    assert "KL divergence" in found.sentence


def test_answers_that_no_longer_stop_are_named(trained, model_of, tmp_path):
    exports.write("gguf-f16", model_of("qwen2"), tmp_path, "m", 1.0)
    was = trained("qwen2")
    endless = [prompt for prompt, stops in zip(was.asked.prompts, was.stopped, strict=True) if not stops]
    was = replace(was, asked=replace(was.asked, prompts=tuple(endless[:1] * 8)), stopped=[True] * 8)
    assert named(checking.check(was, tmp_path, "gguf-f16")) == {"answers"}


def test_what_does_not_fit_into_memory_is_compared_weight_by_weight(model_of, tmp_path):
    directory = model_of("qwen2")
    tokenizer = load_tokenizer(directory)
    asked = rows.of_pairs([("What is two and two?", "Four.")], tokenizer, "chat")
    was = reference.of_directory(directory, asked, room=1e6)
    assert was.likely is None
    exports.write("gguf-q8_0", directory, tmp_path, "m", 1.0)
    found = checking.check(was, tmp_path, "gguf-q8_0")
    assert found.passes
    assert [measure.name for measure in found.measures] == ["largest error of a weight"]
    assert "next tokens and answers were not compared" in found.remarks[0]
    broken = faulty(lambda _: was, model_of, tmp_path, "qwen2", tripled_head, "gguf-q4_0")
    assert named(broken) == {"weights"}


def test_a_lost_weight_is_named_where_the_model_is_not_run(model_of, tmp_path):
    """Only what is there was compared, and loading, which would have said it, takes memory."""
    directory = model_of("llama")
    tokenizer = load_tokenizer(directory)
    asked = rows.of_pairs([("What is two and two?", "Four.")], tokenizer, "chat")
    was = reference.of_directory(directory, asked, room=1e6)
    for kind in ("fp32", "gguf-f16"):
        (folder := tmp_path / kind).mkdir()
        copy = shutil.copytree(directory, folder / "model")
        weights = load_file(copy / WEIGHTS)
        del weights["model.layers.1.mlp.up_proj.weight"]
        save_file(weights, copy / WEIGHTS, metadata={"format": "pt"})
        (made := folder / "export").mkdir()
        exports.write(kind, copy, made, "m", 1.0)
        assert named(checking.check(was, made, kind)) == {"weights"}


def test_of_several_templates_the_one_that_is_used_is_exported_and_compared(model_of, tmp_path):
    """Of a tokenizer with templates by name, a GGUF file had none, and parity found none missing."""
    directory = shutil.copytree(model_of("qwen2"), tmp_path / "model")
    tokenizer = load_tokenizer(directory)
    template = tokenizer.chat_template
    tokenizer.chat_template = {"default": template, "tool_use": "{{ tools }}" + template}
    tokenizer.save_pretrained(directory)
    asked = rows.of_pairs([("What is two and two?", "Four.")], tokenizer, "text")
    (made := tmp_path / "export").mkdir()
    remarks = exports.write("gguf-f16", directory, made, "m", 1.0)
    assert "of several chat templates only the default one is in the file, and not tool_use." in remarks
    assert opened(made).template == template
    was = reference.of_directory(directory, asked)
    assert checking.check(was, made, "gguf-f16").passes
    bare = shutil.copytree(directory, tmp_path / "bare")
    for file in (bare / "chat_template.jinja", *(bare / "additional_chat_templates").glob("*")):
        file.unlink()
    (made := tmp_path / "lost").mkdir()
    exports.write("gguf-f16", bare, made, "m", 1.0)
    assert "template" in named(checking.check(was, made, "gguf-f16"))


def last_merges(directory: Path) -> None:
    """Of words that no prompt has."""
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    merges = tokenizer["model"]["merges"]
    merges[:] = [pair for pair in merges if "".join(pair) != "\u0120Seine"]
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize("kind", ["gguf-f16", "fp16"])
def test_a_lost_merge_that_no_prompt_shows_is_named(trained, model_of, tmp_path, kind):
    found = faulty(trained, model_of, tmp_path, "llama", last_merges, kind)
    assert named(found) == {"vocabulary"}
    assert "merges differ from number" in found.sentence


def test_special_tokens_that_a_file_holds_as_text_are_named(trained, model_of, tmp_path):
    """transformers' reader takes them for special all the same, and llama.cpp cuts them into pieces."""
    from gguf import GGUFReader

    exports.write("gguf-f16", model_of("llama"), tmp_path, "m", 1.0)
    reader = GGUFReader(tmp_path / "model.gguf", "r+")
    kinds = reader.fields["tokenizer.ggml.token_type"]
    for place in kinds.data:
        kinds.parts[place][0] = 1
    reader.data.flush()
    found = checking.check(trained("llama"), tmp_path, "gguf-f16")
    assert named(found) == {"special-tokens"}
    assert "3 are text like any other, such as '<|endoftext|>'" in found.sentence
