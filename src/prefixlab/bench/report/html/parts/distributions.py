"""Latency distributions: which share of requests (of ITL, of tokens) took no longer than so much.

Owns the grid they are read at. Values of all segments of a run are pooled.

Invariant: each place of a line is exact; between two places nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from prefixlab.bench.metrics import latencies
from prefixlab.bench.records.table import FloatArray, RecordTable
from prefixlab.bench.report.html.chart import Chart, Line
from prefixlab.bench.report.html.entries import Entry
from prefixlab.bench.report.html.markup import Markup, el

NUM_PLACES = 400


def _of_requests(fold: Callable[[RecordTable], FloatArray]) -> Callable[[RecordTable], FloatArray]:
    return lambda table: fold(table)[table.ok & (table.num_arrivals > 0)]


_PLOTS: Mapping[str, tuple[str, Callable[[RecordTable], FloatArray], str]] = {
    "ttft": ("Time to first token", _of_requests(latencies.ttft_s), "of requests"),
    "tpot": ("Time per output token", _of_requests(latencies.tpot_s), "of requests"),
    "itl": (
        "Inter-token latency",
        lambda table: latencies.itl_s(table, table.ok & (table.num_arrivals > 0)),
        "of tokens",
    ),
    "e2e": ("End-to-end latency", _of_requests(latencies.e2e_s), "of requests"),
}


def charts_of(entries: Sequence[Entry]) -> list[Chart]:
    """One per latency that any entry has."""
    return [chart for name in _PLOTS if (chart := _chart(name, entries)) is not None]


def section(charts: Sequence[Chart]) -> Markup:
    return el(
        "section",
        el("h2", "Latency distributions"),
        el("div", [chart.figure() for chart in charts], class_="grid"),
        id="distributions",
    )


def _chart(name: str, entries: Sequence[Entry]) -> Chart | None:
    title, fold, unit = _PLOTS[name]
    pools: dict[int, FloatArray] = {}
    for number, entry in enumerate(entries):
        values = np.sort(fold(entry.run.table) * 1e3)
        values = values[: len(values) - int(np.isnan(values).sum())]  # NaN sorts last
        if len(values):
            pools[number] = values
    if not pools:
        return None
    low = max(min(float(values[0]) for values in pools.values()), 1e-3)
    high = max(float(values[-1]) for values in pools.values())
    x = np.geomspace(low, max(high, low * 1.01), NUM_PLACES)
    x[-1] = max(high, x[-1])
    return Chart(
        name=f"cdf-{name}",
        title=title,
        caption=f"Share {unit} that took no longer. The axis is logarithmic.",
        x_label="ms",
        y_label=f"% {unit}",
        x=x,
        lines=[
            Line(
                name=entries[number].name,
                y=100 * np.searchsorted(values, x, "right") / len(values),
                colour=number,
                dashes=number,
            )
            for number, values in pools.items()
        ],
        x_scale="log10",
        y_max=100.0,
    )
