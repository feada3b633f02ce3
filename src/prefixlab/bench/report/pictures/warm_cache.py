"""The picture of a sweep of `bench warm-cache`: throughput and time to first token against the hit rate.

Owns one figure. The horizontal axis is what the server reported, not what was intended; only where it
reported nothing does the expected rate stand in, with hollow marks. A sweep without a single hit, where all
points would lie upon each other, is drawn over the intended share instead, and says so.

Invariants: a line goes through the figures that the tables show, of all repeats together; every repeat is
drawn; a band says in the legend what it is, and there is none rather than one of too little.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prefixlab.bench.metrics import intervals, latencies
from prefixlab.bench.metrics.summary import Metrics
from prefixlab.bench.records.table import RecordTable
from prefixlab.bench.report.pictures.provenance import Provenance
from prefixlab.bench.report.pictures.style import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    draw,
    dress,
    from_zero,
    name_lines,
    save,
    sheet,
)
from prefixlab.bench.report.sweep import PooledPoint, median_ttft_s, total_throughput

QUARTILES = (25.0, 75.0)
Band = tuple[float, float]


def write_warm_cache_plot(
    path: Path,
    points: Sequence[PooledPoint],
    *,
    title: str,
    setting: str,
    provenance: Provenance | None = None,
) -> None:
    """Draw `points` to `path`; the file's ending says how (PNG, SVG, PDF).

    Args:
        title: what was measured: model and machine.
        setting: the options that make the figure comparable.

    Raises:
        ConfigError: the file cannot be written, or matplotlib does not know its ending.
    """
    save(warm_cache_figure(points, title=title, setting=setting, provenance=provenance), path, "--plot")


def warm_cache_figure(
    points: Sequence[PooledPoint], *, title: str, setting: str, provenance: Provenance | None = None
) -> Figure:
    """See `write_warm_cache_plot`."""
    return draw(lambda: _figure(points, title, setting, provenance))


def _figure(points: Sequence[PooledPoint], title: str, setting: str, provenance: Provenance | None) -> Figure:
    axis = _choose_axis(points)
    figure = sheet(
        11,
        5.6,
        title=title,
        subtitle=setting,
        remark=axis.remark,
        notes=_notes(points),
        alarming=_alarming(points),
        provenance=provenance.line if provenance else "",
    )
    left, right = figure.subplots(1, 2)
    _panel(left, points, axis, _THROUGHPUT)
    _panel(right, points, axis, _TTFT)
    return figure


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


def _middle_half_ms(point: PooledPoint) -> Band | None:
    """Of the TTFT of all requests; None of too few."""
    table = RecordTable.pool([RecordTable.of(run.records) for run in point.runs])
    values = latencies.ttft_s(table)[table.ok]
    values = values[~np.isnan(values)]
    if len(values) < intervals.FEWEST_VALUES:
        return None
    low, high = np.percentile(values, QUARTILES).tolist()
    return 1e3 * low, 1e3 * high


def _over_repeats(point: PooledPoint) -> Band | None:
    found = intervals.of_repeats([total_throughput(run.metrics) for run in point.runs])
    return None if found is None else (max(0.0, found.low), found.high)


@dataclass(frozen=True, slots=True)
class _Measure:
    """What a panel shows, and in which words."""

    title: str
    unit: str
    value: Callable[[Metrics], float | None]
    scale: float
    band: Callable[[PooledPoint], Band | None]
    colour: str
    line_words: str
    band_words: str
    at: str


_THROUGHPUT = _Measure(
    title="Throughput",
    unit="prompt and output tokens/s",
    value=total_throughput,
    scale=1.0,
    band=_over_repeats,
    colour=BLUE,
    line_words="all repeats together",
    band_words="95 % interval over the repeats",
    at="upper left",
)
_TTFT = _Measure(
    title="Time to first token",
    unit="TTFT, ms",
    value=median_ttft_s,
    scale=1e3,
    band=_middle_half_ms,
    colour=ORANGE,
    line_words="median of all requests",
    band_words="middle half of all requests (p25 to p75)",
    at="upper right",
)


def _panel(axes: Axes, points: Sequence[PooledPoint], axis: _Axis, of: _Measure) -> None:
    rates: list[float] = []
    middles: list[float] = []
    bands: list[Band | None] = []
    highest = 0.0
    handles: dict[str, Artist] = {}
    for point in points:
        rate, reported = axis.place(point)
        middle = of.value(point.metrics)
        if rate is None or middle is None:
            continue
        rates.append(rate)
        middles.append(of.scale * middle)
        bands.append(of.band(point))
        each = [of.scale * one for run in point.runs if (one := of.value(run.metrics)) is not None]
        if len(each) > 1:
            handles["each repeat"] = axes.scatter(
                [rate] * len(each), each, s=22, marker="_", color=INK, linewidths=1.2, zorder=5
            )
        face = of.colour if reported else "white"
        axes.plot(rate, middles[-1], "o", ms=7, mec=of.colour, mew=1.8, mfc=face, zorder=4)
        highest = max(highest, middles[-1], *each, *(bands[-1] or ()))
    if rates:
        (line,) = axes.plot(rates, middles, color=of.colour, linewidth=2)
        handles = {of.line_words: line, **handles}
        if any(bands):
            low, high = (
                [band[end] if band else middle for band, middle in zip(bands, middles, strict=True)]
                for end in (0, 1)
            )
            shaded = axes.fill_between(rates, low, high, color=of.colour, alpha=0.18, linewidth=0)
            handles[of.band_words] = shaded
        axes.set_title(_from_first_to_last(middles), loc="right", fontsize=10, color=MUTED)
        name_lines(axes, list(handles.values()), list(handles), loc=of.at, fontsize=9, frameon=False)
    dress(axes, of.title, axis.label, of.unit)
    axes.set_xlim(-3, 103)
    axes.set_xticks(range(0, 101, 10))
    from_zero(axes, highest)


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


def _notes(points: Sequence[PooledPoint]) -> str:
    repeats = max(len(point.runs) for point in points)
    consistent = sum(point.is_consistent for point in points)
    hollow = "" if all(_hit_rate(point)[1] for point in points) else "  Hollow: expected, not reported."
    return (
        f"Cached tokens as expected at {consistent} of {len(points)} points; "
        f"{repeats} repeat{'' if repeats == 1 else 's'}.{hollow}{_failed(points)}"
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


def _alarming(points: Sequence[PooledPoint]) -> bool:
    return any(not point.is_consistent or point.metrics.failed for point in points)
