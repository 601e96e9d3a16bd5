"""Whether a gate can be decided at all with so many items: said before anything is trained."""

from dataclasses import replace

from planted_results import choices, results

from thriftune.config.publishing import GateConfig
from thriftune.inference.gate.comparing import compare
from thriftune.inference.gate.outlook import too_few_items
from thriftune.inference.gate.verdict import decide


def gate(within, **more):
    kept = {"metric": "choice.accuracy", "within": within}
    return GateConfig.model_validate({"improves": [{"metric": "rows.loss"}], "keeps": [kept], **more})


def test_a_rule_that_stays_undecided_even_if_no_item_changes_is_named():
    (problem,) = too_few_items(gate(0.02), {"choice": 182, "rows": 182})
    assert (problem.field, problem.value, problem.code) == (
        "publish.gate.keeps.0.metric", "choice.accuracy", "gate-too-few-items",
    )  # fmt: skip
    assert problem.severity == "warning"
    assert "182 items" in problem.message
    assert list(too_few_items(gate(0.02), {"choice": 183, "rows": 6})) == []
    assert list(too_few_items(gate(0.02), {})) == [], "what is not known is not guessed"
    assert [found.value for found in too_few_items(gate(0.5), {"rows": 5})] == ["rows.loss"]


def test_it_is_what_the_gate_then_decides():
    for items, outcome in ((70, "undecided"), (76, "passes")):  # 72, but for the noise of resamples
        asked = GateConfig.model_validate({"keeps": [{"metric": "choice.accuracy", "within": 0.05}]})
        base, tuned = results(choices([True] * items, group=False)), results(choices([True] * items, group=False))
        other = results([replace(item, log_likelihoods=(-3.0, -4.0)) for item in tuned.items])
        assert decide(compare([base], other), asked).outcome == outcome
        assert bool(list(too_few_items(asked, {"choice": items}))) == (outcome == "undecided")
