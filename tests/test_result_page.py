"""The page at the end of a run: what came out, what it cost and where it is; and answers side by side."""

import re
from dataclasses import asdict, replace

import pytest
from html_page import Page
from planning import planned
from test_results import AFTER, BEFORE, TRAINED

from thriftune.gpu_hours import GpuHours
from thriftune.inference import side_by_side
from thriftune.inference.cost import Cost
from thriftune.inference.report import RunMetrics, loss_rows, metrics_from_json, page_of, remarks_of, summary_table
from thriftune.models.answering import Sampling
from thriftune.models.merging.comparing import MergedWeights
from thriftune.models.next_tokens import Compared
from thriftune.models.saving import SavedWeights
from thriftune.training.guards.oom import Halvings
from thriftune.training.guards.resources import FillWarning, Samples
from thriftune.training.result import Validation

HOSTILE = '</td></table></div><script>alert("x")</script><img src=x onerror=alert(1)>'
COST = Cost("2 x g4dn.metal", 5400.0, 10.0, "USD", "2026-09-24, us-east-1")
MODEL, ADAPTER = "s3://b/7f/abc-n3-0-dn3-0/1/model", "s3://b/7f/abc-n3-0-dn2-0/1/adapter"
FETCH = "flyte://v1/ml/production/abc/n3/o/model"
METRICS = RunMetrics("my-run", "qlora", TRAINED, {"model": MODEL, "adapter": ADAPTER}, cost=COST)


def asked(*pairs):
    """The training, with what was answered to each prompt before and after."""
    prompts = [f"Prompt {number}?" for number in range(len(pairs))]
    before, after = zip(*pairs, strict=True)
    return replace(
        TRAINED,
        before=replace(BEFORE, prompts=prompts, answers=list(before)),
        after=replace(AFTER, prompts=prompts, answers=list(after)),
    )


def test_a_page_shows_losses_answers_cost_and_how_to_get_the_model():
    validations = [Validation(0, 0.0, 2.0), Validation(1, 10.0, 1.5), Validation(2, 20.0, 1.0)]
    metrics = replace(METRICS, training=replace(TRAINED, validations=validations))
    page = Page(page_of(metrics, FETCH))
    page.assert_inert()
    for text in ("Held-out loss before 2.0000", "Held-out loss after 1.0000", "Why? A B", "15.00 USD", MODEL, ADAPTER):
        assert text in page.said
    assert f"pyflyte fetch -r {FETCH} my-run" in page.said
    assert "--model_dir my-run/data --prompts '[\"What is a GPU?\"]'" in page.said
    assert ("class", "held-out") in page.attributes, "the losses in between are drawn"
    assert "To know" not in page.said


def test_the_loss_of_general_answers_is_beside_the_held_out_loss_where_it_was_measured():
    measured = replace(
        TRAINED,
        before=replace(BEFORE, general_loss=3.25),
        after=replace(AFTER, general_loss=3.5),
        validations=[Validation(0, 0.0, 2.0, general_loss=3.25), Validation(2, 20.0, 1.0, general_loss=3.5)],
    )
    metrics = replace(METRICS, training=measured)
    page, plain = Page(page_of(metrics, FETCH)), Page(page_of(METRICS, FETCH))
    assert "loss of general answers 3.2500 3.5000" in page.said
    assert ("class", "general") in page.attributes
    assert "general" not in plain.said
    assert re.search(r"loss of general answers\s+│ 3\.2500\s+│ 3\.5000", summary_table(metrics))
    unknown = replace(METRICS, training=replace(measured, before=None))
    assert re.search(r"loss of general answers\s+│\s+│ 3\.5000", summary_table(unknown))


@pytest.mark.parametrize(
    ("outputs", "fetch", "said", "unsaid"),
    [
        ({"model": "/o/model"}, "", ["model /o/model", "--model_dir /o/model"], ["pyflyte fetch"]),
        ({"model": ADAPTER, "adapter": ADAPTER}, FETCH, [f"adapter {ADAPTER}", "PeftModel"], ["generate", "model s3"]),
        ({"model": MODEL, "published": "https://huggingface.co/me/x"}, FETCH, ["published https://"], []),
        ({"model": MODEL, "published": "s3://b/x/publish"}, FETCH, ["to be published s3://"], []),
    ],
)  # fmt: skip
def test_a_page_names_each_place_once_and_as_what_it_is(outputs, fetch, said, unsaid):
    text = Page(page_of(replace(METRICS, outputs=outputs), fetch)).said
    assert [one for one in said if one not in text] == []
    assert [one for one in unsaid if one in text] == []


def test_a_page_shows_the_gpu_hours_of_all_attempts():
    training = replace(
        TRAINED, gpu_hours=GpuHours(40.0, faults=2.0, starting=1.0, layers=3.0, between=0.5, planned=30.0)
    )
    said = Page(page_of(replace(METRICS, training=training), FETCH)).said
    for text in ("planned 30.0 h", "used 40.0 h", "lost to faults 2.0 h", "lost to waiting 4.5 h", "30 min between"):
        assert text in said, text
    assert "GPU-hours" not in Page(page_of(METRICS, FETCH)).said, "results of older versions have none"


def test_what_a_model_says_stays_text():
    training = asked((HOSTILE, f"def f():\n    return 1\n{HOSTILE}"), ("", "لا أعرف"), ("知りません", "\u202eabc"))
    page = Page(page_of(replace(METRICS, training=training), FETCH))
    page.assert_inert()
    assert f"def f():\n    return 1\n{HOSTILE}" in page.text, "with its lines"
    assert "no text" in page.text
    assert ("dir", "auto") in page.attributes


def test_many_and_long_answers_are_cut_on_the_page_and_that_is_said():
    training = asked(*[("x", "y" * 5000)] * 150)
    page = page_of(replace(METRICS, training=training), FETCH)
    assert "The first 100 prompts; 50 more, and every text in full, are in the run&#39;s metrics." in page.replace(
        "'", "&#39;"
    )
    assert "Prompt 99?" in page
    assert "Prompt 100?" not in page
    assert "and 1,000 more characters" in page
    assert len(page) < 600_000


ROUNDED = SavedWeights("fp16", "nearest", 64, 2.0, 1.0, 1.5)
MERGED = MergedWeights("bf16", "nearest", 64, 2.0, 1.0, 1.5)
EVENTS = {
    "answers": (replace(METRICS, remarks=["Its answers are left out."]), "Its answers are left out."),
    "best": (replace(METRICS, training=replace(TRAINED, kept_step=1)), "weights of step 1 of 2"),
    "worse": (replace(METRICS, training=replace(TRAINED, after=replace(AFTER, loss=2.5))), "did not fall"),
    "unmeasured": (replace(METRICS, training=replace(TRAINED, before=None)), "not measured before training"),
    "resumed": (
        replace(METRICS, training=replace(TRAINED, resumed_at=7, remarks=["seed was 1 there."])),
        "checkpoint of step 7. seed was 1 there.",
    ),
    "memory": (replace(METRICS, training=replace(TRAINED, halvings=Halvings(1, 8, 4))), "micro batch 4 instead of 8"),
    "diverged": (replace(METRICS, training=replace(TRAINED, skipped_steps=[5])), "batch of step 5 was skipped"),
    "full": (
        replace(METRICS, training=replace(TRAINED, warnings=[FillWarning(1.0, "disk", 0.9, None, "/tmp is full.")])),
        "/tmp is full.",
    ),
    "rounding": (replace(METRICS, training=replace(TRAINED, saved=ROUNDED)), "Saving in fp16 loses part"),
    "merging": (replace(METRICS, merged=MERGED), "Saving in bf16 loses part"),
    "differs": (
        replace(METRICS, merged=replace(MERGED, saved_loss=1.0, difference="outputs: too far.")), "outputs: too far."
    ),
    "fp32": (replace(METRICS, merged=replace(MERGED, saved_loss=1.0, rounded_loss=1.5)), "saved in fp32."),
}  # fmt: skip


def test_next_tokens_of_a_merged_model_are_beside_its_losses():
    merged = replace(MERGED, saved_loss=1.0, next_tokens=Compared(64, 441, 0.000123, 0.9977))
    metrics = replace(METRICS, merged=merged)
    rows = [("next tokens, merged (441)", "", "KL divergence 0.00012 nats"), ("their likeliest agree", "", "99.8%")]
    assert list(loss_rows(metrics))[-2:] == rows
    page, table = Page(page_of(metrics, FETCH)).text, summary_table(metrics)
    assert [text for name, _, value in rows for text in (name, value) if text not in page or text not in table] == []
    assert metrics_from_json(asdict(metrics)) == metrics


@pytest.mark.parametrize("what", EVENTS)
def test_what_a_reader_must_know_is_on_the_page(what):
    """It was in the logs of other pods."""
    metrics, said = EVENTS[what]
    (remark,) = remarks_of(metrics)
    assert said in remark
    assert remark in Page(page_of(metrics, FETCH)).text
    assert list(remarks_of(METRICS)) == []


@pytest.mark.parametrize(
    ("plan", "training", "short", "said"),
    [
        ({}, {}, "30.00 USD", ["1 h 30 min on 2 x g4dn.metal at 20.00 USD per hour, the catalogue's price of 2026"]),
        ({}, {"seconds": 7200.0, "resumed_at": 5}, "40.00 USD", ["2 h 00 min", "or the steps of all attempts"]),
        ({"price_per_hour": 0.001}, {}, "<0.01 USD", ["on-demand prices; spot nodes cost less", "Not counted:"]),
        ({"price_per_hour": 0.0, "instance": "k3s", "nodes": 1}, {}, "nothing", ["1 x k3s, which costs nothing"]),
        ({"price_per_hour": 0.0, "instance": "this machine"}, {}, "nothing", ["on this machine, which costs nothing"]),
    ],
)  # fmt: skip
def test_the_cost_is_that_of_the_time_that_was_measured(run_config, plan, training, short, said):
    node = {"nodes": 2, "instance": "g4dn.metal", "price_per_hour": 20.0, "prices_as_of": "2026-09-24"}
    trained = replace(TRAINED, **{"seconds": 3600.0, "resources": Samples(seconds=[5.0, 5400.0]), **training})
    cost = Cost.of(replace(planned(run_config()), **{**node, **plan}), trained, is_of_another_run=False)
    assert cost.short == short
    assert [one for one in said if one not in cost.why] == []


def test_a_training_that_the_cache_served_cost_this_run_nothing():
    cost = replace(COST, is_of_another_run=True)
    assert "There it cost 15.00 USD" in cost.why
    page = Page(page_of(replace(METRICS, cost=cost), FETCH)).said
    assert "Cost nothing for the training another run trained" in page
    assert "Nothing for the training. Another run trained this" in page
    assert "answering prompts with a training that Flyte's cache served" in page, "its nodes may have GPUs"


def test_answers_of_several_adapters_stand_side_by_side():
    prompts = [f"Prompt {number} {HOSTILE}" for number in range(120)]
    answers = {"adapter-1": [f"one {n}" for n in range(120)], "adapter-2": [f"two {n} {HOSTILE}" for n in range(120)]}
    source = side_by_side.page_of(prompts, answers, {"model": MODEL}, Sampling(64, 0.5, 7), "s3://b/answers.jsonl")
    page = Page(source)
    page.assert_inert()
    assert "drawn at temperature 0.5 with seed 7. All answers, in full: s3://b/answers.jsonl" in page.said
    assert f"Prompt adapter-1 adapter-2 Prompt 0 {HOSTILE} one 0 two 0 {HOSTILE} Prompt 1 " in page.said
    assert "20 more are in the file." in page.said
    assert "one 100" not in page.said


def test_who_was_not_asked_did_not_answer_nothing():
    """Of each prompt for one adapter, the others seemed to have had no answer."""
    prompts, answers = ["Why?", "How?"], {"one": ["1", None], "two": [None, ""]}
    page = Page(side_by_side.page_of(prompts, answers, {"model": MODEL}, Sampling(), "f"))
    assert "Prompt one two Why? 1 not asked How? not asked no text" in page.said
    lines = side_by_side.as_text(prompts, answers, "f").splitlines()
    assert lines == ["> Why?", "  one: 1", "> How?", "  two: ", "All answers: f"]


def test_a_log_holds_the_beginning_of_answers_and_says_what_it_cut():
    prompts = ["Why?\nSay it.", *["More?"] * 30]
    answers = {"base": ["b" * 350 + "\x1b[31m", *["short\nlines"] * 30]}
    lines = side_by_side.as_text(prompts, answers, "s3://b/answers.jsonl").splitlines()
    assert lines[:3] == ["> Why?", "    Say it.", f"  base: {'b' * 300} [... 55 more characters]"]
    assert lines[3:6] == ["> More?", "  base: short", "    lines"]
    assert lines[-2:] == ["... and 11 more prompts", "All answers, in full: s3://b/answers.jsonl"]
    assert "\x1b" not in side_by_side.as_text(["?"], {"base": ["\x1b[31m\r"]}, "f")
