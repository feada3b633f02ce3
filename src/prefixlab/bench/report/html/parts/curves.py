"""Sweep curves: throughput, latencies and hit rate against what was swept.

Owns which figures are drawn. They are read from summaries, never computed anew.

Invariant: a line has a band only where its figures have intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefixlab.bench.report.html.chart import Chart, Line
from prefixlab.bench.report.html.entries import Entry, Sweep
from prefixlab.bench.report.html.markup import Markup, el
from prefixlab.bench.report.html.words import interval_at, number_at, plain

_WIDE = 12.0
"""Largest over smallest value of an axis from which on it is logarithmic."""


@dataclass(frozen=True)
class _Plot:
    name: str
    title: str
    y_label: str
    keys: tuple[tuple[str, str], ...]
    caption: str
    scale: float = 1.0


_PLOTS = (
    _Plot(
        "throughput",
        "Output throughput",
        "tokens/s",
        (("", "output_throughput"), ("steady", "steady_output_throughput")),
        "Output tokens of ok requests per second: over the whole run, and inside its steady stretch.",
    ),
    _Plot(
        "ttft",
        "Time to first token",
        "ms",
        (("p50", "p50_ttft_ms"), ("p99", "p99_ttft_ms")),
        "From sent to the first token; median and p99. Bands are 95 % intervals.",
    ),
    _Plot(
        "tpot",
        "Time per output token",
        "ms",
        (("p50", "p50_tpot_ms"), ("p99", "p99_tpot_ms")),
        "Mean gap between the tokens of a request; median and p99 over requests.",
    ),
    _Plot(
        "e2e",
        "End-to-end latency",
        "ms",
        (("p50", "p50_e2el_ms"), ("p99", "p99_e2el_ms")),
        "From sent to the last token; median and p99.",
    ),
)


def charts_of(sweep: Sweep) -> list[Chart]:
    """One per figure that any entry has."""
    return [chart for plot in _PLOTS if (chart := _chart(plot, sweep)) is not None] + _hit_chart(sweep)


def section(charts: Sequence[Chart], sweep: Sweep, num_runs: int) -> Markup:
    shown = sum(entry is not None for line in sweep.lines.values() for entry in line)
    rest = f"{shown} of {num_runs} runs; the others were no points of it." if shown < num_runs else None
    return el(
        "section",
        el("h2", f"Against {sweep.option}"),
        None if rest is None else el("p", rest),
        el("div", [chart.figure() for chart in charts], class_="grid"),
        id="curves",
    )


def _chart(plot: _Plot, sweep: Sweep) -> Chart | None:
    lines = []
    for colour, (name, entries) in enumerate(sweep.lines.items()):
        for dashes, (statistic, key) in enumerate(plot.keys):
            y = _column(entries, key)
            if np.isnan(y).all():
                continue
            spans = [None if entry is None else interval_at(entry.summary, key) for entry in entries]
            has_band = any(span is not None for span in spans)
            title = " ".join(part for part in (name, statistic) if part) or plot.title
            lines.append(
                Line(
                    name=title,
                    y=y,
                    low=_edges(spans, 0) if has_band else None,
                    high=_edges(spans, 1) if has_band else None,
                    colour=colour if len(sweep.lines) > 1 else dashes,
                    dashes=2 * colour + dashes,
                )
            )
    return (
        _over(sweep, f"curve-{plot.name}", plot.title, plot.caption, plot.y_label, lines) if lines else None
    )


def _hit_chart(sweep: Sweep) -> list[Chart]:
    lines = []
    for colour, (name, entries) in enumerate(sweep.lines.items()):
        measured = 100 * _column(entries, "measured_hit_rate")
        expected = np.array([np.nan if entry is None else _expected_percent(entry) for entry in entries])
        for dashes, (word, y) in enumerate((("measured", measured), ("expected", expected))):
            if not np.isnan(y).all():
                title = f"{name} {word}".strip()
                shade = colour if len(sweep.lines) > 1 else dashes
                lines.append(Line(name=title, y=y, colour=shade, dashes=2 * colour + dashes))
    if not any(np.nanmax(line.y) > 0 for line in lines):
        return []
    caption = (
        "Cached ÷ prompt tokens: as the server reports them, and as a cache that holds every page it has "
        "seen would serve these very prompts. Where the lines part, the verdict says why."
    )
    return [_over(sweep, "curve-hits", "Hit rate, measured and expected", caption, "%", lines, y_max=100.0)]


def _expected_percent(entry: Entry) -> float:
    """Of all prompt tokens: only where all finished requests were checked, else the two do not compare."""
    summary = entry.summary
    expected, prompts = number_at(summary, "expected_cached_tokens"), number_at(summary, "total_input_tokens")
    all_checked = number_at(summary, "checked_requests") == number_at(summary, "completed")
    return 100 * expected / prompts if expected is not None and prompts and all_checked else np.nan


def _over(
    sweep: Sweep,
    name: str,
    title: str,
    caption: str,
    unit: str,
    lines: Sequence[Line],
    *,
    y_max: float | None = None,
) -> Chart:
    numbers = sweep.is_number and np.all(np.isfinite(np.array(sweep.values, dtype=np.float64)))
    x = np.array(sweep.values if numbers else range(len(sweep.values)), dtype=np.float64)
    positive = bool(numbers and (x > 0).all())
    return Chart(
        name=name,
        title=title,
        caption=caption,
        x_label=sweep.option,
        y_label=unit,
        x=x,
        lines=lines,
        x_scale="log2" if positive and x[-1] / x[0] >= _WIDE else "linear",
        ticks=[plain(value) for value in sweep.values],
        markers=True,
        y_max=y_max,
    )


def _column(entries: Sequence[Entry | None], key: str) -> np.ndarray:
    values = [None if entry is None else number_at(entry.summary, key) for entry in entries]
    return np.array([np.nan if value is None else value for value in values])


def _edges(spans: Sequence[tuple[float, float] | None], side: int) -> np.ndarray:
    return np.array([np.nan if span is None else span[side] for span in spans])
