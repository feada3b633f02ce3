"""The five pictures over the concurrency that users of Dynamo's `plot.py` know, with measured numbers.

Owns what is drawn in each, and the names of their files, which are Dynamo's. How a figure is measured is
`metrics/`'s; how a picture looks, `style.py`'s.

Invariants: labels are drawn as they are; one picture shows one quantity, in one unit, of all benchmarks; an
axis says "per GPU" only where the number of devices is known of all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from prefixlab.bench.report.pictures.benchmarks.benchmark import (
    OUTPUT,
    REQUESTS,
    TOKENS_PER_USER,
    TPOT,
    TTFT_MEAN,
    Benchmark,
    Ends,
    Point,
    ends_of,
    itl_word,
    per_device,
)
from prefixlab.bench.report.pictures.provenance import Provenance, joined
from prefixlab.bench.report.pictures.style import (
    LOOKS,
    MUTED,
    Look,
    draw,
    dress,
    from_zero,
    name_lines,
    say,
    sheet,
)

CONCURRENCY = "Concurrency Level (requests in flight)"
PER_REQUEST = "Inter-token latency is the mean of each request here: gaps are not known of all."
LONGEST_BESIDE = 28
"""Letters of a label for which there is room beside the axes."""
_CLOSEST_TICKS = 0.045
"""As a share of the axis."""
EFFICIENCY = "efficiency_tok_s_gpu_vs_user.png"


@dataclass(frozen=True, slots=True)
class _Measure:
    """Of a picture over the concurrency; `{itl}` in its key is the word for what is drawn of ITL."""

    file: str
    title: str
    key: str
    label: str


MEASURES: Sequence[_Measure] = (
    _Measure(
        "p50_inter_token_latency_vs_concurrency.png",
        "P50 Inter-Token Latency vs Concurrency",
        "median_{itl}_ms",
        "P50 Inter-Token Latency (ms)",
    ),
    _Measure(
        "avg_inter_token_latency_vs_concurrency.png",
        "Average Inter-Token Latency vs Concurrency",
        "mean_{itl}_ms",
        "Average Inter-Token Latency (ms)",
    ),
    _Measure(
        "request_throughput_vs_concurrency.png",
        "Request Throughput vs Concurrency",
        REQUESTS,
        "Request Throughput (req/s)",
    ),
    _Measure(
        "avg_time_to_first_token_vs_concurrency.png",
        "Average Time to First Token vs Concurrency",
        TTFT_MEAN,
        "Average Time to First Token (ms)",
    ),
)
FILES: Sequence[str] = (*(measure.file for measure in MEASURES), EFFICIENCY)


def five_figures(benchmarks: Sequence[Benchmark], provenance: Provenance) -> dict[str, Figure]:
    """By the names of their files. At most as many benchmarks as there are LOOKS."""
    figures = {}
    for measure in MEASURES:
        figures[measure.file] = draw(partial(_over_concurrency, measure, benchmarks, provenance))
    return figures | {EFFICIENCY: draw(partial(_efficiency, benchmarks, provenance))}


def _over_concurrency(measure: _Measure, benchmarks: Sequence[Benchmark], provenance: Provenance) -> Figure:
    word = itl_word(benchmarks)
    key = measure.key.format(itl=word)
    notes = PER_REQUEST if key != measure.key and word == TPOT else ""
    figure = _sheet(10, 6, measure.title, notes, benchmarks, provenance)
    axes = figure.subplots()
    dress(axes, "", CONCURRENCY, measure.label)
    handles, highest = [], 0.0
    for benchmark, look in zip(benchmarks, LOOKS, strict=False):
        points = [point for point in benchmark.points if key in point.figures]
        levels = [float(point.concurrency) for point in points]
        values = [point.figures[key] for point in points]
        ends = [ends_of(point, key) for point in points]
        handles.append(_line(axes, levels, values, look))
        _bars(axes, levels, values, ends, look)
        highest = max([highest, *values, *(one[1] for one in ends if one)])
    _levels(axes, sorted({level for benchmark in benchmarks for level in benchmark.levels}))
    _finish(axes, handles, benchmarks, highest)
    return figure


def _efficiency(benchmarks: Sequence[Benchmark], provenance: Provenance) -> Figure:
    known = per_device(benchmarks)
    unit, title = ("GPU", "GPU") if known else ("server", "Server")
    notes = "Numbers on dots indicate concurrency level."
    if not known:
        unknown = [benchmark.name for benchmark in benchmarks if benchmark.num_devices is None]
        whose = "" if len(unknown) == len(benchmarks) else f" of {', '.join(unknown)}"
        notes += f" The number of GPUs{whose} is not known (--num-devices): throughput is the whole server's."
    figure = _sheet(12, 8, f"{title} Efficiency vs User Experience", notes, benchmarks, provenance)
    axes = figure.subplots()
    dress(axes, "", "Tokens/sec per User", f"Tokens/sec per {unit}")
    handles, highest, fastest = [], 0.0, 0.0
    for benchmark, look in zip(benchmarks, LOOKS, strict=False):
        share = 1 / benchmark.num_devices if known and benchmark.num_devices else 1.0
        points = [point for point in benchmark.points if {OUTPUT, TOKENS_PER_USER} <= point.figures.keys()]
        across = [point.figures[TOKENS_PER_USER] for point in points]
        up = [share * point.figures[OUTPUT] for point in points]
        handles.append(_line(axes, across, up, look))
        ends = [_scaled(ends_of(point, OUTPUT), share) for point in points]
        _bars(axes, across, up, ends, look)
        _bars(axes, across, up, [ends_of(point, TOKENS_PER_USER) for point in points], look, sideways=True)
        for point, x, y in zip(points, across, up, strict=True):
            axes.annotate(
                f"{point.concurrency}", (x, y), (6, 5), textcoords="offset points", fontsize=8.5, color=MUTED
            )
        highest = max([highest, *up, *(one[1] for one in ends if one)])
        fastest = max([fastest, *across])
    axes.set_xlim(0, 1.1 * fastest or 1.0)
    axes.xaxis.set_major_formatter(lambda number, _: f"{number:,.10g}")
    _finish(axes, handles, benchmarks, highest)
    return figure


def _sheet(
    width_in: float,
    height_in: float,
    title: str,
    notes: str,
    benchmarks: Sequence[Benchmark],
    provenance: Provenance,
) -> Figure:
    points = [point for benchmark in benchmarks for point in benchmark.points]
    failed = sum(point.failed or 0 for point in points)
    planned = sum(point.planned or 0 for point in points)
    told = f"{failed:,} of {planned:,} requests FAILED; figures are of the others." if failed else ""
    bars = "Bars: 95 % intervals, where there are any." if any(point.ends for point in points) else ""
    return sheet(
        width_in,
        height_in,
        title=title,
        subtitle=_asked(points),
        notes=" ".join(word for word in (told, notes, bars) if word),
        alarming=bool(failed),
        provenance=f"Measured: {joined([point.provenance for point in points])}. Plotted: {provenance.line}",
    )


def _asked(points: Sequence[Point]) -> str:
    """What was sent on average, where it is one thing for all."""
    asked = [point.runs[0].question for point in points]
    words = []
    for name, text in (
        ("model", "{}"),
        ("prompt-tokens", "{:,.0f} prompt"),
        ("output-tokens", "{:,.0f} output"),
    ):
        values = [question.get(name) for question in asked]
        shown = {text.format(value) if value is not None else "" for value in values}
        if len(shown) == 1 and "" not in shown:
            words.append(shown.pop() + (" tokens" if name.endswith("tokens") else ""))
    return " · ".join(words)


def _line(axes: Axes, across: Sequence[float], up: Sequence[float], look: Look) -> Artist:
    face: Any = "white" if look.hollow else look.colour
    (line,) = axes.plot(
        across,
        up,
        marker=look.marker,
        linestyle=look.dash,
        color=look.colour,
        markerfacecolor=face,
        markersize=7,
        linewidth=1.8,
    )
    return line


def _bars(
    axes: Axes,
    across: Sequence[float],
    up: Sequence[float],
    ends: Sequence[Ends | None],
    look: Look,
    *,
    sideways: bool = False,
) -> None:
    """An interval need not hold the figure it belongs to (of repeats, say): bars do not reach back."""
    known = [(x, y, one) for x, y, one in zip(across, up, ends, strict=True) if one is not None]
    if not known:
        return
    middles = np.array([x if sideways else y for x, y, _ in known])
    low, high = np.array([one for _, _, one in known]).T
    reach = np.maximum(0.0, np.stack([middles - low, high - middles]))
    axes.errorbar(
        [x for x, _, _ in known],
        [y for _, y, _ in known],
        **{"xerr" if sideways else "yerr": reach},
        fmt="none",
        ecolor=look.colour,
        elinewidth=1.1,
        capsize=3,
    )


def _levels(axes: Axes, levels: Sequence[int]) -> None:
    """A logarithmic axis with its ticks where there are points, as far as they do not touch."""
    axes.set_xscale("log")
    axes.set_xlim(levels[0] / 1.25, levels[-1] * 1.25)
    span = np.log(levels[-1] / levels[0] * 1.25**2)
    ticks = [levels[-1]]
    for level in reversed(levels[:-1]):
        if np.log(ticks[-1] / level) >= _CLOSEST_TICKS * span:
            ticks.append(level)
    axes.set_xticks(ticks[::-1], [f"{tick:,}" for tick in ticks[::-1]])
    axes.xaxis.set_minor_locator(NullLocator())


def _finish(axes: Axes, handles: Sequence[Artist], benchmarks: Sequence[Benchmark], highest: float) -> None:
    from_zero(axes, highest)
    if not highest:
        say(axes, "not measured")
    names = [benchmark.name for benchmark in benchmarks]
    where: Mapping[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.01, 1.0)}
    if max(map(len, names)) > LONGEST_BESIDE:
        where = {"loc": "upper left", "bbox_to_anchor": (0.0, -0.12)}
    name_lines(axes, handles, names, frameon=False, fontsize=9, handlelength=3, **where)


def _scaled(ends: Ends | None, share: float) -> Ends | None:
    return None if ends is None else (share * ends[0], share * ends[1])
