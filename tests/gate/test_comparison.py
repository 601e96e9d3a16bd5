"""Base and result item by item: what is compared, what is refused, what is kept to read."""

import json
from dataclasses import replace

import numpy as np
import pytest
from planted_results import CHOICE, ROWS, answers, choices, pair_of_models, results, rows

from thriftune.errors import DataError
from thriftune.inference.benchmarks.results import Results, TaskFacts
from thriftune.inference.gate.comparing import compare
from thriftune.inference.gate.comparison import Comparison
from thriftune.inference.gate.flips import OF_BENCHMARK, most_of
from thriftune.training.held_out import EvalReport

RIGHT = [n % 2 == 0 for n in range(100)]
BETTER = [n % 2 == 0 or n % 10 == 1 for n in range(100)]  # all of them in the second group
LOOP = "and so on " * 10


def test_every_metric_is_compared_over_all_items_and_over_each_group():
    found = compare([results(choices(RIGHT))], results(choices(BETTER)))
    all_of_it = found.of("choice.accuracy")
    assert (all_of_it.base.value, all_of_it.tuned.value, all_of_it.items) == (0.5, 0.6, 100)
    assert (all_of_it.better, all_of_it.worse) == (10, 0)
    assert all_of_it.p_value == pytest.approx(2 / 2**10)
    assert all_of_it.change.low > 0
    groups = {one.metric: one.change.value for one in found.groups}
    assert next(iter(groups)) == "choice/common sense.accuracy", "the most improved one is first"
    assert len(groups) == 5
    assert groups["choice/common sense.accuracy"] == pytest.approx(0.5)
    assert {value for name, value in groups.items() if "common" not in name} == {0}
    assert [one.metric for one in found.main] == ["choice.accuracy"]
    assert (all_of_it.task, all_of_it.group, all_of_it.name) == ("choice", "", "accuracy")


def test_a_loss_is_per_token_and_better_when_it_falls():
    tokens = [10, 30] * 20
    base, tuned = results(rows([20, 60] * 20, tokens)), results(rows([10, 50] * 20, tokens))
    found = compare([base], tuned).of("rows.loss")
    assert (found.base.value, found.tuned.value) == (2.0, 1.5)
    assert (found.kind, found.p_value, found.better, found.worse) == ("per_token", None, 40, 0)
    assert found.improvement.value == 0.5
    assert found.improvement.low == -found.change.high > 0


def test_how_models_answer_is_compared_over_what_they_wrote_alone():
    base = results(choices([True] * 9), answers(["It is four."] * 20))
    tuned = results(choices([True] * 9), answers(["It is four."] * 12 + [LOOP] * 8, tokens=20))
    found = {one.name: one for one in compare([base], tuned).behaviours}
    assert {name: one.items for name, one in found.items()} == dict.fromkeys(found, 20)
    assert (found["repeats"].base.value, found["repeats"].tuned.value, found["repeats"].worse) == (0, 0.4, 8)
    assert (found["length"].change.value, found["length"].higher_is_better) == (1.0, None)
    assert found["stops"].change.value == 0
    assert compare([results(choices([True] * 9))], results(choices([True] * 9))).behaviours == ()


def test_the_tokens_of_a_held_out_row_are_not_the_length_of_its_answer():
    """They are the same for base and result, so that answers of any length seemed to be as long as before."""
    answered = tuple(replace(row, answer="It is four.", stopped=True) for row in rows([20.0] * 9, [10] * 9))
    found = {one.name for one in compare([results(answered)], results(answered)).behaviours}
    assert "stops" in found
    assert "length" not in found


def test_the_answers_to_a_run_s_prompts_are_looked_at_too():
    prompts = ["What is two and two?", "And three and three?"]
    before, after = (EvalReport(1.0, 2.7, 5, prompts, texts) for texts in (["Four.", "Six."], ["Four.", "[INST] Six."]))
    model = results(choices([True] * 9))
    found = compare([model], model, samples=(before, after))
    names = {one.name: (one.items, one.worse) for one in found.behaviours}
    assert names["template_text"] == (2, 1)
    assert not {"stops", "length"} & set(names), "nobody knows these of them"
    (flip,) = found.flips
    assert (flip.metric, flip.became, flip.question.tuned) == ("answers.template_text", "worse", "[INST] Six.")
    other = replace(after, prompts=["Other?"], answers=["Yes."])
    assert compare([model], model, samples=(before, other)).behaviours == ()


def test_the_noise_floor_is_how_far_two_measurements_of_the_base_lie_apart():
    repeats = [results(choices([n < right for n in range(100)])) for right in (50, 53, 49)]
    found = compare(repeats, repeats[0]).of("choice.accuracy")
    assert (found.floor, found.base.value) == (pytest.approx(0.04), 0.5)
    assert compare(repeats[:1], repeats[1]).of("choice.accuracy").floor == 0


def test_items_that_flipped_are_kept_with_both_answers_from_everywhere():
    base = [True] * 100 + [False] * 100
    found = compare([results(choices(base))], results(choices(not right for right in base)))
    for became, answer in (("worse", "no"), ("better", "yes")):
        flips = [flip.question for flip in found.flips if flip.became == became]
        assert len(flips) == OF_BENCHMARK
        assert {flip.tuned for flip in flips} == {answer} != {flip.base for flip in flips}
        assert len({flip.group for flip in flips}) > 1
        assert np.ptp([int(flip.item[1:]) for flip in flips]) > 90, "not the first of them"


def test_of_losses_the_largest_changes_are_kept_and_what_they_were():
    base, tuned = results(rows([20] * 30, [10] * 30)), results(rows([20 - n for n in range(30)], [10] * 30))
    flips = compare([base], tuned).flips
    assert [flip.question.item for flip in flips[:3]] == ["r29", "r28", "r27"]
    assert (flips[0].question.base, flips[0].question.tuned) == ("2.0000 nats per token", "-0.9000 nats per token")


def test_texts_to_read_are_cut_and_many_benchmarks_keep_fewer():
    """Flyte's engine refuses an output of more than 10 MB, and a few-shot prompt has 4,000 letters."""
    long = replace(choices([False])[0], prompt="x" * 9000 + " the question", answer="y" * 9000)
    (flip,) = compare([results((replace(long, scores={"accuracy": 1.0}),))], results((long,))).flips
    assert flip.question.prompt.endswith(" the question")
    assert len(flip.question.prompt) < 1600 > len(flip.question.tuned)
    assert [most_of(count) for count in (1, 10, 100, 1000)] == [20, 20, 2, 1]


def test_a_comparison_is_the_same_after_json():
    base, tuned = pair_of_models(60, 0.2, 0.05, seed=1)
    found = compare([base, base], tuned, confidence=0.9)
    assert Comparison.from_json(json.loads(json.dumps(found.as_json()))) == found


def changed(number, **fields):
    base = choices(RIGHT)
    return results((*base[:number], replace(base[number], **fields), *base[number + 1 :]))


@pytest.mark.parametrize(("tuned", "field", "value", "said"), [
    (results(choices(RIGHT[:99])), "benchmarks.choice", "c0099", "only the base has"),
    (changed(3, item="new"), "benchmarks.choice", "c0003", "only the base has"),
    (changed(3, prompt_hash="other"), "benchmarks.choice", "c0003", "other choices"),
    (changed(3, prompt="Ask", prompt_hash="other"), "benchmarks.choice", "c0003", "another prompt"),
    (changed(3, item="c0004"), "benchmarks.choice", "c0004", "id of two items"),
    (changed(3, scores={}), "benchmarks.choice.accuracy", "missing", "item c0003"),
    (changed(3, scores={"accuracy": float("nan")}), "benchmarks.choice.accuracy", "nan", "item c0003"),
    (replace(changed(3), tasks=(replace(CHOICE, version="v2"),)), "benchmarks.choice", "v2", "different versions"),
    (replace(changed(3), tasks=(CHOICE, ROWS)), "benchmarks.rows.loss", "0 items", "must be items"),
])  # fmt: skip
def test_what_is_not_of_the_same_items_is_refused_by_name(tuned, field, value, said):
    with pytest.raises(DataError) as caught:
        compare([results(choices(RIGHT))], tuned)
    problem = caught.value.problems[0]
    assert (problem.field, problem.value) == (field, value)
    assert said in problem.message
    assert problem.remedy


def test_where_prompts_differ_both_are_shown_from_where_they_part_and_templates_are_named():
    tuned = results(choices(RIGHT, prompt="Ask"))
    with pytest.raises(DataError) as caught:
        compare([results(choices(RIGHT))], tuned)
    problem = caught.value.problems[0]
    assert "of the base ('Question 0: yes or no?') than of the result ('Ask 0: yes or no?')" in problem.message
    assert "chat_template.jinja" in problem.remedy


def test_of_many_items_that_differ_some_are_named_and_the_others_counted():
    with pytest.raises(DataError) as caught:
        compare([results(choices(RIGHT))], results(choices(RIGHT, prompt="Other")))
    assert len(caught.value.problems) == 5
    assert "95 more" in caught.value.problems[0].remedy


def test_tokens_that_are_all_zero_have_no_loss():
    none = results(rows([1, 2], [0, 0]))
    with pytest.raises(DataError, match="no tokens"):
        compare([none], none)


def test_the_length_of_answers_to_held_out_rows_is_not_that_of_the_rows():
    """A row has as many trained tokens for both models, so a length never changed."""
    asked = [replace(row, answer="It is.", stopped=True, written=3) for row in rows([20] * 9, [40] * 9)]
    longer = [replace(row, written=6) for row in asked]
    found = {one.name: one for one in compare([results(asked)], results(longer)).behaviours}["length"]
    assert (found.base.value, found.tuned.value, found.change.value) == (3, 6, 1.0)


def test_tasks_of_a_group_may_have_different_metrics():
    """Every item was asked for every metric of its benchmark."""
    facts = TaskFacts("choice", "v1", {"accuracy": True, "exact_match": True}, "accuracy")
    written = [replace(one, item=f"w{n}", group="written", scores={"exact_match": 1.0}, correct=True)
               for n, one in enumerate(choices([True] * 8))]  # fmt: skip
    model = Results((facts,), (*choices([True] * 5), *written))
    found = {one.metric: one.items for one in compare([model], model).metrics}
    assert (found["choice.accuracy"], found["choice.exact_match"], found["choice/written.exact_match"]) == (5, 8, 8)
    assert not {"choice/written.accuracy", "choice/knowledge.exact_match"} & set(found)
