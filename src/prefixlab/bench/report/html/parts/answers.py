"""What an A/B or a search for saturation found: its sentences, and the table that they stand on.

Owns the layout. Judges nothing: all is read from the folder's own summary.

Invariant: no answer without its interval, or without why there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from prefixlab.bench.compare.difference import Difference, Finding
from prefixlab.bench.report.html.entries import SATURATE, Search
from prefixlab.bench.report.html.markup import Child, Markup, el, table
from prefixlab.bench.report.html.parts.headline import answers_of
from prefixlab.bench.report.html.parts.judgements import differences_table
from prefixlab.bench.report.html.words import number_at, percent, short


def section(searches: Sequence[Search]) -> Markup | None:
    if not searches:
        return None
    told = [_answer(of, alone=len(searches) == 1) for of in searches]
    return el("section", el("h2", "What was found"), told, id="answer")


def _answer(search: Search, *, alone: bool) -> Markup:
    head = None if alone else el("h3", search.path.name)
    sentences = [el("p", el("strong", words)) for words in answers_of(search)]
    tables = [_probes(search)] if search.verb == SATURATE else _differences(search)
    return el("div", head, sentences, tables, _notes(search))


def _notes(search: Search) -> Markup | None:
    notes = search.summary.get("notes") or ()
    return el("ul", [el("li", str(note)) for note in notes]) if notes else None


def _differences(search: Search) -> list[Markup]:
    """A table per pair of arms."""
    pairs: dict[tuple[str, str], list[Difference]] = {}
    for keys in search.summary.get("differences") or ():
        pairs.setdefault((str(keys["from"]), str(keys["to"])), []).append(_difference(keys))
    return [differences_table(f"B ({b}) against A ({a})", of) for (a, b), of in pairs.items()]


def _difference(keys: Mapping[str, Any]) -> Difference:
    figure = str(keys["figure"])
    first, second = keys["num_values"]
    return Difference(
        figure=figure,
        a=keys["a"],
        b=keys["b"],
        change=keys["change"],
        low=keys["low"],
        high=keys["high"],
        level=keys["level"],
        method=str(keys["method"]),
        num_values=(first, second),
        higher_is_better=figure.endswith("_throughput"),
        finding=Finding(keys["finding"]),
    )


def _probes(search: Search) -> Markup:
    unit = str(search.summary.get("unit"))
    heads = (unit, "ok", "failed", "good", "TTFT p50, ms", "TTFT p99, ms", "TPOT p50, ms", "objectives")
    rows: list[list[Child]] = [
        [
            short(number_at(probe, "load")),
            *(short(number_at(probe, key)) for key in ("completed", "failed")),
            percent(number_at(probe, "share")),
            *(short(number_at(probe, key)) for key in ("median_ttft_ms", "p99_ttft_ms", "median_tpot_ms")),
            f"{probe.get('verdict')} ({percent(number_at(probe, 'probability'), 0)})",
        ]
        for probe in sorted(search.summary.get("probes") or (), key=lambda probe: float(probe["load"]))
    ]
    return table(
        "Probes, and how probable it is that each met the objectives", heads, rows, classes="figures"
    )
