"""An adapter is put on the base that it was trained on, with the same chat template; anything else is refused."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from adapting import prepared, run_of, train
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from thriftune import artifacts
from thriftune.digests import sha256_of
from thriftune.errors import AdapterError
from thriftune.hardware import DEVICES
from thriftune.inference.generation import generate
from thriftune.models.adapter_weights import WEIGHTS, attach
from thriftune.models.answering import Sampling
from thriftune.models.exporting import exports
from thriftune.models.lineage import base_digests, require_lineage, template_digest
from thriftune.models.loading import Placement
from thriftune.models.merging import merge
from thriftune.models.tokenizer import load_tokenizer

PLACEMENT = Placement(DEVICES["CPU"], "fp32")


@pytest.fixture(scope="module")
def trained(chat_rows_file, tiny_model_dir, tmp_path_factory):
    """An adapter that was trained on the tiny model with its chat template, and the rows."""
    folder = tmp_path_factory.mktemp("lineage")
    dataset = prepared(chat_rows_file, tiny_model_dir, folder)
    train(run_of("lora", lora={"rank": 2}), tiny_model_dir, dataset, folder / "adapter")
    return folder / "adapter", dataset


def load(directory: Path, **options):
    return AutoModelForCausalLM.from_pretrained(directory, **options)


def copied(model_dir: Path, folder: Path, model=None, **options) -> Path:
    """The model saved again, with its tokenizer."""
    (model or load(model_dir)).save_pretrained(folder, **options)
    load_tokenizer(model_dir).save_pretrained(folder)
    return folder


@pytest.fixture
def other_base(tiny_model_dir, tmp_path):
    """A model of the same architecture, trained a little further in one layer."""
    model = load(tiny_model_dir)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.mul_(1.1)
    return copied(tiny_model_dir, tmp_path / "other", model)


@pytest.fixture
def other_template(tiny_model_dir, tmp_path):
    """The same weights with another chat template."""
    folder = copied(tiny_model_dir, tmp_path / "templated")
    tokenizer = load_tokenizer(folder)
    tokenizer.chat_template = tokenizer.chat_template + "{# another #}"
    tokenizer.save_pretrained(folder)
    return folder


def test_what_an_adapter_comes_from_is_in_its_manifest(trained, tiny_model_dir, tmp_path):
    adapter, dataset = trained
    record = artifacts.read_manifest(adapter)["lineage"]
    base, base_in_fp16 = base_digests(tiny_model_dir)
    template = template_digest(tiny_model_dir)
    assert record == {"base": base, "base_in_fp16": base_in_fp16, "template": template, "parent": ""}
    assert all((base, base_in_fp16, template))
    longer = run_of("lora", lora={"rank": 2, "resume_from": str(adapter)})
    train(longer, tiny_model_dir, dataset, tmp_path / "longer", start=adapter)
    assert artifacts.read_manifest(tmp_path / "longer")["lineage"] == record | {"parent": sha256_of(adapter / WEIGHTS)}


def test_every_use_on_another_base_is_refused(trained, other_base, tmp_path):
    """It fitted, and its answers were nobody's."""
    adapter, dataset = trained
    uses = {
        "adapter": [lambda: merge(other_base, adapter, tmp_path / "merged")],
        "adapters one": [
            lambda: generate(
                other_base, ["x"], adapters={"one": adapter}, placement=PLACEMENT,
                sampling=Sampling(max_new_tokens=1), batch=1,
            ),
        ],
        r"lora\.resume_from": [
            lambda: train(
                run_of("lora", lora={"rank": 2, "resume_from": str(adapter)}), other_base, dataset, tmp_path / "again",
                start=adapter,
            )
        ],
    }  # fmt: skip
    for field, of_field in uses.items():
        for use in of_field:
            with pytest.raises(AdapterError, match=rf"{field} = .*adapter: was trained on another base model"):
                use()
    assert not (tmp_path / "merged").exists()


def test_another_chat_template_is_refused(trained, other_template):
    with pytest.raises(AdapterError, match="was trained with another chat template than .*templated has") as caught:
        attach(load(other_template), trained[0])
    assert "chat_template.jinja" in str(caught.value)


def test_a_template_is_only_asked_for_where_rows_were_rendered_with_it(trained, other_template, tmp_path):
    shutil.copytree(trained[0], tmp_path / "plain")
    record = artifacts.read_content(trained[0])
    artifacts.write_manifest(tmp_path / "plain", "adapter", record | {"lineage": record["lineage"] | {"template": ""}})
    require_lineage(tmp_path / "plain", other_template, "adapter")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_copies_of_the_base_are_the_base(trained, tiny_model_dir, tmp_path, dtype):
    """Versions of local directories are made of the times of their files: no copy had the same."""
    base = copied(tiny_model_dir, tmp_path / "copy", load(tiny_model_dir, dtype=dtype), max_shard_size="50KB")
    assert len(list(base.glob("*.safetensors"))) > 1
    attach(load(base), trained[0])


@pytest.mark.parametrize("before", [torch.bfloat16, torch.float32])
def test_the_base_of_a_copy_in_fp16_is_its_base(trained, tiny_model_dir, other_base, tmp_path, before):
    """Rounding to fp16 and then to bf16 is not rounding to bf16; numbers below 2**-17 lose digits in fp16."""
    model = load(tiny_model_dir, dtype=before)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1e-4)
    base = copied(tiny_model_dir, tmp_path / "base", model)
    copy = copied(tiny_model_dir, tmp_path / "copy", load(base, dtype=torch.float16))
    assert base_digests(base)[0] != base_digests(copy)[0]
    adapter = shutil.copytree(trained[0], tmp_path / "adapter")
    record = artifacts.read_content(adapter)
    for trained_on, put_on in ((base, copy), (copy, base)):
        digests = dict(zip(("base", "base_in_fp16"), base_digests(trained_on), strict=True))
        artifacts.write_manifest(adapter, "adapter", record | {"lineage": record["lineage"] | digests})
        require_lineage(adapter, put_on, "adapter")
        with pytest.raises(AdapterError, match="another base model"):
            require_lineage(adapter, other_base, "adapter")


def test_a_base_whose_files_are_quantized_is_allowed_and_said(trained, tiny_model_dir, tmp_path, caplog):
    exports.write("nf4", tiny_model_dir, made := tmp_path / "nf4", "tiny", 1.0)
    require_lineage(trained[0], made, "adapter")
    assert "cannot be seen: its weights are quantized" in caplog.text


def test_a_base_in_a_file_without_prefixes_or_with_its_tied_head_is_the_same(tiny_model_dir, tmp_path):
    base = copied(tiny_model_dir, tmp_path / "copy")
    weights = load_file(base / "model.safetensors")
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    save_file({name.removeprefix("model."): tensor for name, tensor in weights.items()}, base / "model.safetensors")
    assert base_digests(base) == base_digests(tiny_model_dir)


def test_an_adapter_of_unknown_origin_is_allowed_and_said(random_adapter, tiny_model_dir, other_base, caplog):
    adapter = random_adapter(1)
    with caplog.at_level(logging.INFO):
        attach(load(other_base), adapter)
    assert "nothing says which base model it was trained on" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_another_model_of_the_hub_is_a_warning(random_adapter, tiny_model_dir, tmp_path, caplog):
    adapter, base = random_adapter(1), copied(tiny_model_dir, tmp_path / "base")
    artifacts.write_manifest(base, "base model", {"source": "owner/tiny", "source_version": "1"})
    file = adapter / "adapter_config.json"
    for named, is_said in (("owner/tiny", False), ("owner/other", True), (str(tiny_model_dir), False)):
        caplog.clear()
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": named}))
        require_lineage(adapter, base, "adapter")
        assert ("was trained on owner/other, and is put on owner/tiny" in caplog.text) == is_said
