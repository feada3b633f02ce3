"""The picture of a sweep over prefix ratios: TTFT, ITL, throughput and hit rate over the ratio.

Owns one figure of four panels, and the name of its file, which is that of Dynamo's benchmark.

Invariants: a band says in the legend what it is, and there is none rather than one of too little; a ratio
that was not measured is named, not bridged in silence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prefixlab.bench.metrics.distribution import Distribution
from prefixlab.bench.metrics.intervals import FEWEST_VALUES
from prefixlab.bench.report.figures import milliseconds
from prefixlab.bench.report.pictures.provenance import Provenance
from prefixlab.bench.report.pictures.style import (
    BLUE,
    MUTED,
    ORANGE,
    draw,
    dress,
    from_zero,
    name_lines,
    save,
    sheet,
)
from prefixlab.bench.report.prefix_ratio import QUARTILES, RatioPoint

PICTURE = "prefix_ratio_performance.png"
RATIO = "prefix ratio (share of prompt tokens that is a shared prefix)"
Places = Sequence[tuple[float, float | None]]


def write_prefix_ratio_plot(
    path: Path, points: Sequence[RatioPoint], *, title: str, provenance: Provenance | None = None
) -> None:
    """Bands are the middle half of all requests, and of throughput the interval over repeats.

    Raises:
        ConfigError: the file cannot be written.
    """
    save(prefix_ratio_figure(points, title=title, provenance=provenance), path)


def prefix_ratio_figure(
    points: Sequence[RatioPoint], *, title: str, provenance: Provenance | None = None
) -> Figure:
    """See `write_prefix_ratio_plot`."""
    return draw(lambda: _figure(points, title, provenance))


def _figure(points: Sequence[RatioPoint], title: str, provenance: Provenance | None) -> Figure:
    missing = [f"{point.ratio:g}" for point in points if point.result is None]
    failed = sum(point.result.metrics.failed for point in points if point.result)
    notes = "Figures are of requests that succeeded."
    notes += f"  {failed} requests FAILED." if failed else ""
    notes += f"  NOT MEASURED: {', '.join(missing)}." if missing else ""
    figure = sheet(
        11,
        8.4,
        title=title,
        notes=notes,
        alarming=bool(missing or failed),
        provenance=provenance.line if provenance else "",
    )
    (ttft, itl), (throughput, hits) = figure.subplots(2, 2)
    _latency(ttft, "Time to first token", "TTFT, ms", points, lambda point: point.ttft_s)
    _latency(itl, "Inter-token latency", "ITL, ms", points, lambda point: point.itl_s)
    _throughput(throughput, points)
    _hits(hits, points)
    for axes in (ttft, itl, throughput, hits):
        axes.set_xlim(-0.03, 1.03)
    return figure


def _latency(
    axes: Axes, name: str, unit: str, points: Sequence[RatioPoint], of: Callable[[RatioPoint], Distribution]
) -> None:
    """The median, and the middle half where there are enough values for one."""
    dress(axes, name, RATIO, unit)
    low, middle, high = (
        [(point.ratio, milliseconds(of(point).at(percent))) for point in points] for percent in QUARTILES
    )
    handles: dict[str, Artist] = {"median of all values": _line(axes, middle, ORANGE)}
    enough = [
        low[place][1] is not None and of(point).count >= FEWEST_VALUES for place, point in enumerate(points)
    ]
    if any(enough):
        # Where there are too few, the band is as narrow as the line.
        bottom, top = (
            _known([one if wide else mid for one, mid, wide in zip(end, middle, enough, strict=True)])
            for end in (low, high)
        )
        shaded = axes.fill_between(_ratios(middle), bottom, top, color=ORANGE, alpha=0.18, linewidth=0)
        handles["middle half (p25 to p75)"] = shaded
    name_lines(axes, list(handles.values()), list(handles), loc="best", fontsize=9, frameon=False)
    from_zero(axes, max(_known(high), default=0.0))


def _throughput(axes: Axes, points: Sequence[RatioPoint]) -> None:
    dress(axes, "Throughput", RATIO, "output tokens/s")
    places = [(point.ratio, point.output_throughput) for point in points]
    handles: dict[str, Artist] = {"all repeats together": _line(axes, places, BLUE)}
    key = ("output_throughput", "")
    banded = [
        (point.ratio, point.result.intervals[key])
        for point in points
        if point.result is not None and key in point.result.intervals
    ]
    if banded:
        ratios = [ratio for ratio, _ in banded]
        low, high = [max(0.0, one.low) for _, one in banded], [one.high for _, one in banded]
        shaded = axes.fill_between(ratios, low, high, color=BLUE, alpha=0.18, linewidth=0)
        handles["95 % interval over the repeats"] = shaded
    name_lines(axes, list(handles.values()), list(handles), loc="best", fontsize=9, frameon=False)
    from_zero(axes, max([*_known(places), *(one.high for _, one in banded)], default=0.0))


def _hits(axes: Axes, points: Sequence[RatioPoint]) -> None:
    dress(axes, "Hit rate", RATIO, "% of prompt tokens")
    (ratio,) = axes.plot([0, 1], [0, 100], linestyle=":", color=MUTED)
    expected = [(point.ratio, _percent(point.expected_hit_rate)) for point in points]
    measured = [(point.ratio, _percent(point.hit_rate)) for point in points]
    handles = {
        "prefix ratio": ratio,
        "expected": _line(axes, expected, MUTED, hollow=True),
        "measured": _line(axes, measured, BLUE),
    }
    name_lines(axes, list(handles.values()), list(handles), loc="upper left", fontsize=9, frameon=False)
    from_zero(axes, 100)


def _line(axes: Axes, places: Places, colour: str, *, hollow: bool = False) -> Artist:
    size, face = (11, "white") if hollow else (6, colour)  # what is hollow lies beneath, and is seen around
    (line,) = axes.plot(_ratios(places), _known(places), "o-", color=colour, mfc=face, ms=size, linewidth=2)
    return line


def _ratios(places: Places) -> list[float]:
    return [ratio for ratio, value in places if value is not None]


def _known(places: Places) -> list[float]:
    return [value for _, value in places if value is not None]


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share
