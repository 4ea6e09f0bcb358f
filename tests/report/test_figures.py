"""The axes and lines of the charts."""

from __future__ import annotations

import re

import pytest

from relgan.report.compare import Point
from relgan.report.figures import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    Axis,
    Dots,
    Series,
    against,
    chart,
    dot_plot,
    linear,
    logarithmic,
    number,
)


def line(*values: float, label: str = "ragan") -> Series:
    return Series(label, 0, [Point(float(x), y, y, y) for x, y in enumerate(values)])


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (0, 2000, [0, 500, 1000, 1500, 2000]), (-3, 4, [-2, 0, 2, 4])],
)
def test_ticks_are_round_numbers(low: float, high: float, ticks: list[float]) -> None:
    assert Axis(low, high, 0, 100).ticks() == pytest.approx(ticks)


def test_logarithmic_ticks_are_decades_and_within_one_their_halves_and_fifths() -> None:
    axis = logarithmic([0.0, 3e-3, 40.0], 0, 100)
    assert axis.ticks() == pytest.approx([1e-2, 1e-1, 1, 10])
    assert axis(0.0) == axis(axis.low) == 0  # zero lies on the edge
    assert 0 < axis(3e-3) < 10
    assert 90 < axis(40) < 100
    assert logarithmic([26.0, 420.0], 0, 100).ticks() == pytest.approx([50, 100, 200])


def test_what_lies_far_below_the_rest_does_not_flatten_it() -> None:
    axis = logarithmic([1e-30, 1.0], 0, 100)
    assert axis(1e-30) == 0
    assert axis(1e-3) > 40


@pytest.mark.parametrize("values", [[5.0, 5.0], [0.0], [1e-9, 2e-9], [-1e6, 1e6]])
def test_any_values_have_an_axis(values: list[float]) -> None:
    axis = linear(values, BOTTOM, TOP)
    assert all(TOP <= axis(value) <= BOTTOM for value in values)
    assert axis.ticks()
    logarithmic(values, BOTTOM, TOP).ticks()


def test_numbers_are_short() -> None:
    shown = [number(v) for v in (0, 0.2, 1500, 2000000, 1e-5, 0.001, 1e9)]
    assert shown == ["0", "0.2", "1.5k", "2M", "10⁻⁵", "0.001", "10⁹"]


def test_lines_stay_inside_the_frame_and_carry_their_values() -> None:
    text = str(chart([line(3, 1, 2), line(0, 10, 4, label="sgan")], title="t", x="x", y="y"))
    for path in re.findall(r'class="line[^>]* d="M([^"]*)"', text):
        for pair in path.split("L"):
            x, y = map(float, pair.split())
            assert LEFT <= x <= RIGHT
            assert TOP <= y <= BOTTOM
    assert 'data-y="0 10 4"' in text


def test_a_dot_plot_has_every_seed_and_the_mean_of_several() -> None:
    rows = [Dots("ragan", "15 ± 7", 0, {1: 10.0, 2: 20.0}), Dots('"><script>', "30", 1, {1: 30.0})]
    text = str(dot_plot(rows, title="t", x="FID"))
    assert re.findall("<title>(.*?)</title>", text) == ["seed 1: 10", "seed 2: 20", "seed 1: 30"]
    one, two, three = (float(x) for x in re.findall(r'cx="([\d.]+)"', text))
    assert two - one == pytest.approx(three - two, abs=0.2)
    (mean,) = re.findall(r'class="mean s0" d="M([\d.]+)', text)
    assert float(mean) == pytest.approx((one + two) / 2, abs=0.2)
    assert f">{'a' * 47}…<" in dot_plot([Dots("a" * 49, "", 0, {1: 1.0, 2: 2.0})], title="", x="")
    assert "<script>" not in text


def test_a_band_is_in_the_read_out() -> None:
    text = str(chart([Series("a", 0, [Point(0, 2, 1, 3), Point(1, 5, 4, 6)])], title="", x="", y=""))
    assert 'data-low="1 4" data-high="3 6"' in text
    assert "data-low" not in chart([line(1, 2)], title="", x="", y="")


def test_equal_pulls_lie_on_the_diagonal() -> None:
    text = str(against([Series("r", 0, [Point(v, v, v, v) for v in (0.5, 0.01)])], title="t", x="x", y="y"))
    (path,) = re.findall(r'class="line[^>]* d="M([^"]*)"', text)
    for pair in path.split("L"):
        x, y = map(float, pair.split())
        assert (x - LEFT) / (RIGHT - LEFT) == pytest.approx((BOTTOM - y) / (BOTTOM - TOP), abs=2e-3)


def test_charts_side_by_side_can_share_an_axis() -> None:
    alone, shared = (chart([line(1, 2, 3)], title="", x="", y="", until=until) for until in (0, 4))
    assert f"L{RIGHT}.0 " in alone
    assert f"L{RIGHT}.0 " not in shared


def test_a_single_point_is_a_dot() -> None:
    assert 'class="line s0 dot"' in chart([line(7)], title="", x="", y="")


def test_names_are_escaped() -> None:
    text = str(chart([line(1, 2, label='"><script>')], title="<b>", x="x", y="y"))
    assert "<script>" not in text
    assert "<b>" not in text


def test_a_logarithmic_axis_is_chosen_only_where_values_span_much() -> None:
    assert re.findall('class="y">(.*?)<', chart([line(1, 100)], title="", x="", y="", log=None)) == ["1", "10", "100"]
    assert chart([line(1, 2)], title="", x="", y="", log=None) == chart([line(1, 2)], title="", x="", y="")
