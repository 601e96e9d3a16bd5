"""Every result has the text and settings of its base. A fault is named, loses no result, and is not published."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import run_dict, write_jsonl
from flytekit.types.directory import FlyteDirectory
from planning import planned
from safetensors.torch import load_file, save_file

from tasks import training_body
from tasks.merge_adapter import merge_adapter
from tasks.publish import publish
from tasks.training_body import Work
from thriftune import artifacts, damage
from thriftune.config import PublishConfig, RunConfig
from thriftune.data import prepare
from thriftune.errors import ResultParityError
from thriftune.inference.parity import saved
from thriftune.inference.report import RunMetrics, remarks_of
from thriftune.models import merging
from thriftune.models.classifier import Classes
from thriftune.models.tokenizer import load_tokenizer
from thriftune.training import run_record
from thriftune.training.fit import Inputs, fit

LABELS = ("warm", "cold")
TRAINING = {"max_steps": 2, "global_batch": 2, "micro_batch": 2, "precision": "fp32", "learning_rate": 1e-3}
ADDED = 2
METHODS = {
    "full": ("full", {}),
    "partial": ("partial", {"partial": {"train": [{"last_layers": 1}], "add_layers": ADDED}}),
    "lora": ("lora", {"lora": {"rank": 4, "alpha": 8}}),
    "classifier": ("full", {"task": "classification", "classification": {"labels": list(LABELS)}}),
    "classifier adapter": (
        "lora",
        {"task": "classification", "classification": {"labels": list(LABELS)}, "lora": {"rank": 4, "alpha": 8}},
    ),
}


@pytest.fixture(scope="module")
def base(tiny_model_dir, tmp_path_factory):
    """The tiny model as published ones are: in 16 bits, with more than one end of an answer, and no pad token."""
    directory = shutil.copytree(tiny_model_dir, tmp_path_factory.mktemp("base") / "model")
    tokenizer = load_tokenizer(directory)
    listed = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("Ġa")]
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": listed}))
    change_json(directory / "tokenizer_config.json", pad_token=None)
    weights = load_file(directory / "model.safetensors")
    save_file({k: v.bfloat16() for k, v in weights.items()}, directory / "model.safetensors", {"format": "pt"})
    change_json(directory / "config.json", dtype="bfloat16")
    return directory


@pytest.fixture(scope="module")
def datasets(tmp_path_factory, base, chat_rows_file):
    folder = tmp_path_factory.mktemp("datasets")
    rows = [{"text": f"It is {word} on day {day}.", "label": word} for word in LABELS for day in range(20)]
    labelled = write_jsonl(folder / "labelled.jsonl", rows)
    made = {}
    for name, source in (("chat", chat_rows_file), ("labelled", labelled)):
        config = configured("classifier" if name == "labelled" else "full", base, source)
        prepare.prepare(config.data, seed=0, tokenizer_dir=base, destination=folder / name, labels=config.labels)
        made[name] = (source, folder / name)
    return made


def configured(name: str, base: Path, source: Path) -> RunConfig:
    method, sections = METHODS[name]
    data = {"source": str(source), "format": "labelled" if "classification" in sections else "chat", "max_length": 96}
    fixed = {"model": {"source": str(base)}, "data": data, "training": TRAINING, "evaluation": {"max_new_tokens": 2}}
    return RunConfig.model_validate(run_dict(method, **fixed) | {"strategy": "single"} | sections)


@pytest.fixture(scope="module")
def inputs_of(base, datasets):
    def make(name: str) -> Inputs:
        source, dataset = datasets["labelled" if "classifier" in name else "chat"]
        config = configured(name, base, source)
        return Inputs(config, planned(config, model=base), base, dataset)

    return make


@pytest.fixture(scope="module")
def trained(inputs_of, tmp_path_factory):
    """What each method makes in two steps, as a model: an adapter is merged."""
    made: dict[str, tuple[Inputs, Path]] = {}

    def train(name: str) -> tuple[Inputs, Path]:
        if name not in made:
            inputs, folder = inputs_of(name), tmp_path_factory.mktemp("trained")
            fit(inputs, folder / "result")
            if inputs.config.method == "lora":
                classes = Classes.of(inputs.config)
                merging.merge(inputs.model_dir, folder / "result", folder / "merged", classes=classes)
            made[name] = inputs, folder / ("merged" if inputs.config.method == "lora" else "result")
        return made[name]

    return train


def compared(inputs: Inputs, result: Path):
    added = inputs.config.partial_or_default.add_layers
    return saved.compare(inputs.model_dir, result, inputs.dataset_dir, added_layers=added)


def change_json(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def broken_template(directory: Path) -> None:
    file = directory / "chat_template.jinja"
    file.write_text(file.read_text().replace("' [/INST]'", "'[/INST]'"))


def lost_eos(directory: Path) -> None:
    change_json(directory / "generation_config.json", eos_token_id=0)


def other_eos(directory: Path) -> None:
    change_json(directory / "tokenizer_config.json", eos_token="<pad>")


def lost_token(directory: Path) -> None:
    """An added token is text like any other."""
    content = json.loads((directory / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<pad>"]
    (directory / "tokenizer.json").write_text(json.dumps(content))
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config = {k: v for k, v in config.items() if k not in ("pad_token", "added_tokens_decoder", "extra_special_tokens")}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def other_positions(directory: Path) -> None:
    content = json.loads((directory / "config.json").read_text())
    content["rope_parameters"]["rope_theta"] = 5000.0
    (directory / "config.json").write_text(json.dumps(content))


def no_tokenizer(directory: Path) -> None:
    (directory / "tokenizer.json").write_text("{}")


FAULTS = {
    broken_template: "template",
    lost_eos: "eos",
    other_eos: "eos",
    lost_token: "special-tokens",
    other_positions: "settings",
    no_tokenizer: "tokens",
}


@pytest.mark.parametrize("name", METHODS)
def test_the_result_of_every_method_passes(trained, name):
    inputs, result = trained(name)
    assert compared(inputs, result) == []
    assert "differences" not in artifacts.read_manifest(result)
    saved.require_same(result, "model: /somewhere")


def test_what_training_changes_on_purpose_was_changed(trained):
    """Else the test before says nothing of it."""
    inputs, partial = trained("partial")
    layers = [
        json.loads((place / "config.json").read_text())["num_hidden_layers"] for place in (inputs.model_dir, partial)
    ]
    assert layers[1] == layers[0] + ADDED
    assert [one.what for one in saved.compare(inputs.model_dir, partial, inputs.dataset_dir)] == ["settings"]
    pads = [json.loads((p / "tokenizer_config.json").read_text())["pad_token"] for p in (inputs.model_dir, partial)]
    assert pads == [None, "<pad>"]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["full", "lora"])
def test_a_fault_is_named_and_kept_in_the_manifest(trained, name, fault, tmp_path):
    inputs, result = trained(name)
    copy = shutil.copytree(result, tmp_path / "result")
    fault(copy)
    found = compared(inputs, copy)
    assert FAULTS[fault] in {one.what for one in found}
    assert {one["what"] for one in artifacts.read_manifest(copy)["differences"]} == {one.what for one in found}
    with pytest.raises(ResultParityError, match=rf"(?s)The result is not what was trained.*{FAULTS[fault]}") as error:
        saved.require_same(copy, "model: /somewhere")
    assert "(model: /somewhere)" in str(error.value)
    assert {problem.code for problem in error.value.problems} == {"result-differs"}


def test_an_output_head_of_its_own_is_a_purpose_only_where_it_is_saved(tiny_model_dir, datasets, tmp_path):
    tied, untied = (shutil.copytree(tiny_model_dir, tmp_path / name) for name in ("tied", "untied"))
    change_json(tied / "config.json", tie_word_embeddings=True)
    artifacts.write_manifest(untied, "model", {})
    assert saved.compare(tied, untied, datasets["chat"][1]) == []
    weights = load_file(untied / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if k != "lm_head.weight"}, untied / "model.safetensors", {"format": "pt"}
    )
    (difference,) = saved.compare(tied, untied, datasets["chat"][1])
    assert str(difference) == "settings: tie_word_embeddings is False and was True"


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("THRIFTUNE_OUTPUTS", str(tmp_path / "outputs"))
    return tmp_path


def with_fault(writes, place_of):
    """The same, but that the template of what it writes is broken: saving went wrong."""

    def faulty(*arguments, **options):
        made = writes(*arguments, **options)
        place = place_of(*arguments)
        broken_template(place)
        content = artifacts.read_content(place)
        artifacts.write_manifest(place, "model", {k: v for k, v in content.items() if k != "files"})
        return made

    return faulty


def test_a_training_keeps_a_result_that_differs_and_says_so(inputs_of, outputs, monkeypatch):
    monkeypatch.setattr(training_body, "fit", with_fault(fit, lambda _, place: place))
    inputs = inputs_of("full")
    made = (FlyteDirectory(str(inputs.model_dir)), FlyteDirectory(str(inputs.dataset_dir)))
    done = training_body.train(Work(inputs.config, inputs.plan, "key", "", *made, outputs / "lines"))
    result = Path(done.model.path)
    assert (result / "model.safetensors").is_file()
    metrics = RunMetrics("tiny", "full", done.training, {"model": str(result)})
    (remark,) = [remark for remark in remarks_of(metrics) if "template: from character" in remark]
    assert remark.startswith("The result is not what was trained, and will not be published, though it is kept.")
    to = PublishConfig(repository="me/tuned", dry_run=True)
    with pytest.raises(ResultParityError, match=rf"template.*Everything is kept \(model: {result}\)"):
        publish.task_function(FlyteDirectory(str(result)), inputs.config, to, metrics)


def test_a_merge_keeps_a_result_that_differs_and_says_so(inputs_of, outputs, monkeypatch, caplog):
    inputs = inputs_of("lora")
    fit(inputs, outputs / "adapter")
    monkeypatch.setattr(merging, "merge", with_fault(merging.merge, lambda _, __, place: place))
    made = [FlyteDirectory(str(place)) for place in (inputs.model_dir, outputs / "adapter", inputs.dataset_dir)]
    done = merge_adapter.task_function(inputs.config, *made, "key", "")
    result = Path(done.model.path)
    assert "will not be published" in caplog.text
    with pytest.raises(ResultParityError, match="template"):
        saved.require_same(result, "")
    assert run_record.read(result) == run_record.read(outputs / "adapter")
    assert damage.damages(result, content=True) == []


def test_a_merge_with_other_next_tokens_is_kept_and_not_published(inputs_of, outputs, monkeypatch):
    """Its text and settings were the base's, and its weights were another model's."""
    inputs = inputs_of("lora")
    fit(inputs, outputs / "adapter")
    summed = "peft.tuners.lora.layer.Linear.get_delta_weight"
    monkeypatch.setattr(summed, lambda self, _: torch.randn(self.weight.shape, generator=torch.Generator()))
    made = [FlyteDirectory(str(place)) for place in (inputs.model_dir, outputs / "adapter", inputs.dataset_dir)]
    done = merge_adapter.task_function(inputs.config, *made, "key", "")
    result, far = Path(done.model.path), done.saved.next_tokens
    assert far.kl > 0.01
    assert artifacts.read_manifest(result)["merging"]["next_tokens"]["kl"] == far.kl
    assert "outputs: KL divergence of the next token, nats is" in done.saved.remarks[0]
    with pytest.raises(ResultParityError, match=r"(?s)outputs.*Everything is kept \(model: /somewhere\)"):
        saved.require_same(result, "model: /somewhere")
