from __future__ import annotations

import pytest

from prefixlab.bench.compare.config import CompareConfig, GateConfig, share
from prefixlab.bench.compare.difference import Difference, Finding
from prefixlab.bench.compare.gate import Ruling, ruled
from prefixlab.core.errors import ConfigError


def difference(
    change: float | None, low: float | None, high: float | None, *, more_is_better: bool = False
) -> Difference:
    return Difference(
        figure="output_throughput" if more_is_better else "mean_ttft_ms",
        a=1.0,
        b=None if change is None else 1.0 + change,
        change=change,
        low=low,
        high=high,
        level=0.95,
        method="blocks",
        num_values=(1, 1),
        higher_is_better=more_is_better,
        finding=Finding.UNDECIDED,
    )


@pytest.mark.parametrize(
    ("change", "low", "high", "ruling"),
    [
        (0.08, 0.06, 0.10, Ruling.FAILED),
        (0.06, 0.02, 0.10, Ruling.FAILED),
        (0.06, -0.01, 0.13, Ruling.UNDECIDED),
        (0.03, 0.01, 0.04, Ruling.PASSED),
        (0.03, -0.01, 0.07, Ruling.UNDECIDED),
        (-0.20, -0.30, -0.10, Ruling.PASSED),
        (0.08, None, None, Ruling.UNDECIDED),
        (None, None, None, Ruling.UNDECIDED),
    ],
)
def test_a_latency_against_a_limit_of_5_percent(
    change: float | None, low: float | None, high: float | None, ruling: Ruling
) -> None:
    assert ruled(difference(change, low, high), 0.05).ruling is ruling


@pytest.mark.parametrize(
    ("change", "low", "high", "ruling"),
    [
        (-0.08, -0.10, -0.06, Ruling.FAILED),
        (0.08, 0.06, 0.10, Ruling.PASSED),
        (-0.03, -0.07, 0.01, Ruling.UNDECIDED),
    ],
)
def test_less_throughput_is_a_regression(change: float, low: float, high: float, ruling: Ruling) -> None:
    row = ruled(difference(change, low, high, more_is_better=True), 0.05)
    assert row.ruling is ruling
    assert (row.at_least, row.at_most) == (-high, -low)


@pytest.mark.parametrize(("text", "value"), [("5%", 0.05), ("0.05", 0.05), ("2.5%", 0.025), ("0", 0.0)])
def test_shares_are_percent_or_fractions(text: str, value: float) -> None:
    assert share("--margin", text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["5", "-1%", "five", "", "5 %%"])
def test_what_may_be_meant_two_ways_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--margin"):
        share("--margin", text)


def test_a_figure_may_have_a_limit_of_its_own() -> None:
    config = GateConfig(max_regression="5%", metric=("ttft_p99=10%", "throughput=1%"))
    assert config.limit("p99_ttft_ms") == pytest.approx(0.1)
    assert config.limit("output_throughput") == pytest.approx(0.01)
    assert config.limit("mean_ttft_ms") == pytest.approx(0.05)
    assert [figure.key for figure in config.more_figures()] == ["p99_ttft_ms", "output_throughput"]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"metric": ("ttft_p99",)}, "--metric takes FIGURE=SHARE"),
        ({"metric": ("x=1%",)}, "no figure"),
        ({"metric": ("ttft_p99=much",)}, "--metric ttft_p99"),
        ({"max_regression": "5"}, "--max-regression"),
        ({"confidence": "20%"}, "--confidence"),
        ({"confidence": "1%"}, "--confidence"),
        ({"seed": -1}, "--seed"),
        ({"figures": ("nothing",)}, "no figure"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(options: dict[str, object], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        GateConfig(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("margin", ["0%", "200%"])
def test_a_margin_lies_between_nothing_and_all(margin: str) -> None:
    with pytest.raises(ConfigError, match="--margin"):
        CompareConfig(margin=margin)


def test_figures_asked_for_twice_are_looked_at_once() -> None:
    assert len(CompareConfig(figures=("ttft", "ttft_p99")).chosen()) == 3
