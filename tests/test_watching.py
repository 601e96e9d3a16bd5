"""The loss on general questions beside the held-out loss: at each validation, on one rank or two, resumed or not."""

import json
import math
from pathlib import Path

import pytest
import ranks
from html_page import Page
from planning import planned
from transformers import AutoModelForCausalLM

from thriftune.checkpoints import known_by
from thriftune.checkpoints.location import CheckpointLocation
from thriftune.config import DataConfig, RunConfig
from thriftune.data import prepare
from thriftune.data.general import general_items
from thriftune.data.tokenization import IGNORED
from thriftune.errors import ConfigError
from thriftune.models.tokenizer import load_tokenizer
from thriftune.training import live_report, report
from thriftune.training.fit import Inputs, fit
from thriftune.training.general import GeneralLoss, general_rows
from thriftune.training.lines import read_folder
from thriftune.training.resumable import ResumableTrainer

WORKER = Path(__file__).parent / "training_worker.py"
STEPS = 4


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, tiny_model_dir, chat_rows_file):
    directory = tmp_path_factory.mktemp("watching") / "dataset"
    data = DataConfig(source=str(chat_rows_file), format="chat", max_length=96, validation_share=0.2)
    prepare.prepare(data, seed=0, tokenizer_dir=tiny_model_dir, destination=directory)
    return directory


@pytest.fixture
def config_of(run_config):
    def config(*, watch=True, **sections):
        training = {
            "global_batch": 8, "micro_batch": 4, "max_steps": STEPS, "log_every": 1, "precision": "fp32",
            "gradient_checkpointing": False, "learning_rate": 0.01, "save_dtype": "fp32",
        }  # fmt: skip
        evaluation = {"every_steps": 2, "max_new_tokens": 2, "batch": 16, "watch_general": watch}
        return run_config("full", **{"strategy": "single", "training": training, "evaluation": evaluation, **sections})

    return config


@pytest.fixture
def train(config_of, tiny_model_dir, dataset, tmp_path):
    def run(where="run", **options):
        config = config_of(**options)
        place = CheckpointLocation(str(tmp_path / where), tmp_path / f"{where}-scratch", 10.0)
        plan = planned(config, model=tiny_model_dir)
        inputs = Inputs(config, plan, tiny_model_dir, dataset, checkpoints=place, lines=tmp_path / f"{where}-lines")
        return fit(inputs, tmp_path / f"{where}-out")

    return run


def general(result):
    return [validation.general_loss for validation in result.validations]


def loss_of(directory):
    """As a process of its own would measure a saved model."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype="float32").eval()
    return GeneralLoss(load_tokenizer(directory), 96).measure(model, 16).mean


def test_it_is_measured_at_each_validation_and_changes_nothing_of_the_training(train, tiny_model_dir, tmp_path, caplog):
    caplog.set_level("INFO")
    watched, other = train("watched"), train("other", watch=False)
    assert [validation.step for validation in watched.validations] == [0, 2, 4]
    assert watched.losses == other.losses
    assert [v.loss for v in watched.validations] == [v.loss for v in other.validations]
    assert general(other) == [None, None, None]
    assert general(watched)[0] == watched.before.general_loss == pytest.approx(loss_of(tiny_model_dir), abs=1e-5)
    assert general(watched)[-1] == watched.after.general_loss == pytest.approx(loss_of(tmp_path / "watched-out"))
    assert watched.after.general_loss != watched.before.general_loss
    assert f"general loss {general(watched)[0]:.4f}" in caplog.text


def test_the_page_of_a_training_has_a_line_of_its_own_for_it_while_it_goes_on_and_after(train, tmp_path):
    result = train()
    lines = read_folder(tmp_path / "run-lines")
    told = live_report.curve_of(lines)
    assert [v.general_loss for v in told.validations] == pytest.approx(general(result))
    for curve in (report.curve_of(result), told):
        page = Page(report.html("run", curve, None, []))
        page.assert_inert()
        assert ("class", "general") in page.attributes
        assert "loss of general answers" in page.said


def test_two_ranks_measure_what_one_does(config_of, train, tiny_model_dir, dataset, tmp_path):
    hardware = {"device": "CPU", "devices_per_node": 2}
    config = config_of(strategy="ddp", hardware=hardware)
    job = {"config": config.model_dump(mode="json"), "model": str(tiny_model_dir), "dataset": str(dataset)}
    jobs = tmp_path / "jobs.json"
    jobs.write_text(json.dumps([{**job, "output": str(tmp_path / "ddp")}]))
    ranks.run(2, WORKER, jobs)
    found = json.loads((tmp_path / "ddp.json").read_text())
    alone = train()
    assert [v["general_loss"] for v in found["validations"]] == pytest.approx(general(alone), abs=1e-4)
    assert found["before"]["general_loss"] == pytest.approx(alone.before.general_loss, abs=1e-5)


class CutOffError(Exception):
    pass


def test_a_training_that_resumes_has_the_losses_of_one_that_was_not_cut_off(train, monkeypatch):
    whole, saving = train("whole"), {"checkpoints": {"every_steps": 1, "every_minutes": 1000}}
    compute = ResumableTrainer.compute_loss

    def cut_off(self, *arguments, **options):
        if self.state.global_step == 3:
            raise CutOffError
        return compute(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(ResumableTrainer, "compute_loss", cut_off)
        with pytest.raises(CutOffError):
            train(**saving)
    resumed = train(**saving)
    assert resumed.resumed_at in (2, 3)  # the last may not have been uploaded yet
    assert general(resumed) == pytest.approx(general(whole), abs=1e-6)
    assert resumed.before == whole.before
    assert resumed.after.general_loss == pytest.approx(whole.after.general_loss, abs=1e-6)


@pytest.mark.parametrize("has_template", [True, False])
def test_only_the_words_of_the_right_answers_carry_loss(llama_tokenizer, has_template, monkeypatch):
    if not has_template:
        monkeypatch.setattr(llama_tokenizer, "chat_template", None)
    rows = general_rows(llama_tokenizer)
    assert len(rows) == len(general_items())
    for row, item in zip(rows, general_items(), strict=True):
        trained = [token for token in row["labels"] if token != IGNORED]
        assert llama_tokenizer.decode(trained).strip() == item.accepted[0]
        assert item.question in llama_tokenizer.decode(row["input_ids"])
        assert ("[INST]" in llama_tokenizer.decode(row["input_ids"])) is has_template


def test_a_broken_chat_template_does_not_end_a_run_that_does_not_use_it(llama_tokenizer, monkeypatch, caplog):
    monkeypatch.setattr(llama_tokenizer, "chat_template", "{{ raise_exception('no users here') }}")
    rows = general_rows(llama_tokenizer)
    assert len(rows) == len(general_items())
    assert "without the model's chat template" in caplog.text


def test_a_batch_of_long_questions_holds_no_more_tokens_than_one_of_the_run(llama_tokenizer, tiny_model_dir):
    """Memory is planned for rows of the run's length, which may be less than that of the questions."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype="float32").eval()
    sizes = []
    model.register_forward_pre_hook(
        lambda module, args, given: sizes.append(given["input_ids"].numel()), with_kwargs=True
    )
    watch = GeneralLoss(llama_tokenizer, 32)
    assert math.isfinite(watch.measure(model, 16).mean)
    assert max(sizes) <= 16 * 32


def test_a_classifier_has_no_answers_to_measure(run_file):
    content = run_file(
        task="classification",
        classification={"labels": ["a", "b"]},
        data={"format": "labelled"},
        evaluation={"watch_general": True},
    )
    with pytest.raises(ConfigError, match=r"evaluation\.watch_general = true: measures answers that are written"):
        RunConfig.model_validate(content)


def test_a_finished_model_is_measured_again_where_it_was_not_watched(config_of, tiny_model_dir):
    plain, watched = config_of(watch=False), config_of()
    plan = planned(plain, model=tiny_model_dir)
    keys = {
        known_by.measuring(config, plan, measured="m", dataset="d", as_trained=False) for config in (plain, watched)
    }
    assert len(keys) == 2
