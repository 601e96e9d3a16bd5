"""Exports as a run makes them: written, compared, kept or not; in safetensors and in bitsandbytes' formats."""

import json
import shutil
import weakref
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporting.exported_models import pieces_tokenizer, save_model
from thriftune import artifacts
from thriftune.config import ExportConfig
from thriftune.data.questions import prompt_style
from thriftune.errors import DataError, ExportError, ParityError, UserError
from thriftune.inference import exporting
from thriftune.inference.parity import rows
from thriftune.inference.parity.differences import Difference
from thriftune.inference.parity.report import page_of, table_of
from thriftune.models.completeness import load_causal_lm
from thriftune.models.exporting import exports, gguf_architectures
from thriftune.models.tokenizer import load_tokenizer


def asked_of(model_dir):
    tokenizer = load_tokenizer(model_dir)
    return rows.of_pairs([("What is it?", "It is blue.")] * 2, tokenizer, prompt_style(model_dir, tokenizer))


def config_of(*formats, **settings):
    return ExportConfig.model_validate({"formats": formats, **settings})


def test_every_format_is_kept_with_its_report_and_the_version_of_the_model(model_of, tmp_path):
    model_dir = model_of("qwen2")
    config = config_of("gguf-q8_0", "int8", "nf4", "fp32", "fp16", "bf16")
    made = exporting.export(model_dir, tmp_path, config, asked_of(model_dir), "tiny")
    assert list(made.places) == list(config.formats)
    assert [one.sentence for one in made.parity if not one.passes] == []
    exporting.require_same(made, config, "there")
    for kind, place in made.places.items():
        manifest = artifacts.read_manifest(tmp_path / kind)
        assert (manifest["kind"], manifest["format"], str(tmp_path / kind)) == ("export", kind, place)
        assert manifest["parity"]["measures"] == json.loads((tmp_path / kind / "parity.json").read_text())["measures"]
        assert (tmp_path / kind / "parity.html").read_text().startswith("<!doctype html>")
    assert not list(tmp_path.glob("*.partial"))
    measured = {one.format: {m.name: m.value for m in one.measures} for one in made.parity}
    assert all(len(values) >= 4 for values in measured.values())
    error = {kind: values["largest error of a weight"] for kind, values in measured.items()}
    assert 0 == error["fp32"] < error["fp16"] < error["bf16"] < error["int8"] < error["nf4"]
    shown = table_of(made.parity)
    assert "nf4 is what was trained, as far as its format allows." in shown
    assert "at most" in page_of("tiny", made.parity)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_bitsandbytes_are_loaded_by_transformers_as_they_are(model_of, tmp_path, kind):
    exports.write(kind, model_of("qwen2"), tmp_path, "m", 1.0)
    config = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert config["load_in_8bit" if kind == "int8" else "load_in_4bit"] is True
    model = load_causal_lm(tmp_path)
    assert type(model.model.layers[0].mlp.up_proj.weight).__name__ == {"int8": "Int8Params", "nf4": "Params4bit"}[kind]
    original = sum(file.stat().st_size for file in model_of("qwen2").glob("*.safetensors"))
    assert sum(file.stat().st_size for file in tmp_path.glob("*.safetensors")) < original / 2


def test_shards_are_no_larger_than_asked_and_load_as_one(model_of, tmp_path):
    exports.write("fp16", model_of("llama3"), tmp_path, "m", 5e-5)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) > 3
    assert all(file.stat().st_size < 5e4 + 4000 for file in files)
    was = load_file(model_of("llama3") / "model.safetensors")
    found = load_causal_lm(tmp_path, dtype="auto")
    assert found.dtype == torch.float16
    for name, parameter in found.named_parameters():
        assert torch.equal(parameter, was[name].half())


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_all_templates_of_a_tokenizer_are_exported(model_of, tmp_path, kind):
    """Those that have a name lie in a folder, which was not copied."""
    directory = shutil.copytree(model_of("qwen2"), tmp_path / "model")
    tokenizer = load_tokenizer(directory)
    templates = {"default": tokenizer.chat_template, "tool_use": "{{ tools }}" + tokenizer.chat_template}
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(directory)
    (tmp_path / "export").mkdir()
    exports.write(kind, directory, tmp_path / "export", "m", 1.0)
    assert load_tokenizer(tmp_path / "export").chat_template == templates


def test_weights_in_other_forms_are_not_taken_for_the_export(model_of, tmp_path):
    """A GGUF file beside the weights was copied, and then compared in their place."""
    directory = shutil.copytree(model_of("llama"), tmp_path / "model")
    exports.write("gguf-q4_0", model_of("llama"), directory, "m", 1.0)
    (directory / "pytorch_model.bin").write_bytes(b"weights")
    made = exporting.export(directory, tmp_path, config_of("fp16"), asked_of(directory), "tiny")
    assert list(made.places) == ["fp16"]
    assert not {"model.gguf", "pytorch_model.bin"} & {file.name for file in (tmp_path / "fp16").iterdir()}


def test_weights_in_a_file_of_their_own_name_are_exported(model_of, tmp_path):
    """config.json still named the file that the export does not have."""
    directory = shutil.copytree(model_of("llama"), tmp_path / "model")
    (directory / "model.safetensors").rename(directory / "own.safetensors")
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "transformers_weights": "own.safetensors"}))
    made = exporting.export(directory, tmp_path, config_of("fp16", "int8"), asked_of(directory), "tiny")
    assert list(made.places) == ["fp16", "int8"]


def break_order(monkeypatch):
    monkeypatch.setattr(gguf_architectures, "row_order", lambda *_: None)


def test_an_export_that_differs_is_not_kept_and_the_others_are(model_of, tmp_path, monkeypatch):
    model_dir, config = model_of("llama3"), config_of("gguf-f16", "fp16")
    break_order(monkeypatch)
    made = exporting.export(model_dir, tmp_path, config, asked_of(model_dir), "tiny")
    assert list(made.places) == ["fp16"]
    assert [one.passes for one in made.parity] == [False, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fp16"]
    with pytest.raises(ParityError, match=r"export.gguf-f16 = outputs: KL divergence.*kept \(model: m\)"):
        exporting.require_same(made, config, "model: m")


def test_an_export_that_differs_is_kept_where_that_is_asked_for(model_of, tmp_path, monkeypatch):
    model_dir, config = model_of("llama3"), config_of("gguf-f16", on_fail="keep")
    break_order(monkeypatch)
    made = exporting.export(model_dir, tmp_path, config, asked_of(model_dir), "tiny")
    assert list(made.places) == ["gguf-f16"]
    exporting.require_same(made, config, "")
    assert "gguf-f16 is not what was trained. outputs:" in exporting.remarks_of(made)[0]


def test_a_model_is_refused_before_anything_is_written(tmp_path, model_of):
    other = save_model(tmp_path / "phi", "stablelm", pieces_tokenizer(), {"layer_norm_eps": 1e-5})
    with pytest.raises(ExportError, match="architecture stablelm"):
        exporting.export(other, tmp_path / "out", config_of("fp16", "gguf-f16"), asked_of(other), "phi")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ExportError, match="gguf-f16.*is named twice"):
        exporting.require_exportable(model_of("llama"), config_of("gguf-f16", "gguf-f16"), "m")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="is an adapter, not a model"):
        exporting.require_exportable(tmp_path / "adapter", config_of("fp16"), "m")


def test_what_cannot_be_read_is_refused_in_words(tmp_path, model_of):
    """Each was a traceback."""
    for name, content, message in (
        ("config.json", None, "lacks config.json"),
        ("config.json", "[1", "its config.json is not JSON"),
        ("tokenizer.json", None, "model_dir = m: its tokenizer cannot be loaded"),
    ):
        directory = shutil.copytree(model_of("llama"), tmp_path / "model", dirs_exist_ok=True)
        (directory / name).unlink()
        if content:
            (directory / name).write_text(content)
        with pytest.raises(UserError, match=message):
            exporting.require_exportable(directory, config_of("fp16"), "m")


def test_a_model_with_code_of_its_own_is_refused_before_it_is_trained(model_of):
    content = json.loads((model_of("llama") / "config.json").read_text())
    own = {**content, "model_type": "own", "auto_map": {"AutoModelForCausalLM": "modeling_own.Own"}}
    (problem,) = exports.problems_of(("fp16", "int8"), own, "m")
    assert "m ships code of its own" in problem.message
    assert not list(exports.problems_of(("fp16",), {**content, "auto_map": own["auto_map"]}, "m"))


def test_a_size_of_the_vocabulary_may_stand_in_the_part_about_text(model_of, tmp_path):
    """Models that also see have it there: a KeyError after the training."""
    directory = shutil.copytree(model_of("qwen3"), tmp_path / "model")
    text = json.loads((directory / "config.json").read_text())
    content = {"model_type": "gemma3", "text_config": {**text, "model_type": "gemma3_text"}, "vision_config": {}}
    (directory / "config.json").write_text(json.dumps(content))
    exporting.require_exportable(directory, config_of("fp16", "nf4"), "m")


def test_an_export_that_cannot_be_written_takes_no_other_with_it(model_of, tmp_path):
    """Those before it were made and never uploaded, and those after it not made."""
    directory = shutil.copytree(model_of("llama"), tmp_path / "model")
    weights = load_file(directory / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = 70000.0
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config = config_of("gguf-q8_0", "fp16", "bf16", on_fail="keep")
    made = exporting.export(directory, tmp_path / "out", config, asked_of(directory), "tiny")
    assert list(made.places) == ["gguf-q8_0", "bf16"]
    assert exporting.remarks_of(made)[0].startswith("fp16 was not written: model.layers.1.mlp.up_proj.weight has a")
    with pytest.raises(ExportError, match=r"formats = fp16: .* Use bf16 or fp32. What was trained is kept \(m\)"):
        exporting.require_same(made, config, "m")
    wrong = replace(made.parity[1], differences=[Difference("outputs", "differ")])
    with pytest.raises(ExportError, match=r"(?s)\(2 problems\).*export.bf16 = outputs: differ"):
        exporting.require_same(replace(made, parity=[wrong]), config_of("bf16"), "m")


def test_what_is_quantized_already_is_refused(tmp_path, model_of):
    """Scales of 8-bit weights were cast to fp16, and of the weights themselves nothing could be compared."""
    (tmp_path / "int8").mkdir()
    exports.write("int8", model_of("qwen2"), tmp_path / "int8", "m", 1.0)
    with pytest.raises(ExportError, match="model_dir = m: is quantized already"):
        exporting.require_exportable(tmp_path / "int8", config_of("fp16", "nf4"), "m")


def test_a_dataset_without_held_out_rows_is_compared_on_general_questions(model_of, tmp_path, monkeypatch):
    tokenizer = load_tokenizer(model_of("llama"))
    monkeypatch.setattr(rows, "held_out_rows", lambda _directory, _most: [])
    monkeypatch.setattr(rows.prepared, "load_samples", lambda _: [{"question": "What is it?"}])
    asked = rows.of_dataset(tmp_path, tokenizer, "chat")
    assert asked == replace(rows.of_general(tokenizer, "chat"), prompts=("What is it?",))


def test_rows_of_a_file_are_prompts_with_answers(model_of, tmp_path):
    tokenizer = load_tokenizer(model_of("llama"))
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "What is it?", "answer": "It is blue."}\n' * 3)
    asked = rows.of_file(file, tokenizer, "chat")
    assert asked.prompts == ("What is it?",) * 3
    row = asked.rows[0]
    said = tokenizer.decode([row.tokens[place] for place in row.trained])
    assert said.strip() == "It is blue.<|im_end|>"
    file.write_text('{"prompt": "What is it?"}\n')
    with pytest.raises(DataError, match="rows = rows.jsonl, row 1: has no text as answer"):
        rows.of_file(file, tokenizer, "chat")
    file.write_text("")
    with pytest.raises(DataError, match="rows"):
        rows.of_file(file, tokenizer, "chat")


def test_general_questions_are_asked_where_there_are_no_rows(model_of):
    asked = rows.of_general(load_tokenizer(model_of("llama")), "chat")
    assert (len(asked.rows), len(asked.prompts)) == (rows.ROWS, rows.PROMPTS)
    assert all(row.trained and row.trained[0] > 0 for row in asked.rows)


def test_a_merged_model_is_compared_with_the_adapter_on_its_base(tiny_model_dir, random_adapter, tmp_path, monkeypatch):
    from thriftune.inference.parity import merged
    from thriftune.models import merging

    loaded = []

    def load(*args, **options):
        assert [model for model in loaded if model() is not None] == [], "one model is in memory at a time"
        model = load_causal_lm(*args, **options)
        loaded.append(weakref.ref(model.get_input_embeddings().weight))
        return model

    monkeypatch.setattr(merged, "load_causal_lm", load)
    adapter = random_adapter(1)
    merging.merge(tiny_model_dir, adapter, tmp_path / "merged")
    found = merged.check(tiny_model_dir, adapter, tmp_path / "merged")
    assert found.passes, found.sentence
    assert found.measures[0].value < 1e-6
    other = merged.check(tiny_model_dir, random_adapter(2), tmp_path / "merged")
    assert {difference.what for difference in other.differences} == {"outputs"}


def test_the_trained_model_is_gone_before_the_merged_one_is_loaded(
    tiny_model_dir, random_adapter, tmp_path, monkeypatch
):
    """Room was looked at for one of them, and both were held."""
    from thriftune.inference.parity import merged
    from thriftune.models import merging

    adapter, held = random_adapter(1), []
    merging.merge(tiny_model_dir, adapter, tmp_path / "merged")

    def load(*arguments, **options):
        assert [one for one in held if one() is not None] == []
        model = load_causal_lm(*arguments, **options)
        held.append(weakref.ref(model))
        return model

    load_causal_lm = merged.load_causal_lm
    monkeypatch.setattr(merged, "load_causal_lm", load)
    assert merged.check(tiny_model_dir, adapter, tmp_path / "merged").passes
    assert len(held) == 2


def test_llama_cpp_makes_the_same_of_a_file(model_of, tmp_path):
    """Only where its Python package is installed, which is no dependency."""
    pytest.importorskip("llama_cpp")
    model_dir = model_of("llama")
    config = config_of("gguf-f16")
    made = exporting.export(model_dir, tmp_path, config, asked_of(model_dir), "tiny")
    (parity,) = made.parity
    assert parity.passes
    assert parity.llama_cpp is not None
    assert parity.llama_cpp.compared.kl < 1e-4
