"""What `trace analyze` shows people: the table of lengths, arrivals, sessions, the tree, caches, reuse.

Owns layout and words; every figure is one of `traces/analyze.py`'s, and what a trace does not say is n/a.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from prefixlab import __version__
from prefixlab.bench.report.console import counted
from prefixlab.bench.report.figures import brief, number
from prefixlab.bench.traces.analyze import (
    Analysis,
    Arrivals,
    CacheFigures,
    CachePoint,
    Figures,
    ReuseFigures,
    SessionFigures,
    Stats,
)
from prefixlab.bench.traces.sharing_tree import SharingTree

STATISTICS = ("mean", "std", "min", "p25", "median", "p75", "max")
HEADINGS = ("Mean", "Std Dev", "Min", "P25", "Median", "P75", "Max")
STEPPED = 0.1
"""Where so many gaps are 0, the clock's steps are in all figures of arrivals."""


def show_analysis(console: Console, analysis: Analysis) -> None:
    """All of it. Whoever wants only data takes `analysis.figures`."""
    figures = analysis.figures

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    say(headline(figures))
    console.print(_lengths_table(figures))
    say(_arrivals_text(figures.arrivals))
    if figures.sessions is not None:
        console.print(_sessions_table(figures.sessions))
        if figures.sessions.within is not None:
            say(f"Hits on blocks that the same session had used last: {_percent(figures.sessions.within)}")
    if figures.sharing is None or figures.cache is None or figures.reuse is None:
        say("\nThe trace names no blocks, so nothing is known of what its prompts share.")
    else:
        say(_tree_text(figures.sharing))
        if figures.sharing.most_shared:
            console.print(_shared_table(figures.sharing, figures.num_prompt_tokens))
        console.print(_cache_table(figures.cache))
        console.print(_reuse_table(figures.reuse))
    for note in figures.notes:
        say(f"note: {note}")


def as_json(figures: Figures) -> str:
    """One JSON object, its names those of `Figures`; no NaN, and no Infinity but the word "inf"."""
    document: dict[str, Any] = {"prefixlab_version": __version__, **msgspec.to_builtins(figures)}
    if figures.arrivals is not None and figures.arrivals.burstiness == math.inf:
        document["arrivals"]["burstiness"] = "inf"  # as --burstiness takes it
    return msgspec.json.format(msgspec.json.encode(document), indent=1).decode() + "\n"


def headline(figures: Figures) -> str:
    """What was read, in one line."""
    duration_s = figures.arrivals.duration_s if figures.arrivals else None
    parts = [
        counted(figures.num_requests, "request") + (f" over {duration_s:,.1f} s" if duration_s else ""),
        counted(figures.num_prompt_tokens, "prompt token"),
        counted(figures.num_output_tokens, "output token"),
    ]
    if figures.block_size is not None:
        parts.append(f"blocks of {counted(figures.block_size, 'token')}")
    return f"{figures.trace}: {', '.join(parts)}"


def _lengths_table(figures: Figures) -> Table:
    lengths = figures.lengths
    table = _table("Lengths, tokens", ("",), HEADINGS)
    rows = (
        ("Input Length", lengths.input_tokens),
        ("Context Length", lengths.context_tokens),
        ("Unique Prompt Length", lengths.unique_prompt_tokens),
        ("Output Length", lengths.output_tokens),
    )
    for name, stats in rows:
        table.add_row(name, *_cells(stats, 1))
    table.add_row("Theoretical Hit Rates, %", *_cells(lengths.theoretical_hit_rate, 1, factor=100))
    return table


def _arrivals_text(arrivals: Arrivals | None) -> str:
    if arrivals is None:
        return "Arrivals: the trace does not say when its requests came"
    parts = [
        f"{number(arrivals.requests_per_s, 3)} requests/s",
        f"{number(arrivals.busiest_per_s, 3)} in the busiest {arrivals.busy_s:,.4g} s",
        f"burstiness {number(arrivals.burstiness, 3)} "
        + ("(even gaps)" if arrivals.gap_cv == 0 else f"(CV of gaps {number(arrivals.gap_cv, 2)})"),
    ]
    text = f"Arrivals: {', '.join(parts)}"
    if arrivals.simultaneous >= STEPPED:
        text += (
            f"\nnote: {_percent(arrivals.simultaneous)} of requests came at the very time of the one before: "
            "burstiness is the clock's steps as much as the traffic's"
        )
    return text


def _sessions_table(sessions: SessionFigures) -> Table:
    table = _table(f"Sessions: {sessions.num_sessions:,}", ("",), HEADINGS)
    table.add_row("Requests", *_cells(sessions.requests, 1))
    if sessions.duration_s is not None:
        table.add_row("First to last request, s", *_cells(sessions.duration_s, 1))
    if sessions.think_s is not None:
        table.add_row("Think time, s", *_cells(sessions.think_s, 1))
    return table


def _tree_text(tree: SharingTree) -> str:
    once = tree.blocks_used_once / max(1, tree.unique_blocks)
    return (
        f"\nTree of prefixes: {counted(tree.num_roots, 'root')}, {counted(tree.num_nodes, 'node')}, "
        f"of which {counted(tree.num_leaves, 'leaf').replace('leafs', 'leaves')}; "
        f"at most {counted(tree.most_nodes, 'node')} and {counted(tree.most_blocks, 'block')} deep\n"
        f"Distinct blocks: {tree.unique_blocks:,}, of which {tree.blocks_used_once:,} "
        f"({_percent(once)}) are used once"
    )


def _shared_table(tree: SharingTree, num_prompt_tokens: int) -> Table:
    headings = ("prefix, tokens", "of which new", "requests", "repeated tokens", "of all %")
    table = _table("Most shared prefixes, by the tokens a cache saves on them", (), headings)
    for prefix in tree.most_shared:
        table.add_row(
            f"{prefix.prefix_tokens:,}",
            f"{prefix.node_tokens:,}",
            f"{prefix.num_requests:,}",
            f"{prefix.repeated_tokens:,}",
            f"{100 * prefix.repeated_tokens / num_prompt_tokens:.2f}",
        )
    table.caption = "new: behind the longest prefix that more requests begin with"
    return table


def _cache_table(cache: CacheFigures) -> Table:
    with_bytes = cache.knee.capacity_bytes is not None
    headings = ("blocks", "tokens", *(("GiB",) if with_bytes else ()), "of unique %")
    headings += ("hit %, by blocks", "by tokens", "of ideal %")
    table = _table("Hit rate of a least recently used cache", ("capacity",), headings)
    for point in (cache.unlimited, *cache.capacities, *cache.of_unique):
        table.add_row(*_point_cells(point))
    table.add_section()
    for point in (cache.knee, *cache.of_ideal):
        table.add_row(*_point_cells(point))
    return table


def _point_cells(point: CachePoint) -> list[str]:
    cells = [point.asked, f"{point.capacity_blocks:,}", f"{point.capacity_tokens:,}"]
    if point.capacity_bytes is not None:
        cells.append(number(point.capacity_bytes / 2**30, 2))
    cells += [f"{100 * point.of_unique:.2f}", f"{100 * point.hit_rate_by_blocks:.3f}"]
    return [*cells, f"{100 * point.hit_rate_by_tokens:.3f}", f"{100 * point.of_ideal:.1f}"]


def _reuse_table(reuse: ReuseFigures) -> Table:
    names = tuple(name.upper() for name in reuse.distance_blocks) or ("",)
    title = f"Between two uses of a block ({counted(reuse.num_uses, 'use')} after the first)"
    table = _table(title, ("",), names)
    if reuse.distance_blocks:
        table.add_row("Other distinct blocks", *(f"{value:,.0f}" for value in reuse.distance_blocks.values()))
    if reuse.distance_s:
        table.add_row("Seconds", *(brief(value) for value in reuse.distance_s.values()))
    return table


def _table(title: str, words: Sequence[str], numbers: Iterable[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    table.caption_justify = "left"
    for name in words:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        # fold: where there is too little room, a figure goes on in the next line and is never cut
        table.add_column(name, justify="right", overflow="fold")
    return table


def _cells(stats: Stats | None, digits: int, factor: int = 1) -> list[str]:
    if stats is None:
        return ["n/a"] * len(STATISTICS)
    return [f"{factor * getattr(stats, name):,.{digits}f}" for name in STATISTICS]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
