"""The picture of a sweep: throughput and time to first token against the hit rate that was measured.

Owns one figure. The horizontal axis is what the server reported, not what was intended; only where it
reported nothing does the expected rate stand in, with hollow marks. A sweep without a single hit, where all
points would lie upon each other, is drawn over the intended share instead, and says so.

Invariant: every repeat is drawn; the line joins medians of repeats and the band spans smallest to largest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prefixlab.bench.ledger.check import Verdict
from prefixlab.bench.metrics.summary import Metrics
from prefixlab.bench.report.sweep import PooledPoint, median_ttft_s, total_throughput
from prefixlab.core.errors import ConfigError

INK, MUTED, GRID = "#1f2933", "#616e7c", "#e4e7eb"
BLUE, ORANGE = "#1f6feb", "#d9480f"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.titlecolor": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
}


def write_plot(path: Path, points: Sequence[PooledPoint], *, title: str, setting: str) -> None:
    """Draw `points` to `path`; the file's ending says how (PNG, SVG, PDF).

    Args:
        title: what was measured: model and machine.
        setting: the options that make the figure comparable.

    Raises:
        ConfigError: the file cannot be written, or matplotlib does not know its ending.
    """
    axis = _choose_axis(points)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, 5.2))
        left, right = figure.subplots(1, 2)
        _panel(left, points, axis, "Throughput", "prompt and output tokens/s", total_throughput, 1.0, BLUE)
        _panel(right, points, axis, "Time to first token", "median, ms", median_ttft_s, 1e3, ORANGE)
        if axis.remark:
            figure.text(0.012, 0.845, axis.remark, ha="left", fontsize=9.5, fontweight="bold", color=ORANGE)
        figure.suptitle(title, x=0.012, y=0.975, ha="left", fontsize=14, fontweight="bold")
        figure.text(0.012, 0.895, setting, ha="left", fontsize=9.5, color=MUTED)
        figure.text(0.012, 0.02, _footer(points), ha="left", fontsize=9, color=_footer_colour(points))
        figure.tight_layout(rect=(0, 0.045, 1, 0.85 if axis.remark else 0.9), w_pad=3)
        try:
            figure.savefig(path, dpi=150)
        except (OSError, ValueError) as error:
            raise ConfigError(f"--plot {path} cannot be written: {error}") from None


@dataclass(frozen=True, slots=True)
class _Axis:
    """What the points are drawn over.

    Attributes:
        place: percent, and whether the server reported it; None where nobody knows.
        remark: what the header must say of it, if anything.
    """

    label: str
    place: Callable[[PooledPoint], tuple[float | None, bool]]
    remark: str = ""


def _choose_axis(points: Sequence[PooledPoint]) -> _Axis:
    """The hit rate; the intended share where no point has a hit, else they lie upon each other."""
    rates = [rate for rate in map(_hit_rate, points) if rate[0] is not None]
    shares = any(point.shape.pct for point in points)
    if not rates or not shares or any(rate for rate, _ in rates):
        return _Axis("measured hit rate (% of prompt tokens served from cache)", _hit_rate)
    return _Axis(
        "intended share of a common prefix (% of prompt tokens)",
        lambda point: (float(point.shape.pct), _hit_rate(point)[1]),
        "nothing was served from cache" if all(reported for _, reported in rates) else "no hit expected",
    )


def _panel(
    axes: Axes,
    points: Sequence[PooledPoint],
    axis: _Axis,
    name: str,
    unit: str,
    value: Callable[[Metrics], float | None],
    scale: float,
    colour: str,
) -> None:
    rates, middles, lows, highs = [], [], [], []
    for point in points:
        rate, reported = axis.place(point)
        values = [scale * v for run in point.runs if (v := value(run.metrics)) is not None]
        if rate is None or not values:
            continue
        rates.append(rate)
        middles.append(median(values))
        lows.append(min(values))
        highs.append(max(values))
        axes.scatter([rate] * len(values), values, s=16, color=colour, alpha=0.5, linewidths=0, zorder=3)
        face = colour if reported else "white"
        axes.plot(rate, middles[-1], "o", ms=7, mec=colour, mew=1.8, mfc=face, zorder=4)
    if rates:
        axes.fill_between(rates, lows, highs, color=colour, alpha=0.15, linewidth=0)
        axes.plot(rates, middles, color=colour, linewidth=2)
        axes.set_title(_from_first_to_last(middles), loc="right", fontsize=10, color=MUTED)
    axes.set_title(name, loc="left", fontweight="bold")
    axes.set_ylabel(unit)
    axes.set_xlabel(axis.label)
    axes.set_xlim(-3, 103)
    axes.set_xticks(range(0, 101, 10))
    # Room above the highest mark: autoscaling leaves none where all values are nearly the same.
    axes.set_ylim(0, 1.1 * max(highs, default=0.0) or 1.0)
    axes.yaxis.set_major_formatter(lambda number, _: f"{number:,.0f}")
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _from_first_to_last(values: Sequence[float]) -> str:
    """`2,365 → 30,486 (× 13)`: what the reader came for."""
    first, last = values[0], values[-1]
    ends = " → ".join(f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in (first, last))
    if len(values) < 2 or min(first, last) <= 0:
        return ends
    sign = "×" if last >= first else "÷"  # noqa: RUF001 - a factor
    return f"{ends} ({sign} {max(first, last) / min(first, last):.2g})"


def _hit_rate(point: PooledPoint) -> tuple[float | None, bool]:
    """Percent, and whether it was measured."""
    if point.check.hit_rate is not None:
        return 100 * point.check.hit_rate, True
    expected = point.check.expected_hit_rate
    return (None if expected is None else 100 * expected), False


def _footer(points: Sequence[PooledPoint]) -> str:
    repeats = max(len(point.runs) for point in points)
    consistent = sum(point.check.verdict is Verdict.CONSISTENT for point in points)
    band = f"Line: median of {repeats} repeats. Band: smallest to largest.  " if repeats > 1 else ""
    hollow = "" if all(_hit_rate(point)[1] for point in points) else "  Hollow: expected, not reported."
    return (
        f"{band}Cached tokens as expected at {consistent} of {len(points)} points.{hollow}{_failed(points)}"
    )


def _failed(points: Sequence[PooledPoint]) -> str:
    """Figures are of requests that succeeded: how many did not is part of the picture."""
    where = [point for point in points if point.metrics.failed]
    if not where:
        return ""
    failed = sum(point.metrics.failed for point in where)
    planned = sum(point.metrics.planned for point in where)
    percents = ", ".join(f"{point.shape.pct} %" for point in where)
    return f"  {failed} of {planned} requests FAILED at {percents} shared."


def _footer_colour(points: Sequence[PooledPoint]) -> str:
    fine = all(point.check.verdict is Verdict.CONSISTENT and not point.metrics.failed for point in points)
    return MUTED if fine else ORANGE
