"""Whether a plan fits is one of three answers, by the error of each item; and few trials find the largest that fits."""

import json
import math
import random
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thriftune.config import ModelConfig, RunConfig
from thriftune.errors import ConfigError
from thriftune.hardware import DEVICES
from thriftune.models import architecture
from thriftune.planning import catalogue, planner, search, suggestions
from thriftune.planning import report as plan_report
from thriftune.planning.choices import Fitting, Refusal
from thriftune.planning.ledger import Evidence, Experience, Quantities, Record, Setup, Trial, run_key
from thriftune.planning.ledger.record import present_versions
from thriftune.planning.offers import THIS_MACHINE, Offer
from thriftune.planning.verdict import band, judge, needs, numbers, sentence
from thriftune.strategies.memory import activations
from thriftune.training_plan import Estimate, Verdict

CATALOGUE = catalogue.load()
SMOL = architecture.of(ModelConfig(source="HuggingFaceTB/SmolLM2-135M-Instruct"))
ON_GPU = {"CUDA context": 0.2, "weights": 4.0, "activations": 6.0, "fragmentation": 1.8}
# Llama-3.1-405B, with more positions.
LARGEST = architecture.from_content(
    {
        "model_type": "llama", "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
        "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 1 << 20,
    },
    "405B",
)  # fmt: skip


def needing(devices, host=1.0, disk=1.0):
    return Estimate("forward and backward", devices, "training", {"Python": host}, host, 0.0, {"models": disk})


def run(method="lora", **sections) -> RunConfig:
    training = {"global_batch": 16, **sections.pop("training", {})}
    data = {"source": "rows.jsonl", "format": "chat", "max_length": 512, **sections.pop("data", {})}
    content = {"name": "run", "method": method, "model": {"source": "x/y"}, "data": data, "training": training}
    return RunConfig.model_validate(content | sections)


ALONE = run(strategy="single")


def on_a_t4_of(gib, config):
    here = Offer(THIS_MACHINE, DEVICES["T4"], 1, gib, 99.0, 4, 500.0, 0.0)
    return planner.plan(config, CATALOGUE, architecture=SMOL, here=here)


def test_what_lasts_is_nearly_exact_and_what_torch_holds_beyond_it_is_not():
    low, high = band(ON_GPU)
    assert low == pytest.approx(0.15 + 0.99 * 4 + 0.99 * 6 + 0.3)
    assert high == pytest.approx(0.25 + 1.01 * 4 + 1.05 * 6 + 2.4)
    on_cpu = {"Python and libraries": 0.7, "weights": 4.0, "activations": 5.3}
    assert band(on_cpu) == pytest.approx((8.9, 10 / 0.95))


@pytest.mark.parametrize(
    ("gpu", "host", "answer", "where"),
    [
        (13.0, 50.0, "fits", "each GPU"),
        (12.9, 50.0, "uncertain", "each GPU"),
        (10.3, 50.0, "does not fit", "each GPU"),
        (13.0, 20.5, "uncertain", "the host"),
        (10.4, 17.0, "does not fit", "the host"),  # though the GPU is nearer to twice its limit
    ],
)
def test_the_answer_is_that_of_the_worst_place(gpu, host, answer, where):
    verdict = judge(needing([ON_GPU], host=20.0), gpu, host, 100.0)
    assert (verdict.answer, verdict.where) == (answer, where)
    assert bool(verdict.settles) == (answer == "uncertain")


def test_an_uncertain_answer_says_what_would_settle_it():
    verdict = judge(needing([ON_GPU]), 12.0, 50.0, 100.0, micro_batch=4)
    assert sentence(verdict).startswith("each GPU needs 10.4 to 13.0 of 12.0 GiB; a smaller training.micro_batch")
    assert "workflows/plan.py calibrate" in verdict.settles
    assert "micro_batch" not in judge(needing([ON_GPU]), 12.0, 50.0, 100.0).settles


def test_a_plan_takes_what_fits_and_does_not_fill_the_uncertain_part():
    """The largest micro batch was taken up to 5 % below the limit, of an estimate that torch exceeded by up to 20 %."""
    made = on_a_t4_of(14.56, ALONE)
    assert made.memory.verdict.answer == "fits"
    assert made.micro_batch > 1
    smallest = on_a_t4_of(14.56, run(strategy="single", training={"micro_batch": 1})).memory
    low, high = band(smallest.device)
    tight = on_a_t4_of((low + high) / 2, ALONE)
    assert (tight.memory.verdict.answer, tight.micro_batch) == ("uncertain", 1)
    shown = " ".join(plan_report.plan_table(tight, "run").split())
    assert "workflows/plan.py calibrate" in shown
    settles = tight.memory.verdict.settles
    assert "nearest changes that surely fit: strategy: auto (1 x this machine), or data.max_length: 256" in settles
    assert "uncertain" in plan_report.plan_html(tight, "run")
    assert json.loads(plan_report.plan_json(tight, "run"))["memory"]["verdict"]["answer"] == "uncertain"
    assert on_a_t4_of(high + 0.01, ALONE).memory.verdict.answer == "fits"
    with pytest.raises(ConfigError, match="does-not-fit|nothing fits"):
        on_a_t4_of(low - 0.01, ALONE)


SETUP = Setup("T4", "g4dn.metal", 1, 8, "zero", "qlora", "llama", "fp16", {"torch": "2.13.0"})
TRIED = Trial("key", "", 4, 1)
WHEN = datetime(2026, 11, 30, 12, tzinfo=UTC)


def held(reserved, context=1.0, setup=SETUP, **more):
    """The record of a run that held other parts of what was planned."""
    said = Quantities(reserved_gib=10.0, context_gib=0.2)
    return Record(WHEN, "run", setup, said, Quantities(reserved_gib=10 * reserved, context_gib=0.2 * context), **more)


def evidence(*records):
    return Evidence(Experience.of(records), SETUP, TRIED)


def width(span):
    return span.high - span.low


@pytest.mark.parametrize("records", [(), (held(1.5, setup=replace(SETUP, device="L4")),)])
def test_no_evidence_changes_no_verdict(records):
    for items in (ON_GPU, {"Python and libraries": 0.7, "weights": 4.0}):
        assert needs(items, evidence(*records)) == needs(items, None)
    assert judge(needing([ON_GPU]), 12.0, 50.0, 100.0, evidence=evidence(*records)) == judge(
        needing([ON_GPU]), 12.0, 50.0, 100.0
    )


@settings(deadline=None, max_examples=25)
@given(st.floats(0.8, 1.2), st.floats(0.7, 1.4), st.integers(0, 2**32))
def test_a_known_bias_of_memory_is_recovered(bias, of_context, seed):
    noise = random.Random(seed)
    runs = [held(bias * math.exp(noise.gauss(0, 0.01)), of_context) for _ in range(40)]
    found = needs(ON_GPU, evidence(*runs))
    assert found.low < bias * 11.8 + of_context * 0.2 < found.high
    assert width(found) < 0.6 * width(needs(ON_GPU, None))
    assert found.leans_on == "measured: 40 runs on g4dn.metal"


@settings(deadline=None, max_examples=25)
@given(st.floats(0.9, 1.1), st.floats(0.2, 5.0))
def test_one_outlier_of_memory_moves_little(bias, outlier):
    calm = needs(ON_GPU, evidence(*[held(bias)] * 5))
    disturbed = needs(ON_GPU, evidence(*[held(bias)] * 4, held(outlier)))
    assert disturbed.low / calm.low == pytest.approx(1, abs=0.05)
    assert disturbed.high / calm.high == pytest.approx(1, abs=0.08)


def test_runs_of_other_software_say_less_of_memory():
    same = needs(ON_GPU, evidence(held(0.9)))
    other = needs(ON_GPU, evidence(held(0.9, setup=replace(SETUP, versions={"torch": "2.12.0"}))))
    assert same.high < other.high < needs(ON_GPU, None).high
    assert width(same) < width(other)


def test_what_runs_have_shown_settles_an_uncertain_answer():
    runs = evidence(*[held(0.9)] * 8)
    assert judge(needing([ON_GPU]), 12.0, 50.0, 100.0).answer == "uncertain"
    sure = judge(needing([ON_GPU]), 12.0, 50.0, 100.0, evidence=runs)
    assert (sure.answer, sure.settles) == ("fits", "")
    assert "measured: 8 runs on g4dn.metal" in numbers(sure)
    assert judge(needing([ON_GPU]), 12.0, 50.0, 100.0, evidence=evidence(*[held(1.2)] * 8)).answer == "does not fit"


def test_on_a_cpu_what_workers_held_says_the_same_of_their_host():
    """The host of two workers, which is the sum of both, went on to be judged by the estimate alone."""
    worker = {"Python and libraries": 0.7, "weights": 4.0}
    setup = replace(SETUP, device="CPU")
    said, found = Quantities(allocated_gib=4.7), Quantities(allocated_gib=3.8)
    runs = Evidence(Experience.of([Record(WHEN, "run", setup, said, found)] * 8), setup, TRIED)
    estimate = needing([worker, worker])
    estimate = replace(estimate, host={item: 2 * gib for item, gib in worker.items()})
    assert judge(estimate, 99.0, 9.0, 99.0).answer == "uncertain"
    assert judge(estimate, 99.0, 9.0, 99.0, evidence=runs).answer == "fits"


@pytest.mark.parametrize(
    ("ran_out", "gib", "answer"), [(False, 12.1, "fits"), (True, 12.1, "does not fit"), (False, 11.5, "does not fit")]
)
def test_a_calibration_of_the_same_plan_is_the_answer(ran_out, gib, answer):
    """Three steps that ran with 11.9 of 12.1 GiB are no estimate, whatever its error would be."""
    tried = held(1.17, trial=replace(TRIED, ran_out=ran_out))
    found = judge(needing([ON_GPU]), gib, 50.0, 100.0, evidence=evidence(tried))
    assert found.answer == answer
    assert "a calibration on g4dn.metal, 2026-11-30" in found.leans_on
    others = [replace(TRIED, run="other"), replace(TRIED, micro_batch=2), replace(TRIED, settings="{}")]
    for other in others:
        of_another = evidence(held(1.0, trial=replace(other, ran_out=ran_out)))
        assert "a calibration" not in judge(needing([ON_GPU]), gib, 50.0, 100.0, evidence=of_another).leans_on
    newer = replace(tried, when=WHEN.replace(day=1, month=12), trial=replace(TRIED, ran_out=not ran_out))
    told = judge(needing([ON_GPU]), 12.1, 50.0, 100.0, evidence=evidence(newer, tried))
    assert told.answer == ("fits" if ran_out else "does not fit")


@pytest.mark.parametrize("ran_out", [True, False])
def test_a_plan_that_was_uncertain_is_sure_or_refused_once_it_was_calibrated(ran_out):
    smallest = on_a_t4_of(14.56, run(strategy="single", training={"micro_batch": 1})).memory
    gib = sum(band(smallest.device)) / 2
    plan = on_a_t4_of(gib, ALONE)
    trial = Trial(run_key(ALONE), plan.settings, plan.micro_batch, plan.accumulation, ran_out=ran_out)
    measured = Quantities() if ran_out else Quantities(reserved_gib=gib - 0.2, context_gib=0.15)
    setup = Setup("T4", THIS_MACHINE, 1, 1, "single", "lora", "llama", "fp16", present_versions())
    record = Record(WHEN, "run", setup, Quantities(), measured, trial=trial)
    here = Offer(THIS_MACHINE, DEVICES["T4"], 1, gib, 99.0, 4, 500.0, 0.0)
    if ran_out:
        with pytest.raises(ConfigError, match="a calibration on this machine, 2026-11-30, ran out of memory"):
            planner.plan(ALONE, CATALOGUE, architecture=SMOL, here=here, records=[record])
        return
    sure = planner.plan(ALONE, CATALOGUE, architecture=SMOL, here=here, records=[record])
    assert (sure.memory.verdict.answer, sure.micro_batch) == ("fits", 1)
    assert "measured: a calibration on this machine" in plan_report.plan_html(sure, "run")


def fitting(answer):
    return Fitting(None, replace(needing([ON_GPU]), verdict=Verdict(answer, "each GPU", 1.0, 1.0, 1.0)))


@given(st.integers(1, 16), st.integers(0, 16), st.integers(0, 16))
def test_the_largest_micro_batch_that_fits_is_found_in_few_trials(count, sure, unsure):
    tried = []

    def attempt(micro):
        tried.append(micro)
        if micro > sure + unsure:
            return Refusal("", None, "", 1.0)
        return replace(fitting("fits" if micro <= sure else "uncertain"), choice=micro)

    found = search._largest_that_fits(list(range(1, count + 1)), attempt)
    if sure:
        assert found.choice == min(sure, count)
        assert found.is_sure
    else:
        assert isinstance(found, Refusal) if not unsure else found.choice == 1
    assert len(tried) <= 6
    assert len(tried) == len(set(tried))


@given(st.integers(0, 13), st.integers(1, 13))
def test_the_least_change_that_fits_is_found_in_few_trials(first, count):
    tried = []

    def attempt(change):
        tried.append(change)
        return str(change) if change >= first else None

    found = suggestions._first_that_fits(list(range(count)), attempt)
    assert found == (str(first) if first < count else None)
    assert len(tried) <= 5


@pytest.mark.parametrize("method", ["full", "qlora"])
def test_the_largest_model_and_a_million_tokens_are_planned_from_few_passes(method, monkeypatch):
    """Every micro batch, length and machine was tried: 405 billion weights took minutes to be refused."""
    traced, attempts = [], []
    trace, attempt = activations._trace, search._try
    monkeypatch.setattr(activations, "_trace", lambda *shape, **more: traced.append(shape) or trace(*shape, **more))
    monkeypatch.setattr(search, "_try", lambda *tried: attempts.append(tried) or attempt(*tried))
    config = run(method, data={"max_length": 1_000_000})
    with pytest.raises(ConfigError, match="nothing fits"):
        planner.plan(config, CATALOGUE, architecture=LARGEST)
    assert 0 < len(traced) <= 100
    assert 0 < len(attempts) <= 4000
