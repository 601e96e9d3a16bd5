"""What a training tells of itself while it goes on: its lines, the page that is drawn of them, and its GPU-hours."""

import json
import logging
import math
import time
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import run_dict
from html_page import Page
from planning import planned
from told import START, attempt, steps, timed, told

from tasks import checkpoints as checkpoints_of_tasks
from tasks import live as live_of_tasks
from tasks import pages, settings
from thriftune.checkpoints import layout
from thriftune.checkpoints.location import CheckpointLocation, Writer
from thriftune.config import DataConfig, RunConfig
from thriftune.data import prepare
from thriftune.stores.store import Store
from thriftune.training import live_report
from thriftune.training.attempts_made import devices_of
from thriftune.training.fit import Inputs, fit
from thriftune.training.lines import EARLIER, LINES, Journal, Line, by_step, parsed, read, read_folder
from thriftune.training.live import progress_of
from thriftune.training.resumable import ResumableTrainer

HOSTILE = '</p><script>alert("x")</script>'
SECRET = "https://u:pl4nted@h/x?X-Amz-Signature=pl4ntedS1gnature"
RUN = RunConfig.model_validate(run_dict("full", hardware={"device": "CPU"}))


@pytest.fixture(scope="module")
def plan():
    return timed(planned(RUN))


def test_the_time_that_is_left_comes_from_the_plan_and_then_from_what_is_measured(plan):
    first = progress_of(plan, attempt(0), START + 100).remaining
    assert (first.seconds, first.low, first.high) == (200.0, 100.0, 400.0)
    assert "the plan" in first.leans_on
    lines = [*attempt(0), *steps(1, 60, 103, each=3.0)]
    then = progress_of(plan, lines, START + 290)
    assert then.remaining.seconds == pytest.approx(40 * 3.0)
    assert then.remaining.low < 120 < then.remaining.high
    assert then.remaining.high - then.remaining.low < first.high - first.low
    assert (then.step, then.steps, then.tokens_per_second) == (60, 100, pytest.approx(100 / 3))
    assert then.cost == pytest.approx(3.6 * 290 / 3600)


def test_a_page_says_how_far_it_is_and_loads_nothing(plan):
    lines = [
        *attempt(0),
        *steps(1, 60, 101, learning_rate=1e-4, loss_scale=65536.0, allocated_gib=1.5, gradient_norm=2.0),
    ]
    lines += [Line(START + 161, "validation", 60, {"loss": 2.5}), Line(START + 162, "failed", 0, {}, HOSTILE)]
    page = Page(live_report.page_of(HOSTILE, plan, lines, START + 170))
    page.assert_inert()
    for text in (
        "Failed.",
        "60 of 100",
        "2.5000",
        "Learning rate",
        "Loss scale",
        "2.0 GiB planned, 1.5 measured",
        "USD",
    ):
        assert text in page.said, text
    assert "refresh" not in dict(page.attributes).values()
    running = live_report.page_of("run", plan, lines[:-1], START + 170, refresh_seconds=30)
    assert ("http-equiv", "refresh") in Page(running).attributes


@pytest.mark.parametrize(
    "lines",
    [
        [], told((0, "alive", 0, {})),
        told((0, "began", 0, {})), attempt(0), attempt(0)[1:], steps(5, 5, 0), steps(1, 3, 0, loss=math.nan),
        told((0, "step", 1, {})), told((9, "finished", 9, {})), told((0, "validation", 0, {"loss": math.nan})),
        [*steps(1, 9, 100), *steps(1, 9, 0)],
    ],
)  # fmt: skip
def test_a_page_can_be_drawn_of_anything(plan, lines):
    for time_of in (plan.time, None):
        Page(live_report.page_of("run", replace(plan, time=time_of), lines, START + 50)).assert_inert()


def test_a_page_of_ten_thousand_steps_is_made_in_a_moment(plan, tmp_path):
    """Reading the lines, drawing and taking out secrets: a third of a second of a slow processor, and as many points as
    a screen shows. The next page comes a hundred times as long after it.
    """
    lines = [
        *attempt(0),
        *steps(1, 10_000, 101, learning_rate=1e-4, loss_scale=65536.0, allocated_gib=1.5, gradient_norm=2.0),
    ]
    lines += told(*((100.0 + 100 * n, "saved", 100 * n, {}) for n in range(1, 100)))
    (tmp_path / LINES).write_text("".join(f"{line.as_json()}\n" for line in lines))
    live_report.page_of("run", plan, lines[:100], START)  # imports
    began = time.thread_time()
    page = live_of_tasks.redacted(live_report.page_of("run", plan, read_folder(tmp_path), START + 11_000))
    took = time.thread_time() - began
    assert took < 1.0
    assert len(page) < 300_000, "points are thinned"


def test_lines_hold_no_secret_and_what_is_none_is_left_out(tmp_path, caplog):
    journal = Journal(tmp_path / "deep" / LINES)
    journal.write("failed", 3, f"{SECRET} {HOSTILE}", loss=math.nan, tokens=None)
    (line,) = read(journal.file)
    assert "pl4nted" not in journal.file.read_text()
    assert (line.kind, line.step, math.isnan(line.values["loss"]), set(line.values)) == ("failed", 3, True, {"loss"})
    content = journal.file.read_bytes()
    others = [
        b"{}",
        b"[1]",
        b"null",
        b'{"at": 1, "kind": "other", "step": 1, "values": {}}',
        content[: len(content) // 2],
    ]
    assert parsed(b"\n".join([*others, content])) == parsed(content)
    assert read(tmp_path / "not there") == []


def test_lines_of_a_training_that_was_finished_before_are_not_those_of_the_present_one(tmp_path):
    before = [*attempt(0), *told((200, "finished", 9, {}))]
    (tmp_path / EARLIER).write_text("".join(f"{line.as_json()}\n" for line in before))
    assert read_folder(tmp_path) == before
    Journal(tmp_path / LINES).write("alive")
    assert len(read_folder(tmp_path)) == len(before) + 1
    Journal(tmp_path / LINES).write("began")
    assert [line.kind for line in read_folder(tmp_path)] == ["alive", "began"]


@pytest.fixture
def here(monkeypatch, tmp_path):
    """Local runs write below this folder, and pages are looked after often."""
    monkeypatch.setenv("THRIFTUNE_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setattr(live_of_tasks, "EVERY_SECONDS", 0.05)
    monkeypatch.setattr(live_of_tasks, "TIMES_ITS_OWN", 1.0)
    monkeypatch.setattr(live_of_tasks, "_LOOK_SECONDS", 0.01)
    settings._folder_of_run.cache_clear()
    yield tmp_path / "outputs"
    settings._folder_of_run.cache_clear()


def until(true):
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_local_page_is_there_at_once_is_renewed_and_says_how_it_ended(plan, here):
    with pytest.raises(RuntimeError, match="lost"), live_of_tasks.watching(RUN, plan, "") as folder:
        file = folder / layout.PAGE
        until(file.exists)
        first = file.read_text()
        assert "The task has begun." in first
        assert 'http-equiv="refresh"' in first
        Journal(folder / LINES).write("training", 0, steps=9)
        until(lambda: "the first step is on its way" in file.read_text())
        Journal(folder / LINES).write("failed", 0, "a worker")
        until(lambda: "Failed. a worker" in file.read_text())
        assert 'http-equiv="refresh"' in file.read_text(), "its agent may start the workers again"
        Journal(folder / LINES).write("loading")
        raise RuntimeError("a worker was lost")
    last = file.read_text()
    assert "Failed. RuntimeError: a worker was lost" in last
    assert 'http-equiv="refresh"' not in last
    assert not list(folder.glob("*.partial"))


def test_a_page_that_cannot_be_written_ends_no_run_and_is_said_once(plan, here, caplog):
    logging.getLogger("thriftune").propagate = True
    settings.lines_path(RUN.name).parent.mkdir(parents=True, exist_ok=True)
    settings.lines_path(RUN.name).write_text("a file in place of the folder")
    with live_of_tasks.watching(RUN, plan, ""):
        time.sleep(0.3)
    said = {id(record): record.getMessage() for record in caplog.records}  # some records come by two ways
    for once in ("the newest could not be written", "is not renewed"):
        assert sum(once in text for text in said.values()) == 1, once


def test_in_a_pod_the_page_is_a_deck_and_is_kept_where_the_next_attempt_finds_its_lines(
    plan, here, monkeypatch, tmp_path
):
    decks = []
    prefix = str(tmp_path / "bucket" / "training-key")
    monkeypatch.setattr(settings, "is_local", lambda: False)
    monkeypatch.setattr(pages, "publish_deck", lambda name, page: decks.append((name, page)))
    for number in range(2):
        place = (Store(prefix), Writer("exec", number, "n0"))
        monkeypatch.setattr(checkpoints_of_tasks, "place_of", lambda _, place=place: place)
        with suppress(RuntimeError), live_of_tasks.watching(RUN, plan, "training-key") as folder:
            until(lambda number=number: len(decks) > 3 * number)
            Journal(folder / LINES).write("step", 7, f"{SECRET}", loss=1.5 + number)
            raise RuntimeError(f"lost {number} {SECRET}")
    page = Store(prefix).get_bytes(layout.PAGE).decode()
    assert {name for name, _ in decks} == {"Training"}
    assert decks[-1][1] == page
    assert "refresh" not in page
    for text in ("2 attempts", "RuntimeError: lost 1", "RuntimeError: lost 0"):
        assert text in Page(page).said, text
    names = Store(prefix).names()
    assert names == ["lines/exec-n0/00000.jsonl", "lines/exec-n0/00001.jsonl", "training.html"]
    assert all(b"pl4nted" not in Store(prefix).get_bytes(name) for name in names)


def test_a_node_without_rank_0_leaves_the_page_to_the_one_that_has_it(plan, here, monkeypatch, tmp_path):
    store, two = Store(str(tmp_path / "bucket" / "training-key")), replace(plan, nodes=2)
    monkeypatch.setattr(settings, "is_local", lambda: False)
    monkeypatch.setattr(pages, "publish_deck", lambda *_: None)
    monkeypatch.setattr(checkpoints_of_tasks, "place_of", lambda _: (store, Writer("exec", 0, "n0")))
    with live_of_tasks.watching(RUN, two, "training-key"):
        until(store.names)
        store.put_bytes(layout.PAGE, b"of the other node")
        time.sleep(0.3)
    assert store.names() == [layout.PAGE]
    assert store.get_bytes(layout.PAGE) == b"of the other node"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model_dir, chat_rows_file):
    """A real training that loses its memory at step 5, so that it begins again at step 3: its folder and its result."""
    folder = tmp_path_factory.mktemp("live")
    data = DataConfig(source=str(chat_rows_file), format="chat", max_length=64)
    prepare.prepare(data, seed=0, tokenizer_dir=tiny_model_dir, destination=folder / "dataset")
    wanted = {"global_batch": 4, "micro_batch": 4, "max_steps": 8, "log_every": 1, "precision": "fp32"}
    run = run_dict(
        "qlora", training={**wanted, "gradient_checkpointing": False}, lora={"rank": 4, "dropout": 0.0},
        checkpoints={"every_steps": 3}, evaluation={"max_new_tokens": 2}, hardware={"device": "CPU"},
    )  # fmt: skip
    config = RunConfig.model_validate(run)
    compute = ResumableTrainer.compute_loss

    def too_large(self, model, inputs, *arguments, **options):
        if self.state.global_step == 4 and len(inputs["input_ids"]) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return compute(self, model, inputs, *arguments, **options)

    place = CheckpointLocation(str(folder / "run"), folder / "scratch", 10.0)
    plan = planned(config)
    inputs = Inputs(config, plan, tiny_model_dir, folder / "dataset", checkpoints=place, lines=folder / "lines")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResumableTrainer, "compute_loss", too_large)
        Journal(folder / "lines" / LINES).write("began", devices=devices_of(plan))
        result = fit(inputs, folder / "out")
    return SimpleNamespace(plan=plan, result=result, folder=folder / "lines", lines=read_folder(folder / "lines"))


def test_a_training_tells_of_its_attempts_steps_validations_and_checkpoints(trained):
    said = [(line.kind, line.step) for line in trained.lines if line.kind not in ("step", "validation", "saved")]
    assert said == [("began", 0), ("loading", 0), ("training", 0), ("again", 0), ("loading", 0), ("training", 3)]
    first = [step for step, _ in by_step(trained.lines, "tokens")]
    assert first == [1, 2, 3, 4, *range(4, 9)], "step 4 was done again"
    kept = dict(by_step(trained.lines, "loss"))
    assert [kept[step] for step in trained.result.loss_steps] == pytest.approx(trained.result.losses, abs=1e-4)
    assert dict(by_step(trained.lines, "tokens"))[8] == trained.result.loss_tokens[-1]
    validated = {line.step: line.values["loss"] for line in trained.lines if line.kind == "validation"}
    assert validated == {v.step: pytest.approx(v.loss) for v in trained.result.validations}
    assert {line.step for line in trained.lines if line.kind == "saved"} >= set(trained.result.checkpoint_steps)
    for name in ("learning_rate", "gradient_norm", "allocated_gib", "busy_seconds"):
        assert dict(by_step(trained.lines, name)).keys() == set(range(1, 9)), name


def test_the_learning_rate_of_a_step_is_the_one_that_the_trainer_used(trained):
    """At the end of a step the schedule has that of the next: of the last step, 0."""
    rates = dict(by_step(trained.lines, "learning_rate"))
    assert all(rates.values())
    assert rates[1] > rates[8]


def test_the_page_at_the_end_shows_the_result_with_hours_and_both_attempts(trained):
    result = live_of_tasks.with_hours(trained.plan, trained.folder, trained.result)
    assert 0 < result.gpu_hours.faults < result.gpu_hours.used
    assert result.gpu_hours.starting > 0
    page = Page(live_report.page_of_result("run", trained.plan, result, trained.lines))
    page.assert_inert()
    for text in (
        "Memory ran out",
        "Resumed from the checkpoint of step 3.",
        "lost to faults",
        "Tokens per second",
        "Disk",
    ):
        assert text in page.said, text
    assert json.dumps(result.gpu_hours.__dict__)
