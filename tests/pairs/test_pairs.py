"""Every supported pair of a method and a strategy trains as one process does, is saved, killed, and goes on.

The whole product is run by `make pairs`, which writes the table in docs/methods.md; tests/test_equivalence.py and
tests/faults are its short form.
"""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError
from safetensors.torch import load_file

from pairs.pairing import DISTRIBUTED, INTERVAL, PAIRS, REFUSED, STEPS, Pair
from thriftune.config import RunConfig
from thriftune.config.choices import STRATEGIES
from thriftune.errors import ConfigError
from thriftune.methods import METHODS

PARITY = 1e-4  # of a loss, against one process
RESHARDED = 1e-5  # of a loss, after going on with another number of ranks
whole = pytest.mark.pairs
PLAIN = Path(__file__).parent / "plain_loss.py"


def losses_of(run) -> dict[int, float]:
    return run.attempts[0].outcome().losses


def furthest(losses, expected) -> float:
    assert losses, "nothing was logged, so nothing was compared"
    return max(abs(loss - expected[step]) for step, loss in losses.items())


def files_of(run) -> dict:
    (file,) = run.output.glob("*.safetensors")
    return load_file(file)


@pytest.mark.parametrize(("method", "strategy"), REFUSED)
def test_a_pair_that_cannot_be_is_refused_by_name_with_the_nearest_that_can(method, strategy):
    content = Pair(method, strategy).config(1)
    with pytest.raises((ConfigError, ValidationError)) as caught:
        RunConfig.model_validate(content)
    (problem,) = [p for p in caught.value.problems if p.field == "strategy"]
    assert problem.value == strategy
    assert STRATEGIES[strategy].refuses[method] in problem.message
    able = [name for name, facts in STRATEGIES.items() if method not in facts.refuses]
    assert all(name in problem.remedy for name in able)


@whole
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_the_losses_of_one_rank_and_of_two_are_those_of_one_process(pair, trained, record):
    expected = losses_of(trained(Pair(pair.method, "single"), 1))
    assert len(expected) == STEPS
    assert expected[STEPS] < expected[1], "the run must train, or equality says nothing"
    found = []
    for ranks in (1, 2) if pair.is_distributed else (1,):
        found.append(furthest(losses_of(trained(pair, ranks)), expected))
        assert found[-1] < PARITY, ranks
    record(pair, "losses", " and ".join(f"{value:.0e}" for value in found))


@whole
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_what_is_saved_has_the_same_loss_without_this_package(pair, trained, record, tiny_model_dir, dataset):
    run = trained(pair, 2 if pair.is_distributed else 1)
    facts = METHODS[pair.method].facts
    kind = "model" if facts.trains_weights else "adapter4" if facts.quantizes else "adapter"
    command = [sys.executable, str(PLAIN), str(tiny_model_dir), str(run.output), str(dataset), kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    loss, measured = float(done.stdout), run.held_out["after"]["loss"]
    assert loss == pytest.approx(measured, abs=PARITY)
    assert measured < run.held_out["before"]["loss"]
    record(pair, "reloaded", f"{abs(loss - measured):.0e}")


@whole
@pytest.mark.parametrize("pair", PAIRS, ids=str)
def test_a_killed_run_goes_on_as_if_nobody_had(pair, trained, record):
    ranks = 2 if pair.is_distributed else 1
    expected, run = trained(pair, ranks), trained(pair, ranks, new=True)
    attempt = run.start()
    attempt.until_step(2 * INTERVAL + 1)
    attempt.kill().wait()
    assert run.claims_to_be_finished == []
    outcome = run.finish()
    assert outcome.begins[0] in (INTERVAL, 2 * INTERVAL)
    assert furthest(outcome.losses, losses_of(expected)) == 0.0
    assert run.weights == expected.weights
    record(pair, "resumed", "bit for bit")


@whole
@pytest.mark.parametrize("pair", DISTRIBUTED, ids=str)
def test_another_number_of_ranks_goes_on(pair, trained, record):
    expected, run = trained(pair, 2), trained(pair, 2, new=True)
    attempt = run.start()
    attempt.until_step(2 * INTERVAL + 1)
    attempt.kill().wait()
    outcome = run.finish(config=pair.config(1))
    assert outcome.begins[0] in (INTERVAL, 2 * INTERVAL)
    far = furthest(outcome.losses, losses_of(expected))
    assert far < RESHARDED
    mine, other = files_of(run), files_of(expected)
    assert mine.keys() == other.keys()
    assert max(float((mine[name] - other[name]).abs().max()) for name in other) < RESHARDED
    record(pair, "other ranks", f"{far:.0e}")
