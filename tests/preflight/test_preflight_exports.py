"""Exports before a GPU is asked for: the architecture and the tokenizer that a format cannot hold are refused."""

import json

from preflighting import Checking


def test_the_architecture_of_the_base_is_checked_before_a_gpu_is_asked_for(tiny_model_dir, chat_rows_file, tmp_path):
    check = Checking(tiny_model_dir, chat_rows_file)
    export = {"formats": ["gguf-f16", "fp16"]}
    assert not [found for found in check(export=export).findings if found.field.startswith("export")]
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_model_dir.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    content = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**content, "attention_bias": True}))
    found = [
        one for one in check(model={"source": str(other)}, export=export).findings if one.field == "export.formats"
    ]
    assert [(one.code, one.severity, one.value) for one in found] == [("export-not-covered", "error", "gguf-f16")]
    assert "attention_bias: true" in found[0].message


def test_a_tokenizer_that_llama_cpp_would_misread_is_refused_before_a_gpu_is_asked_for(
    tiny_model_dir, chat_rows_file, tmp_path
):
    other = tmp_path / "other"
    other.mkdir()
    for file in tiny_model_dir.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    content = json.loads((other / "tokenizer.json").read_text())
    content["pre_tokenizer"]["add_prefix_space"] = True
    (other / "tokenizer.json").write_text(json.dumps(content))
    check = Checking(tiny_model_dir, chat_rows_file)
    made = check(model={"source": str(other)}, export={"formats": ["gguf-q8_0"]})
    (found,) = [one for one in made.findings if one.code == "export-not-covered"]
    assert "splits text by ByteLevel in another way" in found.message
