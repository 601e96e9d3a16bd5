"""Findings: their table, the error they become, and how they are shown."""

import json
import pickle
import re
from pathlib import Path

import pytest

from thriftune.codes import CODES
from thriftune.data.statistics import Bin
from thriftune.errors import Problem, TransientError, UserError
from thriftune.preflight import Facts, Preflight, PreflightError, report
from thriftune.preflight.findings import in_order

PAGE = (Path(__file__).parent.parent.parent / "docs" / "preflight.md").read_text(encoding="utf-8")
ERROR = Problem.coded("model-gated", "model.source", "owner/model", "is gated.", "Accept its licence.")
WARNING = Problem.coded("rows-too-long", "data.max_length", 64, "3% of all examples are longer.", "Raise it.")
NOTE = Problem.coded("license-not-found", "model.source", "owner/model", "says nothing.")
UNREACHABLE = Problem.coded("hub-unreachable", "data.source", "owner/rows", "the hub did not answer.", "Try again.")
FACTS = Facts(
    model_version="abc", license="apache-2.0", parameters=1_100_000_000, rows_sampled=1000, rows_total=52_002,
    examples=990, lengths=(Bin(1, 32, 700), Bin(33, 64, 260), Bin(65, 400, 30)), longest=400, max_length=64,
    too_long=0.03, trained_share=0.42, training_rows=49_402, total_steps=772, warmup_steps=24, plan="1 x g4dn.12xlarge",
)  # fmt: skip


def test_the_table_in_the_docs_is_the_table_of_the_code():
    rows = re.findall(r"^\| `([\w-]+)` \| (\w+) \| (.+) \|$", PAGE, re.M)
    assert rows == [(code, severity, meaning) for code, (severity, meaning) in CODES.items()]
    assert len(rows) > 40


def test_codes_are_short_names_and_meanings_are_sentences():
    for code, (severity, meaning) in CODES.items():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)+", code)
        assert severity in ("error", "warning", "note")
        assert meaning.endswith(".")


def test_a_code_that_is_not_in_the_table_is_a_mistake_of_ours():
    with pytest.raises(KeyError):
        Problem.coded("no-such-code", "a", "b", "c")


def test_errors_come_first_and_nothing_comes_twice():
    assert in_order([NOTE, WARNING, ERROR, NOTE, ERROR]) == (ERROR, WARNING, NOTE)


def test_warnings_and_notes_stop_nothing():
    Preflight("tiny", (WARNING, NOTE)).require_ok()
    Preflight("tiny").require_ok()


def test_an_error_stops_with_field_value_remedy_and_code():
    with pytest.raises(PreflightError) as caught:
        Preflight("tiny", (ERROR, UNREACHABLE, WARNING)).require_ok()
    text = str(caught.value)
    assert text.startswith("The run cannot start (2 problems):")
    assert "model.source = owner/model: is gated. Accept its licence. [model-gated]" in text
    assert "[hub-unreachable]" in text
    assert "rows-too-long" not in text
    assert isinstance(caught.value, UserError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


def test_only_a_hub_that_does_not_answer_is_worth_trying_again():
    with pytest.raises(TransientError, match=r"data\.source = owner/rows: the hub did not answer"):
        Preflight("tiny", (UNREACHABLE, WARNING)).require_ok()


def test_json_holds_findings_and_facts():
    content = json.loads(json.dumps(Preflight("tiny", (ERROR, NOTE), FACTS).as_json()))
    assert (content["run"], content["ok"]) == ("tiny", False)
    assert content["counts"] == {"error": 1, "warning": 0, "note": 1}
    assert content["findings"][0] == {
        "code": "model-gated", "severity": "error", "field": "model.source", "value": "owner/model",
        "message": "is gated.", "remedy": "Accept its licence.",
    }  # fmt: skip
    assert content["facts"]["lengths"][0] == {"low": 1, "high": 32, "count": 700}
    assert Preflight("tiny").as_json()["ok"]


def test_the_table_fits_the_log_and_names_everything():
    text = report.text(Preflight("tiny", (ERROR, WARNING, NOTE), FACTS))
    assert max(map(len, text.splitlines())) <= 110
    for part in ("Preflight of tiny: 1 error, 1 warning, 1 note", "model-gated", "rows-too-long", "1 x g4dn.12xlarge",
                 "license: apache-2.0", "steps: 772, over about 49,402", "rows read: 1,000 of 52,002"):  # fmt: skip
        assert part in text
    assert "Accept its" in " ".join(text.split())


def test_nothing_found_is_said_in_a_line():
    assert report.text(Preflight("tiny")) == "Preflight of tiny: nothing is wrong"


def test_the_page_loads_nothing_and_names_everything():
    page = report.html(Preflight("tiny", (ERROR, WARNING, NOTE), FACTS))
    assert not re.findall(r"(?:src|href)=|@import|url\(", page)
    assert "default-src 'none'" in page
    for part in ("The run cannot start", "model-gated", "rows-too-long", "apache-2.0", "772", "49,402", "42.0%", "3.0%",
                 "700 examples", 'class="over"', 'class="limit"'):  # fmt: skip
        assert part in page, part


def test_what_a_configuration_says_is_escaped():
    nasty = Problem.coded(
        "model-not-found", "model.source", "<script>alert(1)</script>", "<b>is not there</b>.", "[red]Check[/red]."
    )
    page = report.html(Preflight("tiny", (nasty,)))
    assert "<script>" not in page
    assert "<b>" not in page
    assert "[red]Check[/red]." in " ".join(report.text(Preflight("tiny", (nasty,))).split())


def test_a_page_without_facts_can_be_made():
    page = report.html(Preflight("tiny"))
    assert "The run can start" in page
    assert "<svg" not in page


def test_the_limit_is_where_max_length_ends():
    bars = tuple(Bin(low, low + 9, 1) for low in range(1, 41, 10))
    page = report.html(Preflight("tiny", facts=Facts(lengths=bars, max_length=20, examples=4, longest=40)))
    (line,) = re.findall(r'<line class="limit" x1="([\d.]+)"', page)
    assert float(line) == 2.0
    assert page.count('class="over"') == 2 + 1  # and in the legend


def test_a_last_bar_that_holds_all_longer_ones_says_so():
    bars = tuple(Bin(low, low + 9, 1) for low in range(1, 41, 10))
    assert "and more" not in report.html(Preflight("tiny", facts=Facts(lengths=bars, max_length=20, longest=40)))
    open_ended = (*bars[:-1], Bin(31, 5000, 1))
    page = report.html(Preflight("tiny", facts=Facts(lengths=open_ended, max_length=20, longest=5000)))
    assert "31 and more" in page
    assert "The last bar holds all that are longer." in page
