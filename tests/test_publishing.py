"""What would be pushed of what a real run made: the result, a card that says what its run says, and no token."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from conftest import run_dict
from flytekit.types.directory import FlyteDirectory
from planning import planned

from tasks.publish import publish as publish_task
from thriftune import artifacts, damage
from thriftune.config import PublishConfig, RunConfig
from thriftune.data import prepare
from thriftune.errors import PublishError, UserError
from thriftune.inference.model_card import card_of, model_card
from thriftune.inference.report import RunMetrics, metrics_from_json
from thriftune.models import merging
from thriftune.models.publishing import publish, require_token, stage
from thriftune.training import run_record
from thriftune.training.fit import Inputs, fit
from thriftune.training.held_out import EvalReport
from thriftune.training.result import Asked
from thriftune.training.run_record import RunRecord

TOKEN = "hf_PlantedTokenThatMustNeverBeShown"
CONFIG = PublishConfig(repository="me/tuned", dry_run=True)
CARD = "---\nlibrary_name: transformers\n---\n# tuned\n"


@pytest.fixture(scope="module")
def adapter_dir(tmp_path_factory, tiny_model_dir, chat_rows_file):
    """What two steps of QLoRA made."""
    folder = tmp_path_factory.mktemp("published")
    model, data = {"source": str(tiny_model_dir)}, {"source": str(chat_rows_file), "max_length": 96}
    training = {"learning_rate": 2e-4, "precision": "fp32"}
    content = run_dict("qlora", model=model, data=data, training=training, evaluation={"max_new_tokens": 2})
    config = RunConfig.model_validate(content)
    prepare.prepare(config.data, seed=0, tokenizer_dir=tiny_model_dir, destination=folder / "dataset")
    fit(Inputs(config, planned(config), tiny_model_dir, folder / "dataset"), folder / "adapter")
    return folder / "adapter"


@pytest.fixture(scope="module")
def results(adapter_dir, tiny_model_dir):
    """Every kind of result of a QLoRA run; tests/test_workflows.py has that of a full one."""
    merged = adapter_dir.parent / "merged"
    merging.merge(tiny_model_dir, adapter_dir, merged)
    return {"adapter": adapter_dir, "model": merged}


@pytest.fixture(scope="module")
def record(adapter_dir):
    return run_record.read(adapter_dir)


@pytest.fixture
def metrics(record):
    before, after = EvalReport(2.5, 12.18, 1234, ["Why?"], ["A"]), EvalReport(1.25, 3.49, 1234, ["Why?"], ["B"])
    training = replace(record.training, before=before, after=after)
    return RunMetrics("tiny", "qlora", training, {"model": "/somewhere"})


def with_run(record: RunRecord, **overrides) -> RunRecord:
    """The same training, of a run with other sections."""
    content = run_dict("qlora", **overrides)
    if "sources" in content["data"]:
        del content["data"]["source"], content["data"]["format"]
    return replace(record, config=RunConfig.model_validate(content))


def rows_of(card) -> dict[str, str]:
    """The cells of a card's table, as a reader of Markdown sees them."""
    lines = [line.strip("| ").split(" | ", 1) for line in card.text.splitlines() if line.startswith("| ")]
    return {name: value.replace("\\|", "|") for name, value in lines[1:]}


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_what_a_real_run_made_is_published_with_its_record(results, kind, metrics, tmp_path):
    """A merged model's manifest lacked what the card reads: publishing it failed, after everything was paid for."""
    record = run_record.read(results[kind])
    card = card_of(results[kind], record, metrics, CONFIG.repository)
    place = publish(results[kind], CONFIG, card, record.as_json(), tmp_path / "staging", None)
    assert place == str(tmp_path / "staging")
    for file in results[kind].iterdir():
        assert (tmp_path / "staging" / file.name).read_bytes() == file.read_bytes()
    card = (tmp_path / "staging" / "README.md").read_text()
    assert ("PeftModel.from_pretrained" in card) == (kind == "adapter")
    for of_merged in ("the adapter merged into the model", "1.2500 after training and before merging, over"):
        assert (of_merged in card) == (kind == "model")
    assert artifacts.read_manifest(tmp_path / "staging")["kind"] == kind
    assert run_record.read(tmp_path / "staging") == run_record.read(results["adapter"])


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_another_run_s_words_are_not_published(results, kind, metrics, tmp_path, monkeypatch):
    """The run that trained has other prompts, a name and data of its own; its manifest went to the hub as it was."""
    private = {"name": "zebra-run", "evaluation": {"prompts": ["Which zebra?"]}, "publish": {"repository": "x/zebra"}}
    other = with_run(run_record.read(results[kind]), data={"source": "zebra-run.jsonl"}, **private)
    answers = EvalReport(1.0, 2.7, 10, ["Which zebra?"], ["A zebra"])
    trained = replace(other.training, before=answers, after=answers, asked=Asked(["Which zebra?"], 2))
    shared = shutil.copytree(results[kind], tmp_path / "shared")
    artifacts.change_manifest(shared, other.of_run(other.config, trained).as_json())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("THRIFTUNE_OUTPUTS", str(tmp_path / "outputs"))
    run = with_run(other, evaluation={"prompts": ["Why?"]}, publish=CONFIG.model_dump()).config
    done = publish_task.task_function(FlyteDirectory(str(shared)), run, CONFIG, metrics)
    staged = Path(done.outputs["published"])
    assert [file.name for file in staged.iterdir() if b"zebra" in file.read_bytes()] == []
    assert run_record.read(staged) == other.of_run(run, metrics.training)
    assert damage.damages(staged, content=True) == []
    made = ("kind", "versions", "git_commit", "files")
    assert {key: artifacts.read_manifest(staged)[key] for key in made} == {
        key: artifacts.read_manifest(shared)[key] for key in made
    }


def test_weights_are_on_the_disk_once(results, metrics, tmp_path):
    """A node that publishes has room for one model; a copy of a large one did not fit."""
    stage(results["model"], CARD, {}, tmp_path / "staging")
    weights = "model.safetensors"
    assert (tmp_path / "staging" / weights).samefile(results["model"] / weights)
    assert not (tmp_path / "staging" / "config.json").samefile(results["model"] / "config.json")


def test_a_card_says_what_the_run_says(record, metrics):
    run = with_run(record, model={"source": "owner/base-model"}, training={"learning_rate": 0.0002})
    card = model_card(replace(run, model_version="abc123"), metrics, "me/tuned", is_adapter=True)
    assert "# tuned\n\n`owner/base-model`, trained with thriftune: QLoRA.\n" in card.text
    assert rows_of(card) == {
        "Base model": "`owner/base-model` (version abc123)",
        "Data": "`rows.jsonl`",
        "Data fingerprint": record.dataset_fingerprint,
        "Steps, global batch": "2, 4",
        "Learning rate": "0.0002",
        "Precision of training": "fp32",
        "Final training loss": f"{record.training.losses[-1]:.4f}",
        "Held-out loss": "2.5000 before, 1.2500 after training, over 1,234 tokens",
    }


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"source": "wiki/*_*.txt"}, "`wiki/*_*.txt`"),
        ({"source": "a|b.jsonl"}, "`a|b.jsonl`"),
        ({"source": "input:table"}, "`input:table` (the table that the workflow was given)"),
        ({"source": "owner/rows"}, "`owner/rows` (split train)"),
        (
            {"source": "owner/rows", "subset": "en", "split": "test", "revision": "v2"},
            "`owner/rows` (subset en, split test, revision v2)",
        ),
        (
            {"sources": [{"source": "a.jsonl", "format": "chat", "weight": 3},
                         {"source": "owner/rows", "format": "text", "weight": 0.5}]},
            "`a.jsonl` (weight 3), `owner/rows` (split train, weight 0.5)",
        ),
        (
            {"sources": [{"source": "a.jsonl", "format": "chat"}, {"source": "b.txt", "format": "text"}]},
            "`a.jsonl`, `b.txt`",
        ),
        (
            {"source": "a.jsonl", "replay": {"source": "owner/rows", "format": "chat", "share": 0.2}},
            "`a.jsonl`, `owner/rows` (split train, replayed, 20% of the training rows)",
        ),
    ],
)  # fmt: skip
def test_a_card_names_the_data_in_every_shape_of_it(record, metrics, data, said):
    """The row was empty where a run had `data.sources`."""
    card = model_card(with_run(record, data=data), metrics, "me/tuned", is_adapter=True)
    assert rows_of(card)["Data"] == said
    assert card.data.datasets == (["owner/rows"] if "owner/rows" in said else None)


def test_a_card_leaves_out_what_the_run_does_not_know(record, metrics):
    unknown = replace(record, model_version="", training=replace(record.training, losses=[], loss_steps=[]))
    rows = rows_of(model_card(with_run(unknown), metrics, "me/tuned", is_adapter=True))
    assert rows["Base model"] == "`owner/tiny`"
    assert rows["Final training loss"] == "not logged"


def test_a_card_says_what_the_training_went_on_from(record, metrics):
    resumed = with_run(record, lora={"resume_from": "s3://bucket/adapter"})
    rows = rows_of(model_card(resumed, metrics, "me/tuned", is_adapter=True))
    assert rows["Continued from the adapter"] == "`s3://bucket/adapter`"


def test_the_card_s_header_is_what_the_hub_reads(results, metrics, record, tmp_path):
    from huggingface_hub import ModelCard

    hub_base = with_run(record, model={"source": "owner/base-model"})
    model_card(hub_base, metrics, "me/tuned", is_adapter=True).save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data.to_dict()
    assert data["base_model"] == "owner/base-model"
    assert data["library_name"] == "peft"
    assert data["tags"] == ["thriftune", "qlora"]
    assert data["pipeline_tag"] == "text-generation"
    assert model_card(hub_base, metrics, "me/tuned", is_adapter=False).data.library_name == "transformers"


@pytest.mark.parametrize("source", ["/home/me/model", "s3://bucket/model", "build/model.gguf"])
def test_a_base_model_that_is_not_on_the_hub_is_no_link(record, metrics, source):
    card = model_card(with_run(record, model={"source": source}), metrics, "me/tuned", is_adapter=False)
    assert card.data.base_model is None
    assert source in card.text


def test_a_dry_run_pushes_nothing_and_writes_no_token(results, metrics, tmp_path, caplog):
    caplog.set_level("DEBUG")
    publish(results["adapter"], CONFIG, CARD, {}, tmp_path / "staging", TOKEN)
    files = [p for p in (tmp_path / "staging").rglob("*") if p.is_file()]
    assert files
    assert not [p for p in files if TOKEN.encode() in p.read_bytes()]
    assert TOKEN not in caplog.text


def test_an_unfinished_result_is_not_published(metrics, tmp_path):
    (tmp_path / "half").mkdir()
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        publish(tmp_path / "half", CONFIG, CARD, {}, tmp_path / "staging", None)
    assert not (tmp_path / "staging").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_version": None}, "model_version: Input should be a valid string"),
        ({"config": {"name": "tiny"}}, "method: is missing"),
        ({"training": {}}, "training.steps: Field required"),
    ],
)
def test_a_manifest_that_does_not_name_its_run_is_refused_by_key(results, changes, said, tmp_path):
    """It used to end in a KeyError."""
    manifest = artifacts.read_content(results["adapter"]) | changes
    artifacts.write_manifest(tmp_path, "adapter", manifest)
    with pytest.raises(UserError, match=r"has a manifest\.json that does not say which run made it") as error:
        run_record.read(tmp_path)
    assert said in str(error.value)


def test_a_missing_token_is_noticed_without_a_result_to_publish():
    """It used to be noticed after training."""
    require_token(PublishConfig(repository="team/model"), "hf_token")
    require_token(PublishConfig(repository="team/model", dry_run=True), None)
    with pytest.raises(PublishError, match=r"publish.repository = team/model: needs a hub token.*HF_TOKEN"):
        require_token(PublishConfig(repository="team/model"), None)


def test_metrics_of_a_real_run_come_back_from_json_as_they_were(metrics):
    """What was measured besides losses came back as dictionaries."""
    assert metrics_from_json(json.loads(json.dumps(asdict(metrics)))) == metrics


def test_what_is_not_what_was_saved_is_not_published(results, metrics, tmp_path):
    """A damaged file would be pushed under a card that vouches for it."""
    damaged = shutil.copytree(results["adapter"], tmp_path / "damaged")
    with (damaged / "adapter_model.safetensors").open("r+b") as file:
        file.seek(-100, 2)
        file.write(b"x" * 100)
    with pytest.raises(UserError, match=r"adapter_model\.safetensors does not hold what was saved"):
        publish(damaged, CONFIG, CARD, {}, tmp_path / "staging", None)
    assert not (tmp_path / "staging").exists()


def test_a_damaged_adapter_is_not_merged(results, tiny_model_dir, tmp_path):
    damaged = shutil.copytree(results["adapter"], tmp_path / "damaged")
    (damaged / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"adapter = .*adapter_model\.safetensors is missing"):
        merging.merge(tiny_model_dir, damaged, tmp_path / "merged")
