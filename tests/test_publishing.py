"""What would be pushed: the result, a card that says what its manifest says, and no token."""

import pytest

from thriftune import artifacts
from thriftune.config import PublishConfig
from thriftune.errors import PublishError, UserError
from thriftune.publishing import model_card, publish, require_token, stage

TOKEN = "hf_PlantedTokenThatMustNeverBeShown"
CONFIG = PublishConfig(repository="me/tuned", dry_run=True)


def record(source="owner/base-model", losses=(2.0, 1.2345)):
    return {
        "config": {
            "method": "qlora",
            "model": {"source": source},
            "data": {"source": "rows.jsonl"},
            "training": {"learning_rate": 0.0002},
        },
        "model_version": "abc123",
        "plan": {"global_batch": 16, "precision": "bf16"},
        "training": {"steps": 42, "losses": list(losses)},
        "dataset_fingerprint": "f00d",
    }


@pytest.fixture
def result_dir(tmp_path):
    """A finished adapter."""
    with artifacts.writing(tmp_path / "adapter") as directory:
        (directory / "adapter_model.safetensors").write_bytes(b"weights")
        artifacts.write_manifest(directory, "adapter", record())
    return tmp_path / "adapter"


def test_staging_holds_the_result_its_manifest_and_a_card(result_dir, tmp_path):
    stage(result_dir, CONFIG, tmp_path / "staging")
    names = {p.name for p in (tmp_path / "staging").iterdir()}
    assert names == {"adapter_model.safetensors", "manifest.json", "README.md"}
    assert (tmp_path / "staging" / "adapter_model.safetensors").read_bytes() == b"weights"


def test_a_card_says_what_the_manifest_says(result_dir, tmp_path):
    stage(result_dir, CONFIG, tmp_path / "staging")
    text = (tmp_path / "staging" / "README.md").read_text()
    for part in ("# tuned", "owner/base-model (version abc123)", "rows.jsonl (fingerprint f00d)", "| 42, 16 |",
                 "0.0002", "bf16", "1.2345", "method **qlora**", "PeftModel.from_pretrained"):  # fmt: skip
        assert part in text


def test_the_card_s_header_is_what_the_hub_reads(result_dir, tmp_path):
    from huggingface_hub import ModelCard

    stage(result_dir, CONFIG, tmp_path / "staging")
    data = ModelCard.load(tmp_path / "staging" / "README.md").data.to_dict()
    assert data["base_model"] == "owner/base-model"
    assert data["library_name"] == "peft"
    assert data["tags"] == ["thriftune", "qlora"]
    assert data["pipeline_tag"] == "text-generation"


def test_a_model_card_tells_how_to_load_a_model():
    card = model_card({**record(), "kind": "model"}, "me/tuned")
    assert card.data.library_name == "transformers"
    assert "AutoModelForCausalLM.from_pretrained" in card.text


@pytest.mark.parametrize("source", ["/home/me/model", "s3://bucket/model", "build/model.gguf"])
def test_a_base_model_that_is_not_on_the_hub_is_no_link(source):
    card = model_card({**record(source), "kind": "model"}, "me/tuned")
    assert card.data.base_model is None
    assert source in card.text


def test_a_run_that_logged_no_loss_says_so():
    assert "not logged" in model_card({**record(losses=()), "kind": "model"}, "me/tuned").text


def test_a_dry_run_pushes_nothing_and_writes_no_token(result_dir, tmp_path, caplog):
    caplog.set_level("DEBUG")
    place = publish(result_dir, CONFIG, tmp_path / "staging", TOKEN)
    assert place == str(tmp_path / "staging")
    files = [p for p in (tmp_path / "staging").rglob("*") if p.is_file()]
    assert files
    assert not [p for p in files if TOKEN.encode() in p.read_bytes()]
    assert TOKEN not in caplog.text


def test_a_dry_run_needs_no_token(result_dir, tmp_path):
    assert publish(result_dir, CONFIG, tmp_path / "staging", None)


def test_pushing_without_a_token_is_refused(result_dir, tmp_path):
    config = PublishConfig(repository="me/tuned")
    with pytest.raises(PublishError, match=r"publish\.repository = me/tuned: needs a hub token.*HF_TOKEN"):
        publish(result_dir, config, tmp_path / "staging", None)


def test_an_unfinished_result_is_not_published(tmp_path):
    (tmp_path / "half").mkdir()
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        publish(tmp_path / "half", CONFIG, tmp_path / "staging", None)
    assert not (tmp_path / "staging").exists()


def test_a_missing_token_is_noticed_without_a_result_to_publish():
    """It used to be noticed after training."""
    require_token(PublishConfig(repository="team/model"), "hf_token")
    require_token(PublishConfig(repository="team/model", dry_run=True), None)
    with pytest.raises(PublishError, match="publish.repository = team/model: needs a hub token"):
        require_token(PublishConfig(repository="team/model"), None)
