"""The page of a training shows what was given, escaped, and loads nothing; and it can be drawn of anything."""

import math
import re

import pytest
from html_page import Page

from thriftune.training.charts import duration, smoothed, thinned
from thriftune.training.guards.resources import Samples
from thriftune.training.report import Curve, Event, html, loss_chart, resource_charts
from thriftune.training.result import Validation

HOSTILE = '</div><script>alert("x")</script>'
SAMPLES = Samples(
    seconds=[0.0, 5.0, 10.0], process=[1.0, 2.0, 2.5], host=[8.0, 15.0, 9.0], disk=[50.0, 50.0, 60.0],
    shared_memory=[0.1, 0.2, 0.1], device=[1.0, 15.9, 15.9], host_limit=16.0, disk_limit=200.0,
    shared_memory_limit=8.0, device_limit=16.0,
)  # fmt: skip
EVENTS = [
    Event(20, 8.0, "warning", "/scratch is 91 % full."),
    Event(0, 0.0, "resumed", "Resumed from step 0."),
    Event(12, 4.0, "halved", f"8 x 1 became 4 x 2 {HOSTILE}"),
]
FALLING = [(step, 3.0 / step) for step in range(1, 31)]


def points(path):
    return [tuple(map(float, pair)) for pair in re.findall(r"(-?[\d.]+) (-?[\d.]+)", path)]


def test_the_page_says_everything_and_loads_nothing():
    page = Page(html(f"run {HOSTILE}", Curve(FALLING), SAMPLES, EVENTS))
    for text in ("0.1000", "at step 30", "at most 15.9 of 16.0 GiB (99%)", "Disk", HOSTILE):
        assert text in page.text
    page.assert_inert()
    order = [page.text.index(text) for text in ("Resumed from step 0.", "8 x 1 became", "/scratch is 91 % full.")]
    assert order == sorted(order)


def test_styles_hold_within_the_page_only():
    """Flyte puts the page into its own: a rule for `p` would restyle the console."""
    source = html("run", Curve(FALLING), SAMPLES, EVENTS)
    style = re.search(r"<style>(.*?)</style>", source, re.DOTALL)[1]
    selectors = [part.strip() for rule in re.findall(r"(?:^|[{}])([^{}@]+){", style) for part in rule.split(",")]
    assert len(selectors) > 30
    assert [s for s in selectors if not s.startswith((".training-report", "body:has(> .training-report)"))] == []


@pytest.mark.parametrize(
    ("losses", "samples", "events"),
    [
        ([], None, []),
        ([], Samples(), []),
        ([(7, 2.0)], None, EVENTS),
        ([(1, 2.0), (2, 2.0)], None, []),
        ([(1, math.nan)], SAMPLES, []),
        ([(1, 0.0), (2, 1e-9), (3, 1e9)], None, []),
        ([(1, -2.0), (2, -3.0)], None, []),
        ([(step, 2.0) for step in range(100_000)], None, []),
        (FALLING, Samples(seconds=[0.0], process=[1.0], host=[0.0], disk=[0.0], host_limit=16.0), []),
        (FALLING, None, [Event(10**6, -5.0, "resumed", "late")]),
    ],
)
def test_whatever_was_measured_can_be_drawn(losses, samples, events):
    source = html("run", Curve(losses), samples, events)
    assert Page(source).tags.count("section") == 3
    for path in re.findall(r' d="([^"]*)"', source):
        assert all(-0.01 <= x <= 1000.01 and -0.01 <= y <= 100.01 for x, y in points(path)), path
    assert len(source) < 100_000
    assert "nan" not in source.lower().replace("not a finite number", "")


def test_a_falling_loss_falls_on_the_chart():
    (raw, dots), (main, path) = loss_chart(Curve(FALLING), []).lines
    assert (raw, main) == ("quiet", "main")
    drawn = points(dots)[::2]  # a dot is a line from a point to itself
    assert len(drawn) == 30
    assert points(dots)[1::2] == drawn
    assert (drawn[0], drawn[-1][0]) == ((0.0, 0.0), 1000.0)
    assert [x for x, _ in points(path)] == [x for x, _ in drawn]
    for line in (drawn, points(path)):
        assert [y for _, y in line] == sorted(y for _, y in line)


def test_steps_that_were_undone_are_drawn_apart():
    """They were drawn as one line that ran back over the page."""
    losses = [(1, 3.0), (2, 2.0), (3, 9.0), (4, math.nan), (3, 1.5), (4, 1.2)]
    chart = loss_chart(Curve(losses), [])
    lines = dict(chart.lines)
    assert [len(points(lines["dropped"])), len(points(lines["main"]))] == [2, 4]  # a lone point is drawn twice
    assert chart.bad == [1.0]
    assert "last training loss1.2000" in re.sub(r"\s+", " ", Page(html("run", Curve(losses), None, [])).text).lower()


def test_what_was_rolled_back_and_not_trained_again_is_not_in_the_result():
    losses = [(step, 2.0) for step in range(1, 11)] + [(5, 1.9)]
    lines = dict(loss_chart(Curve(losses), []).lines)
    assert [len(points(lines["dropped"])), len(points(lines["main"]))] == [6, 5]


def test_the_smoothed_line_worked_out_by_hand():
    """0.6 x the average so far + 0.4 x the loss, from zero on; divided by 1 - 0.6, 1 - 0.6^2 and 1 - 0.6^3."""
    averages = [2.0 / 0.4, (1.2 + 0.4) / 0.64, (0.96 + 1.6) / 0.784]
    assert [step for step, _ in smoothed([(2.0, 5.0), (4.0, 1.0), (6.0, 4.0)], 0.6)] == [2.0, 4.0, 6.0]
    assert [loss for _, loss in smoothed([(2.0, 5.0), (4.0, 1.0), (6.0, 4.0)], 0.6)] == pytest.approx(averages)
    chart = loss_chart(Curve([(2, 5.0), (4, 1.0), (6, 4.0)]), [])
    assert (chart.y_ticks[0].label, chart.y_ticks[-1].label) == ("1", "5")
    lines = dict(chart.lines)
    assert points(lines["quiet"])[::2] == [(0.0, 0.0), (500.0, 100.0), (1000.0, 25.0)]
    heights = [100 * (5 - average) / 4 for average in averages]
    assert [y for _, y in points(lines["main"])] == pytest.approx(heights, abs=0.01)
    assert chart.note.endswith("weight 0.6")


def test_a_loss_that_stays_is_smoothed_to_itself_from_the_first_point_on():
    """Without the correction the line would rise from zero."""
    assert [loss for _, loss in smoothed([(float(i), 2.5) for i in range(50)], 0.99)] == pytest.approx([2.5] * 50)
    assert smoothed([], 0.6) == []


def test_more_losses_are_smoothed_more():
    swing = []
    for count in (200, 400, 4000):
        noisy = [(step, 2.0 + (-1) ** step) for step in range(1, count + 1)]
        assert max(abs(loss - 2.0) for _, loss in noisy) == 1.0
        lines = dict(loss_chart(Curve(noisy), []).lines)
        assert ("quiet" in lines, "main" in lines) == (True, True)
        heights = [y for _, y in points(lines["main"])][10:]
        swing.append(max(abs(y - 50) for y in heights))
    assert swing[0] == pytest.approx(50 * 0.4 / 1.6, abs=0.5)
    assert swing[0] > swing[1] > swing[2]
    assert swing[1] < 10


def test_the_legend_says_which_is_which():
    source = html("run", Curve(FALLING), None, [])
    assert '<span><i class="quiet"></i>training loss</span><span><i></i>smoothed</span>' in source
    two = html("run", Curve(FALLING[:2]), None, [])  # a line already, which is not smoothed
    assert "<span><i></i>training loss</span>" in two
    assert "smoothed" not in Page(two).text
    assert [kind for kind, _ in loss_chart(Curve(FALLING[:2]), []).lines] == ["main"]


VALIDATIONS = [Validation(0, 0.0, 4.0), Validation(10, 5e3, 1.0), Validation(20, 1e4, 2.0)]


def test_held_out_loss_is_drawn_over_the_same_steps_with_what_was_kept():
    losses, tokens = [(step, 4.0 - step / 10) for step in range(1, 21)], [(step, 500.0 * step) for step in range(1, 21)]
    chart = loss_chart(Curve(losses, VALIDATIONS, tokens, kept_step=10), [Event(20, 0.0, "checkpoint", "Saved.")])
    assert (chart.x_ticks[0].label, chart.x_ticks[-1].label) == ("0", "20")
    lines = dict(chart.lines)
    assert [x for x, _ in points(lines["held-out"])] == [0.0, 500.0, 1000.0]
    heights = [y for _, y in points(lines["held-out"])]
    assert heights[1] > heights[2] > heights[0]  # down is less
    assert points(lines["held-out-points"])[::2] == points(lines["held-out"])
    assert (chart.kept.position, "step 10" in chart.kept.label) == (0.5, True)
    assert [dot.position for dot in chart.dots] == [1.0]
    assert [tick.label for tick in chart.second] == ["0", *(f"{step / 2:g} k" for step in (5, 10, 15)), "10 k"]


def test_the_page_says_what_was_held_out_and_what_was_kept():
    text = re.sub(r"\s+", " ", Page(html("run", Curve(FALLING, VALIDATIONS, [], 10), None, [])).text).lower()
    for said in ("held-out loss before4.0000at step 0", "lowest held-out loss1.0000at step 10", "resultstep 10"):
        assert said in text, said
    nothing = html("run", Curve(FALLING), None, [])
    assert "held-out" not in Page(nothing).text.lower()
    only_validations = html("run", Curve([], VALIDATIONS), None, [])
    assert "Lowest held-out loss" in Page(only_validations).text


def test_resources_are_drawn_up_to_their_limit():
    charts = {chart.title: chart for chart in resource_charts(SAMPLES, EVENTS)}
    assert len(charts) == 5
    assert charts["Host memory"].is_full
    assert not charts["GPU memory"].is_full  # it is meant to be
    assert not charts["Disk"].is_full
    highest = {title: min(y for _, y in points(chart.lines[1][1])) for title, chart in charts.items()}
    assert highest["Host memory"] == pytest.approx(100 * (1 - 15 / 16), abs=0.01)
    assert highest["Disk"] == pytest.approx(70.0)
    assert [mark.position for mark in charts["Disk"].marks] == [0.0, 0.4]


def test_thinned_points_are_means_of_neighbours():
    assert thinned([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)], most=2) == [(0.5, 2.0), (2.0, 5.0)]
    assert len(thinned([(float(i), 0.0) for i in range(100_001)])) <= 600
    assert thinned([]) == []


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (60, "1 min"), (3599, "1 h 00 min"), (90_000, "25 h 00 min")]
)
def test_durations_to_read(seconds, text):
    assert duration(seconds) == text


def test_a_time_or_a_step_that_is_not_known_is_left_out():
    """Not "0 s" for every checkpoint, nor step 0 for every warning."""
    events = [Event(20, None, "checkpoint", "Saved."), Event(None, 8.0, "warning", "Full.")]
    source = html("run", Curve(FALLING, VALIDATIONS), None, [*events, Event(5, None, "rolled back", "Skipped.")])
    rows = [re.sub(r"<[^>]*>|\s+", " ", row).split() for row in re.findall(r"<tr><td.*?</tr>", source, re.DOTALL)]
    assert rows == [["5", "rolled", "back", "Skipped."], ["20", "checkpoint", "Saved."], ["8", "s", "warning", "Full."]]


def test_a_loss_that_is_not_a_number_is_not_the_lowest():
    page = html("run", Curve(FALLING, [Validation(0, 0.0, math.nan), *VALIDATIONS[1:]]), None, [])
    assert "Lowest held-out loss1.0000at step 10" in re.sub(r"\s+", " ", Page(page).text)
