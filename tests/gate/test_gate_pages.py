"""The pages about a comparison, what a run says of it in its log, and what stands in the model card."""

import json
from dataclasses import asdict, replace

import pytest
from html_page import Page
from planted_results import GROUPS, answers, choices, pair_of_models, results, rows
from test_result_page import FETCH, HOSTILE, METRICS

from thriftune.config.publishing import GateConfig
from thriftune.inference.gate import evidence
from thriftune.inference.gate.comparing import compare
from thriftune.inference.gate.report import page_of_benchmarks
from thriftune.inference.gate.verdict import decide
from thriftune.inference.gate.view import view_of
from thriftune.inference.report import NOT_PUBLISHED, metrics_from_json, page_of, remarks_of, summary_table
from thriftune.models.publishing import write_evidence

GATE = GateConfig.model_validate({
    "improves": [{"metric": "choice.accuracy", "by": 0.02}],
    "keeps": [{"metric": "rows.loss", "within": 0.1}, {"metric": "answers.length", "within": 0.2}],
})  # fmt: skip


@pytest.fixture(scope="module")
def compared():
    """Three benchmarks of 300, 40 and 20 items, of which one gets better."""
    base, tuned = pair_of_models(300, 0.15, 0.03, seed=0)
    base = results(base.items, rows([20, 30] * 20, [10] * 40), answers(["It is four."] * 20))
    tuned = results(tuned.items, rows([21, 30] * 20, [10] * 40), answers(["It is four.", HOSTILE] * 10, tokens=30))
    return compare([base, base], tuned)


@pytest.fixture(scope="module")
def verdict(compared):
    return decide(compared, GATE)


def test_a_page_shows_the_verdict_the_tables_and_what_flipped(compared, verdict):
    page = Page(page_of_benchmarks("my-run", {"adapter": compared}, {"adapter": verdict}))
    page.assert_inert()
    for ruling in verdict.rulings:
        assert f"{ruling.outcome} {ruling.reason}" in page.said
    for text in ("The gate fails", "choice.accuracy 300", "rows.loss 40", *(f"choice/{name} 60" for name in GROUPS),
                 "stop by themselves 20", "measured 2 times", "Items that became worse", "at 95%"):  # fmt: skip
        assert text in page.said, text
    assert HOSTILE in page.text
    drawn = [value for name, value in page.attributes if name == "class" and value == "point"]
    assert len(drawn) == 3 + 5 + 7, "the main metrics, the groups, and how the models answer"
    limits = [value for name, value in page.attributes if name == "class" and value == "limit"]
    assert len(limits) == 3


def test_a_page_of_several_results_puts_them_side_by_side(compared):
    page = Page(page_of_benchmarks("my-run", {"first": compared, "second": compared}))
    page.assert_inert()
    assert "Base first second" in page.said
    assert "2 results beside their base" in page.said
    assert "The gate" not in page.said


def test_dots_lie_where_their_numbers_are(compared, verdict):
    points, losses, manners, lengths = view_of(compared, verdict).plots
    assert [plot.title for plot in (points, losses, manners, lengths)] == [
        "Change in points of a hundred", "Change in nats per token",
        "How the models answer: change in points of a hundred", "Change of the length, in percent",
    ]  # fmt: skip
    at = {dot.name: float(dot.point.split()[1]) for dot in points.dots}
    order = sorted(points.dots, key=lambda dot: compared.of(dot.name).change.value)
    assert [at[dot.name] for dot in order] == sorted(at.values())
    for plot in (points, losses, manners, lengths):
        for dot in plot.dots:
            low, high = float(dot.interval.split()[1]), float(dot.interval.split()[-2])
            assert 0 <= low <= float(dot.point.split()[1]) <= high <= 1000
    assert lengths.dots[0].limit.count("M") == 2, "a length may change by so much both ways"
    (loss,) = losses.dots
    assert float(loss.limit.split()[1]) > float(losses.zero.split()[1]), "a loss that rises gets worse"


def test_of_many_groups_the_most_and_the_least_improved_are_shown():
    base = results(choices([True, False] * 100))
    many = [replace(item, group=f"g{n % 20:02}") for n, item in enumerate(base.items)]
    view = view_of(compare([results(many)], results(many)))
    assert (len(view.groups), view.left_out) == (10, 10)


def test_items_to_read_are_of_each_benchmark_in_turn():
    model = results(choices([True] * 50), choices([True] * 5, task="rows"))
    other = results(choices([False] * 50), choices([False] * 5, task="rows"))
    tasks = (model.tasks[0], replace(model.tasks[0], name="rows"))
    view = view_of(compare([replace(model, tasks=tasks)], replace(other, tasks=tasks)))
    assert [flip.question.task for flip in view.worse[:4]] == ["choice", "rows"] * 2
    assert len(view.worse) == 20


def test_items_to_read_are_without_the_lines_of_the_chat_template():
    """Each of twenty items showed the system prompt, and its question was below the fold."""
    prompt = "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nWhat\nis it"
    model, other = ([*choices([is_right] * 4, prompt=prompt)] for is_right in (True, False))
    model, other = (
        results([replace(item, prompt=f"{item.prompt}<|im_end|>\n<|im_start|>assistant\n") for item in items])
        for items in (model, other)
    )
    shown = [flip.question.prompt for flip in view_of(compare([model], other)).worse]
    assert shown == [f"is it {number}: yes or no?<|im_end|>" for number in range(4)]
    assert view_of(compare([model], model)).worse == []


def test_a_run_says_what_came_of_its_benchmarks(compared, verdict):
    """An empty place where the result would be published read as if something had been lost."""
    outputs = {**METRICS.outputs, "published": "", "evidence": "s3://b/evidence"}
    metrics = replace(
        METRICS, comparison=compared, verdict=verdict, outputs=outputs, contamination={"choice": 0.015, "rows": 0.0}
    )
    table = summary_table(metrics)
    row = next(line for line in table.splitlines() if "choice.accuracy" in line and "│" in line)
    assert row.count("% (") == 2
    assert verdict.sentence in table
    assert f"published: {NOT_PUBLISHED}" in table
    page = Page(page_of(metrics, FETCH))
    page.assert_inert()
    for text in (f"published {NOT_PUBLISHED}", "evidence s3://b/evidence", "The gate fails", "2 of 3 rules hold",
                 "Of the items of choice, 1.5% are in the training rows too"):  # fmt: skip
        assert text in page.said, text
    assert "Benchmarks" not in Page(page_of(METRICS, FETCH)).said
    assert not any("rows" in remark and "0.0%" in remark for remark in remarks_of(metrics))
    assert metrics_from_json(json.loads(json.dumps(asdict(metrics)))) == metrics


def test_gate_json_has_every_number_and_none_of_the_texts(compared, verdict, tmp_path):
    text = evidence.text_of(compared, verdict, GATE)
    content = json.loads(text)
    assert content["verdict"]["outcome"] == "fails"
    assert content["gate"] == GATE.model_dump(mode="json")
    assert {one["metric"] for one in content["comparison"]["metrics"]} == {one.metric for one in compared.metrics}
    assert content["versions"]["torch"]
    flips = content["comparison"]["flips"]
    assert len(flips) == len(compared.flips)
    assert {frozenset(flip["question"]) for flip in flips} == {frozenset({"task", "item", "group"})}
    assert "script" not in text, "texts of a benchmark may be licensed, and held-out rows private"
    assert json.loads(evidence.text_of(compared, None, None))["verdict"] is None
    write_evidence("# card", {evidence.FILE: text}, {"config": {}}, tmp_path / "made")
    assert {file.name for file in (tmp_path / "made").iterdir()} == {"README.md", "gate.json", "manifest.json"}
