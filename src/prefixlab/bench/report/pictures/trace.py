"""The picture of a trace: what a cache finds against its size, lengths, arrivals, and distances of reuse.

Owns one figure of four panels. A panel for which the trace has no data says so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from prefixlab.bench.report.pictures.provenance import Provenance
from prefixlab.bench.report.pictures.style import BLUE, INK, MUTED, ORANGE, draw, dress, save, say, sheet
from prefixlab.bench.report.trace import headline
from prefixlab.bench.traces.analyze import Analysis, Figures
from prefixlab.bench.traces.trace import Trace

BINS = 60


def write_trace_plot(path: Path, analysis: Analysis, provenance: Provenance | None = None) -> None:
    """Draw to `path`; the file's ending says how (PNG, SVG, PDF).

    Raises:
        ConfigError: the file cannot be written, or matplotlib does not know its ending.
    """
    save(trace_figure(analysis, provenance), path, "--plot")


def trace_figure(analysis: Analysis, provenance: Provenance | None = None) -> Figure:
    """See `write_trace_plot`."""
    return draw(lambda: _figure(analysis, provenance))


def _figure(analysis: Analysis, provenance: Provenance | None) -> Figure:
    title, _, facts = headline(analysis.figures).partition(": ")
    figure = sheet(
        12,
        8.2,
        title=title,
        subtitle=facts,
        notes="Dotted: medians; of arrivals, the mean rate.",
        provenance=provenance.line if provenance else "",
    )
    (caches, lengths), (arrivals, reuse) = figure.subplots(2, 2)
    _draw_cache(caches, analysis)
    _draw_lengths(lengths, analysis.trace)
    _draw_arrivals(arrivals, analysis.trace)
    _draw_reuse(reuse, analysis.figures)
    return figure


def _draw_cache(axes: Axes, analysis: Analysis) -> None:
    curve, cache = analysis.curve, analysis.figures.cache
    dress(axes, "Hit rate of a least recently used cache", "capacity, blocks", "% of what was asked for")
    if curve is None or cache is None or not len(curve.capacities):
        say(axes, "no block is used twice" if cache else "the trace names no blocks")
        return
    capacities = np.append(curve.capacities, curve.unique_blocks)
    for hits, total, name, colour, style in (
        (curve.hit_blocks, curve.num_blocks, "of blocks", BLUE, "-"),
        (curve.hit_tokens, curve.num_tokens, "of tokens", ORANGE, "--"),  # often nearly the same: see through
    ):
        rates = 100 * np.append(hits, hits[-1]) / max(1, total)
        axes.step(capacities, rates, where="post", color=colour, linestyle=style, linewidth=2, label=name)
    knee = cache.knee
    rate = 100 * knee.hit_rate_by_blocks
    axes.plot(knee.capacity_blocks, rate, "o", ms=7, mfc="white", mec=INK, mew=1.6, zorder=4)
    text = f"knee: {knee.capacity_blocks:,} blocks,\n{100 * knee.of_ideal:.0f} % of the ideal hits"
    at = (knee.capacity_blocks, rate)
    axes.annotate(text, at, (-12, 0), textcoords="offset points", ha="right", va="center", fontsize=9)
    lower_edge = axes.get_xaxis_transform()
    for point in cache.capacities:
        axes.axvline(point.capacity_blocks, color=MUTED, linewidth=1, linestyle="--")
        text = f" {point.asked}"
        axes.text(point.capacity_blocks, 0.02, text, fontsize=8, color=MUTED, transform=lower_edge)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.1 * 100 * max(cache.ideal_by_blocks, cache.ideal_by_tokens) or 1.0)
    axes.legend(frameon=False, loc="upper left", fontsize=9)


def _draw_lengths(axes: Axes, trace: Trace) -> None:
    dress(axes, "Lengths", "tokens", "requests")
    longest = max(int(trace.prompt_tokens.max(initial=1)), int(trace.output_tokens.max(initial=1)))
    edges = np.geomspace(1, longest + 1, BINS).tolist()
    for values, name, colour, hatch in (
        (trace.prompt_tokens, "input", BLUE, None),
        (trace.output_tokens, "output", ORANGE, "///"),  # told apart without colour too
    ):
        axes.hist(values, bins=edges, color=colour, alpha=0.55, label=name, hatch=hatch, edgecolor="white")
        axes.axvline(float(np.median(values)), color=colour, linewidth=1.4, linestyle=":")
    axes.set_xscale("log")
    axes.legend(frameon=False, loc="upper left", fontsize=9)


def _draw_arrivals(axes: Axes, trace: Trace) -> None:
    dress(axes, "Arrivals", "time, s", "requests/s")
    duration_s = float(trace.offsets_s[-1]) if trace.has_times else 0.0
    if not duration_s:
        say(axes, "all at once" if trace.has_times else "the trace has no times")
        return
    counts, edges = np.histogram(trace.offsets_s, bins=BINS, range=(0, duration_s))
    axes.stairs(counts / np.diff(edges), edges.tolist(), color=BLUE, fill=True, alpha=0.55)
    axes.axhline(len(trace) / duration_s, color=INK, linewidth=1, linestyle=":")


def _draw_reuse(axes: Axes, figures: Figures) -> None:
    dress(axes, "Between two uses of a block", "other distinct blocks", "uses")
    if figures.reuse is None or not figures.reuse.num_uses:
        say(axes, "no block is used twice" if figures.reuse else "the trace names no blocks")
        return
    histogram = figures.reuse.histogram
    # 0 has no place on a logarithmic axis: it stands half a step before 1.
    edges = [0.5, *(2.0**power for power in range(len(histogram)))]
    axes.stairs([count for _, count in histogram], edges, color=BLUE, fill=True, alpha=0.55)
    axes.axvline(max(0.5, figures.reuse.distance_blocks["p50"]), color=BLUE, linewidth=1.4, linestyle=":")
    axes.set_xscale("log")
