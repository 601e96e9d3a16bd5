"""Plans for spot nodes: what they are expected to cost, how often they should save, and which are refused."""

from dataclasses import replace

import pytest
import yaml

from thriftune.config import RunConfig
from thriftune.errors import ConfigError
from thriftune.planning import catalogue, matching, planner
from thriftune.planning import report as plan_report
from thriftune.planning.offers import on_spot
from thriftune.planning.spot import rate_of
from thriftune.planning.time.run import Size

CATALOGUE = catalogue.load()
ROWS = Size(100_000, (512,), "100,000 rows")


def run(**sections):
    content = {
        "name": "spot", "method": "full", "model": {"source": "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T"},
        "data": {"source": "rows", "format": "text", "max_length": 512}, "hardware": {"instance": "g5.12xlarge"},
        "zero": {"config": "zero2"},
    }  # fmt: skip
    return RunConfig.model_validate(content | sections)


def plan(config, *, nodes=CATALOGUE, interruptible=True, size=ROWS):
    return planner.plan(config, nodes, size=size, interruptible=interruptible)


@pytest.fixture(scope="module")
def made():
    return plan(run())


def with_nodes(**changes):
    """The shipped catalogue with another g5.12xlarge."""
    return CATALOGUE.model_copy(
        update={"nodes": tuple(n.model_copy(update=changes) if n.name == "g5.12xlarge" else n for n in CATALOGUE.nodes)}
    )


def test_a_plan_for_spot_nodes_says_what_they_are_expected_to_take(made):
    spot, per_hour = made.spot, made.price_per_hour
    assert made.is_spot
    assert spot.interruptions_per_month == CATALOGUE.interruptions_per_month
    assert spot.rate_from == CATALOGUE.interruptions_source
    # Checkpoints and what is done again come on top of what an undisturbed run takes.
    assert made.time.hours < spot.billed_hours < 1.5 * made.time.hours
    assert spot.cost == pytest.approx(per_hour * spot.billed_hours)
    assert spot.interruptions == pytest.approx(rate_of(0.22) * spot.billed_hours)
    assert spot.every_minutes == 15
    # 1.1 B weights with AdamW's moments, at 0.58 GB/s to the disk and half of 40 Gbit/s to the store.
    assert spot.saved_gib == pytest.approx(12 * 1.1e9 / 2**30, rel=0.2)
    assert spot.saving_seconds == pytest.approx(spot.saved_gib * 2**30 * (1 / 0.58e9 + 1 / 2.5e9), rel=0.01)


def test_saving_as_often_as_is_proposed_costs_what_is_promised(made):
    assert made.spot.best_minutes > made.spot.every_minutes
    again = plan(run(checkpoints={"every_minutes": made.spot.best_minutes}))
    assert again.spot.cost == pytest.approx(made.spot.best_cost)
    assert again.spot.cost < made.spot.cost


def test_the_table_page_and_json_say_it(made):
    table = plan_report.plan_table(made, "spot")
    for part in ("spot nodes", "interruptions expected", "on demand: the catalogue has none", "would cost least"):
        assert part in table
    assert f"{made.spot.cost:,.2f}" in table
    assert "checkpoints.every_minutes" in plan_report.plan_html(made, "spot")
    assert '"best_minutes"' in plan_report.plan_json(made, "spot")


def test_on_demand_nothing_is_said_of_it():
    made = plan(run(), interruptible=False)
    assert (made.is_spot, made.spot) == (False, None)
    assert "spot" not in plan_report.plan_table(made, "run")


def test_prices_of_the_spot_market_are_used_where_the_catalogue_has_them(made):
    cheaper = plan(run(), nodes=with_nodes(spot_price_per_hour=2.0))
    assert cheaper.price_per_hour == 2.0
    assert cheaper.spot.has_spot_price
    assert cheaper.spot.cost == pytest.approx(2.0 * made.spot.billed_hours)
    assert plan(run(), nodes=with_nodes(spot_price_per_hour=2.0), interruptible=False).price_per_hour == 5.672


def test_a_run_that_would_hardly_ever_finish_is_refused_with_the_arithmetic():
    often = with_nodes(interruptions_per_month=730.0)  # one an hour
    with pytest.raises(ConfigError) as caught:
        plan(run(checkpoints={"every_minutes": 600}), nodes=often, size=replace(ROWS, rows=1_000_000))
    text = str(caught.value)
    assert "hardly ever finish" in text
    assert "One interruption is expected every 1.00 h" in text
    assert "10.00 h of training" in text
    assert "save every" in text
    assert "Nearest changes that do" not in text  # they were tried for memory alone, and would not end either


def test_limits_hold_for_what_is_expected_on_spot_nodes(made):
    between = (made.price_per_hour * made.time.hours + made.spot.cost) / 2
    plan(run(plan={"budget": between}), interruptible=False)
    with pytest.raises(ConfigError, match="plan.budget"):
        plan(run(plan={"budget": between}))


def test_ones_own_nodes_and_those_without_gpus_are_not_of_the_market():
    config = run(hardware={}, zero=None, strategy="auto")
    gpu, *_ = matching.matching(config, CATALOGUE)
    assert on_spot(gpu).is_spot
    assert not on_spot(replace(gpu, is_own=True)).is_spot
    cpu, *_ = matching.matching(run(hardware={"device": "CPU"}), CATALOGUE)
    assert not on_spot(cpu).is_spot


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"interruptions_per_month": 731}, "from 0 to 730"),
        ({"interruptions_per_month": -0.1}, "is no number of interruptions"),
        ({"spot_price_per_hour": 0}, "is no price"),
        ({"spot_price_per_hour": 99.0}, "is more than 3.912"),
    ],
)
def test_absurd_figures_of_a_catalogue_are_refused(changes, said, tmp_path):
    node = {
        "device": "T4", "gpus": 4, "gpu_gib": 14.56, "host_gib": 192, "vcpus": 48, "disk_gb": 900, "network_gbps": 50,
        "price_per_hour": 3.912, "bf16": False, "interconnect": "pcie",
    }  # fmt: skip
    content = {"currency": "EUR", "region": "here", "as_of": "2026-01-31", "nodes": {"a": node | changes}}
    file = tmp_path / "catalogue.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError) as caught:
        catalogue.load(str(file))
    (problem,) = caught.value.problems
    assert problem.field == f"catalogue.nodes.a.{next(iter(changes))}"
    assert said in problem.message
    assert problem.remedy


def test_an_absurd_rate_of_the_whole_catalogue_is_refused(tmp_path):
    file = tmp_path / "catalogue.yaml"
    content = {"currency": "EUR", "region": "here", "as_of": "2026-01-31", "interruptions_per_month": -3}
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"catalogue.interruptions_per_month = -3"):
        catalogue.load(str(file))
