"""What runs leave for later plans: a known bias is found, an outlier moves little, and damaged files cost a warning."""

import json
import logging
import math
import random
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thriftune.planning import ledger
from thriftune.planning.ledger import FROM_DATASHEETS, Quantities, Record, Setup, correct
from thriftune.planning.ledger.record import QUANTITIES, Trial

pytest_plugins = ("store_kinds",)

ERROR = (0.7, 1.4)
SETUP = Setup("T4", "g4dn.metal", 1, 8, "zero", "qlora", "llama", "fp16", {"torch": "2.13.0", "thriftune": "0.1.0"})
WHEN = datetime(2026, 11, 30, 12, tzinfo=UTC)
OTHERS = [
    replace(SETUP, method="full"),
    replace(SETUP, family="qwen2"),
    replace(SETUP, strategy="layers"),
    replace(SETUP, instance="g4dn.xlarge", devices_per_node=1),
    replace(SETUP, versions={"torch": "2.12.0", "thriftune": "0.1.0"}),
]
ratios = st.floats(0.1, 10.0)


def run_of(ratio, setup=SETUP, planned=2.0, **others):
    """The record of a run that was off by a ratio."""
    took = Quantities(seconds_per_step=ratio * planned)
    return Record(WHEN, "tiny", setup, Quantities(seconds_per_step=planned), took, **others)


def corrected(records, error=ERROR):
    return correct(records, SETUP, "seconds_per_step", error)


def width(correction):
    return math.log(correction.high / correction.low)


@pytest.fixture
def warned(caplog):
    """The warnings so far."""
    logging.getLogger("thriftune").propagate = True
    with caplog.at_level(logging.WARNING):
        yield caplog


@settings(deadline=None)
@given(st.floats(0.5, 2.0), st.integers(0, 2**32))
def test_a_known_bias_is_recovered(bias, seed):
    noise = random.Random(seed)
    found = corrected([run_of(bias * math.exp(noise.gauss(0, 0.03))) for _ in range(40)])
    assert found.factor == pytest.approx(bias, rel=0.03)
    assert found.low < bias < found.high
    assert width(found) < 0.4 * math.log(ERROR[1] / ERROR[0])


def test_three_runs_are_most_of_the_way():
    """A plan that is 30 % too low is within 7 % after three runs: what later users of a machine have of the first."""
    errors = [abs(corrected([run_of(1.3)] * count).factor / 1.3 - 1) for count in range(4)]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < 0.07


@pytest.mark.parametrize(
    "records",
    [
        [],
        [replace(run_of(3.0), planned=Quantities())],  # it was not planned
        [replace(run_of(3.0), measured=Quantities())],  # it was not measured
        [run_of(3.0, replace(SETUP, device="L4"))],
    ],
)
def test_no_evidence_changes_nothing(records):
    assert corrected(records) == ledger.Correction(1.0, *ERROR, FROM_DATASHEETS, 0)


@settings(deadline=None)
@given(st.lists(ratios, max_size=8), st.lists(st.sampled_from(OTHERS), max_size=8))
def test_no_records_make_the_interval_wider_than_the_plan_s_own(found, setups):
    """A record that contradicts the others, or the plan, is no evidence that the plan is surer than it says."""
    records = [run_of(ratio) for ratio in found] + [run_of(2.0, setup) for setup in setups]
    assert width(corrected(records)) <= width(corrected([])) + 1e-9


@settings(deadline=None)
@given(ratios, st.integers(0, 12))
def test_one_more_run_that_agrees_never_makes_the_interval_wider(ratio, count):
    assert width(corrected([run_of(ratio)] * (count + 1))) <= width(corrected([run_of(ratio)] * count)) + 1e-9


def test_runs_that_contradict_each_other_leave_the_interval_as_wide_as_it_was():
    alike, apart = corrected([run_of(1.1)] * 8), corrected([run_of(0.4), run_of(2.5)] * 4)
    assert width(alike) < 0.6 * width(apart)
    assert width(apart) == pytest.approx(width(corrected([])))


@settings(deadline=None)
@given(st.floats(0.6, 1.6), ratios)
def test_one_outlier_among_five_moves_little(bias, outlier):
    calm, disturbed = corrected([run_of(bias)] * 5), corrected([*[run_of(bias)] * 4, run_of(outlier)])
    assert abs(math.log(disturbed.factor / calm.factor)) < 0.05


@settings(deadline=None)
@given(st.permutations([run_of(ratio, setup) for ratio, setup in zip((0.5, 1.2, 1.3, 4.0, 0.9), OTHERS, strict=True)]))
def test_the_order_of_records_does_not_matter(records):
    found = corrected(records)
    assert found == corrected(sorted(records, key=repr))
    assert found.count == 5


@pytest.mark.parametrize("other", OTHERS)
def test_a_run_that_is_only_similar_counts_less_however_often_it_is_made(other):
    same, similar = corrected([run_of(1.3)]), corrected([run_of(1.3, other)])
    assert 1 < similar.factor < same.factor
    assert width(same) < width(similar)
    assert corrected([run_of(1.3, other)] * 100).factor < corrected([run_of(1.3)] * 3).factor


def test_a_correction_does_not_take_back_the_one_before():
    """The second run's plan was corrected and right; taken as it stood, it would say that nothing need be corrected."""
    first = run_of(1.3)
    factor = corrected([first]).factor
    second = run_of(1.3 / factor, planned=2.0 * factor, corrected_by=Quantities(seconds_per_step=factor))
    assert corrected([first, second]) == corrected([first, first])


def test_it_says_what_it_leans_on():
    many = [run_of(1.2, replace(SETUP, instance=f"n{number}")) for number in range(5)]
    assert corrected([run_of(1.2)] * 4).leans_on == "measured: 4 runs on g4dn.metal"
    assert corrected([run_of(1.2), many[0], many[0], many[1]]).leans_on == (
        "measured: 1 run on g4dn.metal and 2 similar runs on n0, 1 on n1"
    )
    assert corrected(many).leans_on == "measured: 1 similar run on n0, 1 on n1, 1 on n2, 2 on others"


@pytest.mark.parametrize("error", [(1.1, 1.4), (0.7, 0.9), (0.0, 1.4), (0.7, math.inf), (math.nan, 1.4)])
def test_an_error_that_is_no_interval_is_refused(error):
    with pytest.raises(ValueError, match="is not an interval"):
        corrected([], error)


def test_a_plan_without_error_is_not_corrected():
    assert corrected([run_of(1.5)], (1.0, 1.0)).factor == 1


def test_what_is_written_is_read(store, warned):
    place = store.prefix
    assert ledger.read(place) == []
    whole = Quantities(**dict.fromkeys(QUANTITIES, 1.5))
    records = [
        replace(run_of(1.0), measured=whole, planned=whole, corrected_by=whole, when=WHEN.replace(day=day))
        for day in (1, 2, 3)
    ]
    assert all(ledger.write(place, record) for record in reversed(records))
    assert ledger.write(place, records[0])  # of the same second: nobody writes over another's
    assert ledger.read(place) == [records[0], *records]
    assert not warned.records


def test_damaged_and_foreign_files_are_left_out_with_one_warning(tmp_path, warned):
    good = run_of(1.2)
    assert ledger.write(str(tmp_path), good)
    (file,) = tmp_path.iterdir()
    whole = json.loads(file.read_text())
    wrong = [
        "", "[]", "null", "{", file.read_text()[:200], "\udcff", "1" * 70000, '{"a":' * 5000,
        json.dumps(whole | {"format": "thriftune-run-2"}),
        json.dumps(whole | {"when": "yesterday"}),
        json.dumps(whole | {"measured": {"seconds_per_step": -1.0}}),
        json.dumps(whole | {"measured": {"seconds_per_step": "NaN"}}),
        json.dumps(whole | {"planned": {"seconds_per_step": 0}}),
        json.dumps(whole | {"planned": {"seconds_per_step": 1e-300}}),
        json.dumps(whole | {"measured": {"seconds_per_step": 1e300}}),
        json.dumps({name: value for name, value in whole.items() if name != "setup"}),
    ]  # fmt: skip
    for number, text in enumerate(wrong):
        (tmp_path / f"20261130T12000{number % 10}Z-{number:012x}.json").write_bytes(
            text.encode(errors="surrogateescape")
        )
    (tmp_path / "notes.txt").write_text("ours")
    (tmp_path / "another").mkdir()
    (tmp_path / "another" / file.name).write_text("{}")
    (tmp_path / "20261130T120000Z-ffffffffffff.json").mkdir()
    assert ledger.read(str(tmp_path)) == [good]
    (record,) = warned.records
    assert f"{len(wrong) + 2} of the {len(wrong) + 3} files" in record.getMessage()
    assert "20261130T120000Z-000000000000.json" in record.getMessage()


def test_a_calibration_is_not_forgotten_because_many_trainings_came_after_it(tmp_path):
    trial = run_of(1.1, trial=Trial("run", "", 1, 1))
    later = [replace(run_of(1.0 + day / 100), when=WHEN.replace(day=day)) for day in range(1, 6)]
    assert all(ledger.write(str(tmp_path), record) for record in (replace(trial, when=WHEN.replace(month=1)), *later))
    assert [record.when.day for record in ledger.read(str(tmp_path), most=2)] == [30, 4, 5]
    assert len(ledger.read(str(tmp_path), most=None)) == 6


def test_a_later_version_s_fields_do_no_harm(tmp_path):
    assert ledger.write(str(tmp_path), run_of(1.2))
    (file,) = tmp_path.iterdir()
    content = json.loads(file.read_text())
    content["measured"]["joules"] = 3.0
    file.write_text(json.dumps(content | {"weather": "fine"}))
    assert ledger.read(str(tmp_path)) == [run_of(1.2)]


def test_a_ledger_that_cannot_be_read_or_written_costs_a_warning_each(tmp_path, warned):
    (tmp_path / "file").write_text("not a folder")
    assert not ledger.write(str(tmp_path / "file" / "ledger"), run_of(1.0))
    assert ledger.read("ftpx://nowhere/ledger") == []
    written, read = (record.getMessage() for record in warned.records)
    assert "cannot be written, and later plans do not learn from this run" in written
    assert "ftpx://nowhere/ledger cannot be read, and nothing is learned from earlier runs" in read


def test_a_bucket_that_is_not_there_is_named(bucket, warned):
    assert ledger.read("s3://no-such-bucket/ledger") == []
    assert not ledger.write("s3://no-such-bucket/ledger", run_of(1.0))
    assert ["no-such-bucket" in record.getMessage() for record in warned.records] == [True, True]
