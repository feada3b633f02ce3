"""What the server said of itself while requests were under way, on the requests' own axis.

Owns which figures stand in which chart. The figures are `saved/timeline.py`'s.

Invariant: a chart is there only where the server told one of its figures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefixlab.bench.report.html.chart import Chart, Line
from prefixlab.bench.report.html.lanes import Spans
from prefixlab.bench.saved.saved_run import SavedRun
from prefixlab.bench.saved.timeline import timeline
from prefixlab.bench.witness.samples import METRICS

MAX_STEPS = 400


@dataclass(frozen=True)
class _Plot:
    name: str
    title: str
    y_label: str
    caption: str
    lines: tuple[tuple[str, str], ...]
    scale: float = 1.0
    y_max: float | None = None


_PLOTS = (
    _Plot(
        "server-requests",
        "Server: requests",
        "requests",
        "As the server counts them: in its batches, and waiting before them.",
        (("running", "server_running"), ("queued", "server_queued")),
    ),
    _Plot(
        "server-cache",
        "Server: KV cache",
        "%",
        "Share of it that running requests hold, and cached ÷ prompt tokens as the server counts them.",
        (("in use", "server_cache_usage"), ("hit rate", "server_hit_rate")),
        scale=100.0,
        y_max=100.0,
    ),
    _Plot(
        "server-pressure",
        "Server: evicted and preempted",
        "per second",
        "What its cache dropped (pages of ours, tokens of SGLang), and requests it sent back to the queue.",
        (("evicted", "server_evicted_s"), ("preempted", "server_preempted_s")),
    ),
)


def server_charts(run: SavedRun, spans: Spans) -> list[Chart]:
    """None where nobody looked.

    Raises:
        ConfigError: what was kept cannot be read.
    """
    if not any(run.path.glob(f"**/{METRICS}")):
        return []
    step_s = max(1.0, spans.duration_s / MAX_STEPS)
    columns = timeline(run, step_s)
    shift_s = np.array([spans.shift_of.get(int(segment), np.nan) for segment in columns["segment"].tolist()])
    x = columns["time_s"] + step_s / 2 + shift_s
    inside = (x >= 0) & (x <= spans.duration_s)
    charts = []
    for plot in _PLOTS:
        told = [(name, plot.scale * columns[key][inside]) for name, key in plot.lines]
        lines = [
            Line(name=name, y=y, colour=number + 4, dashes=number)
            for number, (name, y) in enumerate(told)
            if not np.isnan(y).all()
        ]
        if lines and (plot.name != "server-pressure" or any(np.nanmax(line.y) > 0 for line in lines)):
            charts.append(
                Chart(
                    name=f"time-{plot.name}",
                    title=plot.title,
                    caption=plot.caption,
                    x_label="s",
                    y_label=plot.y_label,
                    x=x[inside],
                    lines=lines,
                    y_max=plot.y_max,
                    timeline=0,
                )
            )
    return charts


def names() -> Sequence[str]:
    """Of all charts there may be, in their order."""
    return [f"time-{plot.name}" for plot in _PLOTS]
