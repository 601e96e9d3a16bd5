"""The gate: what passes, fails and stays undecided, and that an equal model does not pass as a better one."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planted_results import answers, choices, estimate, pair_of_models, results, rows

from thriftune.config.publishing import GateConfig
from thriftune.errors import ConfigError
from thriftune.inference.gate.comparing import compare
from thriftune.inference.gate.comparison import Compared, Comparison
from thriftune.inference.gate.verdict import Verdict, decide

LOOP = "and so on " * 10


def gate(improves=(), keeps=(), **more):
    """A gate of metrics and their thresholds."""
    return GateConfig.model_validate(
        {
            "improves": [{"metric": metric, "by": by} for metric, by in improves],
            "keeps": [{"metric": metric, "within": within} for metric, within in keeps],
            **more,
        }
    )


def measured(change, half=0.01, *, higher=True, floor=0.0, items=300, kind="mean", flipped=(9, 3)):
    """A comparison of one metric, with an even interval around a change."""
    one = Compared("t.m", kind, items, estimate(0.5, 0.1), estimate(0.5 + change, 0.1), estimate(change, half),
                   0.4, higher, *flipped, None, floor)  # fmt: skip
    return Comparison(0.95, 0, 1, (), (one,), ())


def improving(by, *args, **more):
    return decide(measured(*args, **more), gate(improves=[("t.m", by)])).outcome


def keeping(within, *args, **more):
    return decide(measured(*args, **more), gate(keeps=[("t.m", within)])).outcome


@pytest.mark.parametrize(("by", "change", "more", "outcome"), [
    (0.02, 0.04, {}, "passes"),
    (0.02, 0.025, {}, "undecided"),
    (0.02, 0.005, {}, "fails"),
    (0.02, -0.04, {}, "fails"),
    (0.02, -0.04, {"higher": False}, "passes"),
    (0.0, 0.011, {}, "passes"),
    (0.0, 0.01, {}, "undecided"),  # zero is no improvement
    (0.0, -0.02, {}, "fails"),
    (0.0, 0.04, {"floor": 0.05}, "fails"),
    (0.0, 0.055, {"floor": 0.05}, "undecided"),
    (0.0, 0.061, {"floor": 0.05}, "passes"),
    (0.0, 0.0, {"half": 0.0}, "fails"),
    (0.0, 0.0, {"half": 0.012, "flipped": (0, 0)}, "fails"),  # not one item changed
    (0.0, 0.5, {"items": 5}, "undecided"),
])  # fmt: skip
def test_improves_passes_where_the_whole_interval_is_above_both_threshold_and_noise(by, change, more, outcome):
    assert improving(by, change, **more) == outcome


@pytest.mark.parametrize(("within", "change", "more", "outcome"), [
    (0.02, -0.009, {}, "passes"),
    (0.02, -0.02, {}, "undecided"),
    (0.02, -0.04, {}, "fails"),
    (0.02, 0.04, {"higher": False}, "fails"),
    (0.02, 0.5, {}, "passes"),
    (0.0, 0.0, {}, "undecided"),
    (0.0, 0.0, {"half": 0.0}, "passes"),  # both did the same
    (0.01, 0.0, {"half": 0.012, "flipped": (0, 0)}, "undecided"),  # not one item changed, but one in a hundred may
    (0.02, 0.0, {"half": 0.012, "flipped": (0, 0)}, "passes"),
    (0.02, -0.04, {"floor": 0.06}, "passes"),
    (0.02, 0.0, {"items": 5}, "undecided"),
    (0.2, 0.15, {"higher": None, "kind": "relative"}, "passes"),
    (0.2, 0.3, {"higher": None, "kind": "relative"}, "fails"),
    (0.2, -0.3, {"higher": None, "kind": "relative"}, "fails"),
    (0.2, -0.2, {"higher": None, "kind": "relative"}, "undecided"),
])  # fmt: skip
def test_keeps_passes_where_the_whole_interval_is_within_what_is_accepted(within, change, more, outcome):
    assert keeping(within, change, **more) == outcome


ORDER = {"fails": 0, "undecided": 1, "passes": 2}
NUMBERS = st.floats(-0.4, 0.4).map(lambda number: round(number, 3))


@given(
    NUMBERS, st.floats(0, 0.2), st.floats(0, 0.3), st.floats(0, 0.3), st.floats(0, 0.1), st.sampled_from([True, False])
)
def test_asking_for_more_never_makes_a_better_outcome(change, half, first, second, floor, higher):
    less, more = sorted((first, second))
    known = {"higher": higher, "floor": floor}
    assert ORDER[improving(more, change, half, **known)] <= ORDER[improving(less, change, half, **known)]
    assert ORDER[keeping(less, change, half, **known)] <= ORDER[keeping(more, change, half, **known)]
    surer = ORDER[improving(less, change, half / 2, **known)]
    assert {surer, ORDER[improving(less, change, half, **known)]} != {0, 2}, "a longer interval only knows less"


@given(NUMBERS, st.floats(0, 0.2), st.floats(0.001, 0.3))
def test_what_improves_is_also_kept(change, half, by):
    if improving(by, change, half) == "passes":
        assert keeping(0.0, change, half) == "passes"


@pytest.mark.parametrize(("items", "share"), [(30, 0.2), (100, 0.05), (300, 0.1)])
def test_a_model_that_is_equal_to_its_base_is_not_better_in_95_of_100_simulations(items, share):
    """Both draw their answers, so that items flip in both directions with the same chance."""
    passes = 0
    asked = gate(improves=[("choice.accuracy", 0.0)])
    for seed in range(200):
        base, tuned = (results(i.items) for i in pair_of_models(items, share / 2, share / 2, seed))
        plain = [replace(r, items=tuple(replace(i, group="") for i in r.items)) for r in (base, tuned)]
        passes += decide(compare(plain[:1], plain[1], seed=seed), asked).outcome == "passes"
    assert passes <= 10


def test_the_same_answers_twice_are_no_improvement_and_no_loss():
    model = results(choices([True, False] * 20), rows([20, 30] * 20, [10, 20] * 20), answers(["It is four."] * 20))
    same = compare([model, model], model)
    metrics = ("choice.accuracy", "rows.loss", "written.exact_match", "answers.stops", "answers.length")
    kept = decide(same, gate(keeps=[(metric, 0.0) for metric in metrics]))
    assert kept.outcome == "passes"
    assert all("not one of" in ruling.reason for ruling in kept.rulings)
    better = decide(same, gate(improves=[(metric, 0.0) for metric in metrics[:3]]))
    assert {ruling.outcome for ruling in better.rulings} == {"fails"}


def test_a_model_that_is_better_passes_and_one_that_is_worse_fails_with_examples():
    base, better = pair_of_models(300, 0.15, 0.02, seed=3)
    asked = gate(improves=[("choice.accuracy", 0.02)], keeps=[("choice/grammar.accuracy", 0.1)])
    assert decide(compare([base], better), asked).outcome == "passes"
    worse = decide(compare([better], base), asked)
    assert worse.outcome == "fails"
    ruling = worse.rulings[0]
    assert ruling.reason.startswith("choice.accuracy must get better by 2.0 points, but it fell by")
    assert len(ruling.examples) == 5
    assert {flip.became for flip in ruling.examples} == {"worse"}
    assert all(flip.question.item in ruling.reason for flip in ruling.examples)
    assert worse.sentence.startswith("The gate fails: choice.accuracy must get better")


@pytest.mark.parametrize(("metric", "tuned"), [
    ("answers.stops", answers(["It is four."] * 20, stopped=False)),
    ("answers.repeats", answers([LOOP] * 20)),
    ("answers.empty", answers([""] * 20)),
    ("answers.other_language", answers(["Это четыре."] * 20)),
    ("answers.length", answers(["It is four."] * 20, tokens=40)),
    ("answers.refusals", answers(["I'm sorry, but I can't help with that."] * 20)),
    ("answers.template_text", answers(["It is four.<|im_end|>"] * 20)),
])  # fmt: skip
def test_a_model_that_answers_badly_fails_by_name(metric, tuned):
    """A loss does not show any of them; each fails the rule about it, and none of those about the others."""
    base = results(answers(["It is four."] * 20))
    names = ("stops", "repeats", "empty", "other_language", "length", "refusals", "template_text")
    found = compare([base], results(tuned))
    verdict = decide(found, gate(keeps=[(f"answers.{name}", 0.1) for name in names]))
    assert [ruling.metric for ruling in verdict.deciding] == [metric]
    assert (verdict.outcome, metric in verdict.sentence) == ("fails", True)
    if metric != "answers.length":
        assert [flip.question.tuned for flip in verdict.deciding[0].examples] == [tuned[0].answer] * 5


def test_undecided_says_how_many_items_it_would_take():
    base, tuned = pair_of_models(60, 0.1, 0.06, seed=1)
    (ruling,) = decide(compare([base], tuned), gate(improves=[("choice.accuracy", 0.0)])).rulings
    assert ruling.outcome == "undecided"
    assert ruling.needed > ruling.items == 60
    assert f"it would take about {ruling.needed:,} items" in ruling.reason
    still = results(choices([True, False] * 20)), results(choices([True, False] * 20))
    other = replace(still[1], items=tuple(replace(item, log_likelihoods=(-2.0, -3.0)) for item in still[1].items))
    (ruling,) = decide(compare(still[:1], other), gate(keeps=[("choice.accuracy", 0.05)])).rulings
    assert (ruling.outcome, ruling.needed) == ("undecided", 72)
    assert "not one of 40 items changed (interval at 95%: -8." in ruling.reason
    assert "at the limit itself" in decide(measured(0.02), gate(improves=[("t.m", 0.02)])).rulings[0].reason


def test_what_is_undecided_is_published_only_where_the_file_says_so():
    for outcome, hold, publish in (("passes", True, True), ("undecided", False, True), ("fails", False, False)):
        verdict = Verdict(outcome, ())
        assert verdict.publishes(gate([("a.b", 0)], on_undecided="hold")) == hold
        assert verdict.publishes(gate([("a.b", 0)], on_undecided="publish")) == publish


def test_one_rule_that_fails_outweighs_all_that_pass_or_are_undecided():
    found = replace(measured(0.04), metrics=tuple(
        replace(measured(change).metrics[0], metric=f"t.{name}")
        for name, change in (("up", 0.04), ("near", 0.005), ("down", -0.04))
    ))  # fmt: skip
    rules = [("t.up", 0.0), ("t.near", 0.0), ("t.down", 0.0)]
    assert [ruling.outcome for ruling in decide(found, gate(rules)).rulings] == ["passes", "undecided", "fails"]
    assert [decide(found, gate(rules[:count])).outcome for count in (1, 2, 3)] == ["passes", "undecided", "fails"]
    assert decide(found, gate(rules)).holding == 1


def test_a_metric_that_was_not_measured_or_is_no_number_is_an_error_by_name():
    base, tuned = pair_of_models(60, 0.1, 0.1, seed=2)
    found = compare([base], tuned)
    with pytest.raises(ConfigError) as caught:
        decide(
            found, gate(improves=[("choise.accuracy", 0)], keeps=[("choice.acuracy", 0), ("choice/gramar.accuracy", 0)])
        )
    problems = {problem.value: problem for problem in caught.value.problems}
    assert [p.field for p in problems.values()] == [
        "publish.gate.improves.0.metric", "publish.gate.keeps.0.metric", "publish.gate.keeps.1.metric",
    ]  # fmt: skip
    assert "Did you mean choice" in problems["choise.accuracy"].remedy
    assert problems["choice.acuracy"].remedy == "Did you mean accuracy?"
    assert "choice/grammar" in problems["choice/gramar.accuracy"].remedy
    broken = replace(measured(0.0), metrics=(replace(measured(0.0).metrics[0], floor=float("nan")),))
    with pytest.raises(ConfigError, match=r"t\.m: is no finite number"):
        decide(broken, gate(improves=[("t.m", 0)]))
    with pytest.raises(ValueError, match=r"0\.99"):
        decide(found, gate(improves=[("choice.accuracy", 0)], confidence=0.99))


def test_a_verdict_is_the_same_after_json():
    base, tuned = pair_of_models(300, 0.02, 0.15, seed=3)
    verdict = decide(compare([base], tuned), gate(keeps=[("choice.accuracy", 0.01)]))
    assert verdict.rulings[0].examples
    assert Verdict.from_json(json.loads(json.dumps(verdict.as_json()))) == verdict
