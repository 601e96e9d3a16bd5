"""The demo's model, 135M, in bfloat16, in workers as tasks start them: a notice, a kill, damage, and a dead worker."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from faults.comparing import flip, note, require_same_training, stored
from faults.conftest import Undisturbed
from faults.running import ROOT, Run
from thriftune.config import RunConfig
from thriftune.data import prepare
from thriftune.models import fetching as models

pytestmark = pytest.mark.faults
STEPS = 8
INTERVAL = 2
METHODS = {"qlora": "demo-qlora", "zero3": "demo-full"}
DEMO = ROOT / "build" / "demo"


def demo_config(method: str) -> dict:
    """The demo's run file, with a few steps."""
    content = yaml.safe_load((ROOT / "configs" / f"{METHODS[method]}.yaml").read_text(encoding="utf-8"))
    content["training"] |= {"max_steps": STEPS, "log_every": 1}
    return {**content, "checkpoints": {"every_steps": INTERVAL}}


@pytest.fixture(scope="module")
def demo_run(nursery, tmp_path_factory) -> Callable[[str], Run]:
    """Make a run of the demo."""
    folder = tmp_path_factory.mktemp("demo")
    config = RunConfig.model_validate(demo_config("zero3"))
    if not Path(ROOT / config.model.source).is_file() or not (DEMO / "questions.jsonl").is_file():
        pytest.skip("`make demo` fetches its model and rows")
    model, dataset = folder / "model", folder / "dataset"
    source = str(ROOT / config.model.source)
    models.fetch(source, models.version(source), model, None)
    data = config.data.model_copy(update={"source": str(ROOT / config.data.source)})
    prepare.prepare(data, seed=0, tokenizer_dir=model, destination=dataset)

    def make(method: str) -> Run:
        base = {
            "config": demo_config(method), "model": str(model), "dataset": str(dataset),
            "start_method": "spawn", "pause": 0.0,
        }  # fmt: skip
        return Run(nursery, tmp_path_factory.mktemp(f"demo-{method}"), base)

    return make


@pytest.fixture(scope="module")
def undisturbed_demo(demo_run) -> Callable[[str], Undisturbed]:
    """The demo as it is when nothing happens."""
    made: dict[str, Undisturbed] = {}

    def of(method: str) -> Undisturbed:
        if method not in made:
            run = demo_run(method)
            outcome = run.finish()
            assert list(outcome.losses) == list(range(1, STEPS + 1))
            made[method] = Undisturbed(outcome, run.weights, run)
        return made[method]

    return of


@pytest.mark.parametrize("method", METHODS)
def test_the_demo_survives_a_notice_a_kill_and_damage(method, demo_run, undisturbed_demo, record):
    expected = undisturbed_demo(method)
    run = demo_run(method)
    first = run.start()
    first.until_step(1)
    first.notify()
    outcomes = [first.wait()]
    assert outcomes[0].ended == "recoverable", (outcomes[0].message, outcomes[0].log[-4000:])
    note(record, "demo model: SIGTERM", method, outcomes, interval=INTERVAL, limit=0, faults=1)

    second = run.start()
    saved = second.until(lambda: second.events("begin"))[0]["step"] + INTERVAL
    newest = Path(run.prefix) / f"checkpoint-{saved}"
    second.until((newest / "manifest.json").exists)
    outcomes.append(second.kill().wait())
    shard = {"qlora": "adapter_model.safetensors", "zero3": "*zero_pp_rank_1_*optim_states.pt"}[method]
    flip(stored(newest, shard))
    assert run.claims_to_be_finished == []

    outcomes.append(run.finish())
    assert outcomes[1].begins == [outcomes[0].last_step], "the notice cost nothing"
    assert outcomes[2].begins == [saved - INTERVAL], "the damaged one is passed over"
    require_same_training(expected, run, outcomes)
    case = "demo model: kill -9, newest checkpoint damaged"
    # The kill costs an interval and what was trained while uploading, the damage another interval.
    note(record, case, method, outcomes[1:], interval=INTERVAL, limit=2 * INTERVAL + 1, faults=2)


def test_a_killed_worker_of_the_demo_is_started_again(demo_run, undisturbed_demo, record):
    expected = undisturbed_demo("zero3")
    run = demo_run("zero3")
    attempt = run.start()
    attempt.until((Path(run.prefix) / f"checkpoint-{INTERVAL}" / "manifest.json").exists)
    killed_at = time.time()
    done = max(event["step"] for event in attempt.events("step"))
    (pid,) = {event["pid"] for event in attempt.events("step") if event["rank"] == 1}
    os.kill(pid, signal.SIGKILL)
    outcome = attempt.wait()
    assert outcome.ended == "finished", outcome.log[-4000:]
    first, second = outcome.begins
    assert (first, second % INTERVAL) == (0, 0)
    require_same_training(expected, run, [outcome])
    note(
        record, "demo model: kill -9 of worker 1", "zero3", [outcome], interval=INTERVAL, limit=INTERVAL + 1,
        faults=1, steps_lost=done - second, seconds=outcome.begun_at[1] - killed_at,
    )  # fmt: skip
